"""`reflow demo`: two rounds on eight Gaussians and one picture of them, without a project."""

import sys
from pathlib import Path
from shlex import quote
from shutil import which
from typing import TYPE_CHECKING, Annotated

import typer

from flows.cli.console import one_line_errors, out
from flows.project.git import git
from fmcore.settings import ReflowError, derive_seed

if TYPE_CHECKING:
    from rich.progress import Progress
    from torch import Tensor

    from fmcore.coupling.pairs import Pairs
    from fmcore.sampling.flow import Flow
    from fmcore.training.fit import Train
    from fmcore.verdict.before_after import Shown

SOFTWARE = "reflow demo"
"""What the picture says about itself; a file that says something else is not overwritten."""
SAMPLES, PAIRS, JUDGED = 10_000, 8000, 2000


def demo(
    file: Annotated[
        Path, typer.Option("--out", metavar="FILE", help="Where to write the picture, a .png.")
    ] = Path("reflow_demo.png"),
    seed: Annotated[int, typer.Option(min=0, help="Seed of data, noise and weights.")] = 0,
    steps: Annotated[int, typer.Option(min=1, help="Training steps of each round.")] = 1000,
) -> None:
    """See reflow in half a minute: two rounds on eight Gaussians, one picture. Needs no project."""
    with one_line_errors("stopped; nothing was written"):
        _check(file)
        first, second = two_rounds(file, seed=seed, steps=steps)
    for line in _words(first, second, file):
        out.print(line, markup=False, highlight=False, soft_wrap=True)


def _words(first: "Shown", second: "Shown", file: Path) -> list[str]:
    """Return what the picture shows in three lines, and the next step."""
    from fmcore.verdict.before_after import plain

    bend, miss = plain(first.straightness), plain(first.distance)
    straight, hit = plain(second.straightness), plain(second.distance)
    return [
        f"rf1 learns from noise and data paired at random: its paths bend (straightness {bend}),"
        f" so one step from the noise misses the data (energy distance {miss}).",
        f"rf2 learns from the pairs that rf1 makes: its paths are straight ({straight}), so one"
        f" step lands on the data ({hit}; 0 is no difference).",
        f"The picture has a row for each: {file}",
        f"Next: the same as a pipeline: `{_next()}`; on data of your own: `reflow new`",
    ]


def _next() -> str:
    """Return the line that makes a project, as it works here.

    `reflow` may be called by its path, and a project inside of another repository has no versions.
    """
    try:
        folder = f"{git(Path.cwd(), 'rev-parse', '--show-toplevel')}-flows"
    except (ReflowError, OSError):
        folder = "my-flows"
    reflow = "reflow" if which("reflow") else quote(str(Path(sys.executable).parent / "reflow"))
    folder = quote(folder)
    return f"{reflow} init {folder} --from eight_gaussians && cd {folder} && {reflow} run"


def _check(file: Path) -> None:
    """Check before the training that the picture can be written. Raises ReflowError if not."""
    if file.suffix != ".png":
        raise ReflowError(f"{file}: expected a name that ends in .png")
    if file.exists() and not _ours(file):
        raise ReflowError(f"{file}: exists and is no picture of `reflow demo`; name another: --out")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        if not file.exists():
            file.touch()
            file.unlink()
    except OSError as error:
        raise ReflowError(f"{file}: cannot be written ({error.strerror})") from error


def _ours(file: Path) -> bool:
    from PIL import Image

    try:
        with Image.open(file) as image:
            return bool(image.info.get("Software") == SOFTWARE)
    except (OSError, ValueError):
        return False


def two_rounds(file: Path, *, seed: int, steps: int) -> "tuple[Shown, Shown]":
    """Train rf1 and, on its pairs, rf2; draw both; return what was drawn."""
    with _bars() as bars:
        wait = bars.add_task("loading torch", total=None, loss="")
        from fmcore.verdict.before_after import before_after

        real = _data(seed, "real", JUDGED)
        bars.remove_task(wait)
        shown = _trained(bars, real, seed, steps)
    title = f"Reflow on eight Gaussians (seed {seed}): rf1's paths bend, rf2's are straight"
    try:
        before_after(file, shown, real, title=title, software=SOFTWARE)
    except OSError as error:
        raise ReflowError(f"{file}: cannot be written ({error.strerror})") from error
    return shown


def _bars() -> "Progress":
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    return Progress(
        TextColumn("{task.description:<26}"), BarColumn(), MofNCompleteColumn(),
        TextColumn("{task.fields[loss]:<12}"), TimeElapsedColumn(), console=out,
    )  # fmt: skip


def _trained(bars: "Progress", real: "Tensor", seed: int, steps: int) -> "tuple[Shown, Shown]":
    """Train and measure both rounds.

    On one thread: the network is so small that others would wait, and the numbers depend on the
    seed alone.
    """
    import numpy as np
    import torch

    import fmcore
    from fmcore.coupling.noise import gaussian_noise

    torch.set_num_threads(1)
    noise = gaussian_noise(derive_seed(seed, "evaluate"), np.arange(JUDGED), (2,))
    settings = fmcore.Train(steps=steps, batch=512, lr=5e-3, ema=0.99, log_every=10)
    first = fmcore.independent(_data(seed, "target", SAMPLES))
    rf1 = _fit(bars, "rf1 on data and noise", first, settings, seed, None)
    second = fmcore.rectify(rf1, PAIRS, seed=seed)
    rf2 = _fit(bars, "rf2 on the pairs of rf1", second, settings, seed, rf1)
    return (
        _measured("rf1", "data and noise paired at random", first, rf1, noise, real),
        _measured("rf2", "the pairs that rf1 makes", second, rf2, noise, real),
    )


def _data(seed: int, name: str, count: int) -> "Tensor":
    """Return samples [count, 2] of the eight Gaussians, of the draw called `name`."""
    from fmcore.dataset.densities import EightGaussians

    settings = EightGaussians(name="eight_gaussians", samples=count)
    return settings.read(derive_seed(seed, name)).target


def _fit(
    bars: "Progress",
    words: str,
    pairs: "Pairs",
    settings: "Train",
    seed: int,
    init: "Flow | None",
) -> "Flow":
    """Train a round with a bar that shows its loss."""
    import torch

    import fmcore

    bar = bars.add_task(words, total=settings.steps, loss="")

    def log(values: dict[str, float], step: int) -> None:
        bars.update(bar, completed=step, loss=f"loss {values['loss']:.4f}")

    network = fmcore.MLP(width=64, depth=2, norm="none")
    return fmcore.fit_flow(
        pairs, settings, network=network, init=init, seed=seed, device=torch.device("cpu"), log=log
    )


def _measured(
    name: str, words: str, pairs: "Pairs", flow: "Flow", noise: "Tensor", real: "Tensor"
) -> "Shown":
    """Return a round as the picture shows it, measured on the noise that both rounds get."""
    import fmcore
    from fmcore.measure.transport import energy_distance
    from fmcore.verdict.before_after import Shown

    path = flow.sample(noise, fmcore.Solver(name="heun", steps=32), keep_trajectory=True).trajectory
    assert path is not None
    one = flow.sample(noise, fmcore.Solver(name="euler", steps=1)).x
    straight, distance = fmcore.straightness_rel(path), energy_distance(one, real)
    return Shown(name, words, pairs.target, pairs.source, path, one, straight, distance)
