"""`reflow sample`: draw samples from a round into a picture, a film or an array."""

import os
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flows.cli import complete
from flows.cli.console import one_line_errors, out, project
from flows.cli.prompts import Prompt, Prompts, Within, sheet
from fmcore.settings import ReflowError, derive_seed

if TYPE_CHECKING:
    from torch import Tensor

    from fmcore.choices.solvers import OdeSolver
    from fmcore.network.store import Model
    from fmcore.sampling.flow import Flow
    from fmcore.settings import GuidanceWithin
    from fmcore.solve.solver import Solution

FILMS = (".gif", ".mp4")
SUFFIXES = (".png", ".npy", *FILMS)
IMAGES, POINTS, BEHIND = 64, 1000, 2000
"""Samples that are drawn where no number is given, and real points behind them."""
FRAMES = 32
"""Steps of a film where no budget is given."""


@dataclass(frozen=True)
class Draw:
    """What to draw: by a solver within `nfe` evaluations or, with churn, by the reverse SDE.

    `label` is a class, `prompt` a text in its place, `guidance` the pull towards it, at the times
    `within`; `weights` are ema, raw, or the relative
    length of a power average; `rev` names the commit that has the model.
    """

    nfe: int | None = None
    count: int | None = None
    seed: int = 0
    churn: float = 0.0
    label: str | None = None
    guidance: float = 1.0
    weights: str = "ema"
    solver: str = "euler"
    rev: str | None = None
    prompt: str | None = None
    within: tuple[float, float] | None = None

    @property
    def pull(self) -> "float | GuidanceWithin":
        """Return the guidance, at all times or within some."""
        from fmcore.settings import GuidanceWithin

        if self.within is None:
            return self.guidance
        return GuidanceWithin(strength=self.guidance, within=self.within)

    def chosen(self, *, film: bool = False) -> "OdeSolver":
        """Return the solver: Euler takes one step unless a number is given, a film 32."""
        from fmcore.choices import budget

        if self.nfe is not None:
            return budget.within(self.solver, self.nfe)
        grid = self.solver != budget.ADAPTIVE
        if film and grid:
            return budget.named(self.solver, steps=FRAMES)
        return budget.named(self.solver, steps=1 if self.solver == "euler" else None)


@dataclass(frozen=True)
class Place:
    """Where a model is, and its prepared data, if they are at hand; what titles call it."""

    model: Path
    data: Path | None
    name: str
    colour: str


def sample(  # noqa: PLR0913  # each is an option of the command
    round_: Annotated[
        str,
        typer.Argument(
            metavar="ROUND", help="The round, such as rf2.", autocompletion=complete.rounds
        ),
    ],
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="Where to write a .png, .npy, .gif or .mp4.")
    ],
    nfe: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Evaluations of the velocity; guidance doubles them. Default: 1 with euler,"
            f" {FRAMES} steps in a film.",
        ),
    ] = None,
    solver: Annotated[
        str, typer.Option(help="euler, midpoint, heun, heun_to_euler, rk4, ab2, ab3, ab4, dopri5.")
    ] = "euler",
    count: Annotated[
        int | None, typer.Option("-n", min=1, help="How many samples: 64 images, 1,000 points.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the noise.")] = 0,
    churn: Annotated[float, typer.Option(min=0, max=1, help="0: ODE; 1: reverse SDE.")] = 0.0,
    label: Annotated[
        str | None, typer.Option("--label", "--class", help="The class, by its name or number.")
    ] = None,
    guidance: Annotated[float, typer.Option(min=0, help="Strength of guidance.")] = 1.0,
    within: Within = None,
    prompt: Prompt = None,
    prompts: Prompts = None,
    weights: Annotated[
        str, typer.Option(help="ema, raw, or the relative length of a power average.")
    ] = "ema",
    rev: Annotated[
        str | None, typer.Option(help="Take the model of this commit, branch or tag, by DVC.")
    ] = None,
) -> None:
    """Draw samples from a round: a picture (.png), an array (.npy), a film (.gif, .mp4)."""
    with one_line_errors("stopped; nothing was written"):
        wanted = Draw(
            nfe, count, seed, churn, label, guidance, weights, solver, rev, prompt, within
        )
        make = partial(sheet, prompts=prompts) if prompts else draw
        drawn, spent = make(project(), round_, file, wanted)
    of = f"{round_} at {rev}" if rev else round_
    out.print(f"{drawn:,} samples of {of} at NFE {spent}: {file}", markup=False)


def draw(root: Path, round_: str, file: Path, wanted: Draw) -> tuple[int, int]:
    """Write samples of a round to a file; return their number, and the evaluations for each."""
    check_wanted(file, wanted)
    import numpy as np

    place = place_of(root, round_, wanted)
    found, model, count = _solved(place.model, place.data, wanted, film=file.suffix in FILMS)
    x = model.units.inverse(found.x)
    part = file.with_name(f".{file.stem}.{os.getpid()}.part{file.suffix}")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        if file.suffix == ".npy":
            np.save(part, x.numpy())
        else:
            _picture(part, x, found, model, place, wanted)
        part.replace(file)
    except OSError as error:
        raise ReflowError(f"{file}: cannot be written ({error.strerror})") from error
    finally:
        part.unlink(missing_ok=True)
    return count, found.nfe


def check_wanted(file: Path, wanted: Draw) -> None:
    """Check what was asked for before anything is loaded. Raises ReflowError if it cannot be."""
    if file.suffix not in SUFFIXES:
        raise ReflowError(f"{file}: expected a name that ends in {', '.join(SUFFIXES)}")
    if wanted.guidance != 1 and wanted.label is None and wanted.prompt is None:
        raise ReflowError(
            "--guidance pulls towards a class or a text; say which by --label or --prompt"
        )
    if wanted.label is not None and wanted.prompt is not None:
        raise ReflowError("--label and --prompt both say what is drawn; give one")
    low, high = wanted.within or (0.0, 1.0)
    if not 0 <= low < high <= 1 or (wanted.within and wanted.guidance == 1):
        raise ReflowError(
            "--within: expected --guidance other than 1 and two times from 0 to 1, the smaller"
            f" first; got guidance {wanted.guidance:g} and {low:g} {high:g}"
        )
    if wanted.churn and wanted.solver != "euler":
        raise ReflowError("--churn is the reverse SDE, which takes steps of its own; no --solver")
    wanted.chosen()
    if file.suffix in FILMS:
        from fmcore.verdict import film

        film.check(file)
        if wanted.churn:
            raise ReflowError("a film shows the ODE; leave --churn out")
        if wanted.solver == "dopri5":
            raise ReflowError("a film needs a solver on a grid, such as heun; dopri5 has none")


def place_of(root: Path, round_: str, wanted: Draw) -> Place:
    """Find a round's model and data, in the workspace or by DVC at a revision."""
    from flows.dag.graph import paths, prepared, read
    from flows.library.models import data_at, model_at
    from flows.params.load import FILE, load
    from fmcore.verdict.drawing import INK, palette

    rounds = load(root / FILE).rounds
    colours = palette(name for name, r in rounds.items() if not r.replicate)
    if wanted.rev is None:
        path, data = paths(root, f"train@{round_}")["out"], prepared(read(root))
        of = rounds[round_].replicate_of or round_
        return Place(path, root / data if data else None, round_, colours.get(of, INK))
    at = model_at(root, wanted.rev, round_)
    try:
        known = data_at(root, at)
    except ReflowError:  # the picture is then without it; a source that is no noise needs it
        known = None
    return Place(at.folder, known, f"{round_} at {at.commit.short}", colours.get(round_, INK))


def _solved(
    model: Path, data: Path | None, wanted: Draw, *, film: bool = False
) -> "tuple[Solution, Model, int]":
    """Return the solution in model units, with its trajectory for a film; the model; the count.

    It starts from noise, or from the real source.
    """
    import numpy as np
    import torch

    from fmcore.coupling.read import open_coupling
    from fmcore.coupling.source import Source
    from fmcore.network.build import take
    from fmcore.network.store import load, weights_of
    from fmcore.sampling.flow import Flow, concatenated
    from fmcore.sampling.prompts import prompted
    from fmcore.sampling.reverse_sde import Sde, diffusions

    loaded = load(model, weights=weights_of(wanted.weights))
    count = wanted.count or (IMAGES if len(loaded.shape) > 1 else POINTS)
    if loaded.config.get("conditions") and data is not None and data.exists():
        take(loaded.network, open_coupling(data).conditions)
    flow, ids, cpu = Flow.of(loaded), np.arange(count), torch.device("cpu")
    source = Source(loaded.shape)
    if loaded.config.get("source") is not None:
        if data is None:
            raise ReflowError("this flow starts from real samples, and its data is not at hand")
        source = open_coupling(data).source
    noise = source.draw(derive_seed(wanted.seed, "sample"), ids)
    label = None
    if wanted.label is not None:
        label = torch.full((count,), loaded.label(wanted.label))
    if wanted.prompt is not None:
        flow, label = prompted(flow, [wanted.prompt]), torch.zeros(count, dtype=torch.int64)
    if wanted.churn:
        sde = Sde(steps=wanted.nfe or 1, churn=wanted.churn)
        parts = diffusions(
            flow, noise, sde, seed=wanted.seed, device=cpu, label=label,
            guidance=wanted.pull,
        )  # fmt: skip
        return concatenated(list(parts)), loaded, count
    found = _ode(flow, noise, label, wanted, film=film)
    return found, loaded, count


def _ode(
    flow: "Flow", noise: "Tensor", label: "Tensor | None", wanted: Draw, *, film: bool
) -> "Solution":
    """Return the solution of the ODE, with its trajectory for a film."""
    try:
        return flow.sample(
            noise, wanted.chosen(film=film), device=noise.device, label=label, guidance=wanted.pull,
            keep_trajectory=film,
        )  # fmt: skip
    except ReflowError as error:
        if wanted.nfe is None or "did not arrive" not in str(error):
            raise
        raise ReflowError(
            f"{wanted.solver}: a sample needs more than {wanted.nfe} evaluations; raise --nfe, or"
            " leave it out"
        ) from error


def _picture(
    file: Path, x: "Tensor", found: "Solution", model: "Model", place: Place, wanted: Draw
) -> None:
    """Draw samples x, or a film of how they came to be."""
    from fmcore.coupling.read import open_coupling, read
    from fmcore.solve.solver import Solver
    from fmcore.verdict import film, pictures
    from fmcore.verdict.drawing import data_name, titled

    image, real, called = x.ndim == 4, None, ""
    if place.data is not None and place.data.exists():
        opened = open_coupling(place.data)
        called = data_name(opened.about.data)
        if not image:
            pairs = read(opened.originals, limit=BEHIND, sources=False)
            real = opened.originals.about.units.inverse(pairs.target)
    by = "reverse SDE" if wanted.churn else wanted.solver
    class_ = "" if wanted.label is None else f", class {wanted.label}"
    class_ += f": {wanted.prompt}" if wanted.prompt else ""
    title = titled(f"Samples at NFE {found.nfe} ({by}){class_}", called, place.name)
    solver = wanted.chosen(film=True)
    if (path := found.trajectory) is not None and isinstance(solver, Solver):
        states = model.units.inverse(path.flatten(0, 1)).unflatten(0, path.shape[:2])
        times = [float(t) for t in solver.grid(1.0, 0.0)]
        film.film(file, states, times, real=real, title=title, colour=place.colour)
    elif image:
        pictures.samples_by_nfe(file, {found.nfe: x}, image=True, reference=None, title=title)
    else:
        film.points(file, x, real, title=title, colour=place.colour)
