"""What the command line shows: the plan, the table of rounds, samples."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from flows import dag
from flows.tracking.records import arguments
from fmcore.settings import ReflowError, derive_seed

TIMINGS = "timings.json"


def plan_table(planned: Sequence[dag.Planned]) -> Table:
    """Lay out a plan: stage, what happens, why."""
    table = Table(box=None, pad_edge=False)
    for column in ("stage", "state", "why"):
        table.add_column(column)
    colours = {"run": "yellow", "downstream": "yellow", "unchanged": "green"}
    for item in planned:
        colour = colours.get(item.state, "")
        state = f"[{colour}]{item.state}[/]" if colour else item.state
        table.add_row(item.stage, state, "\n".join(item.reasons))
    return table


def paths(root: Path, stage: str) -> dict[str, Path]:
    """Return the paths that dvc.yaml gives a stage, by their names in its command."""
    stages = dag.read(root)
    if stage not in stages:
        kind = stage.split("@")[0]
        known = [s.split("@")[1] for s in stages if s.startswith(f"{kind}@")]
        raise ReflowError(
            f"no {stage.split('@')[-1]!r} among the rounds; params.yaml has: {', '.join(known)}"
        )
    return {k: root / v for k, v in arguments(stages[stage].cmd).items()}


def timings(root: Path) -> dict[str, float]:
    """Return the seconds that each stage took when this machine last ran it."""
    try:
        found: dict[str, float] = json.loads((root / ".reflow" / TIMINGS).read_text())
        return found
    except (OSError, ValueError):
        return {}


def note_timings(root: Path, seconds: Mapping[str, float]) -> None:
    """Remember how long stages took; kept out of every DVC output, because time is volatile."""
    path = root / ".reflow" / TIMINGS
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({**timings(root), **seconds}, indent=2) + "\n")


def comparison(root: Path) -> dict[str, Any]:
    """Return the comparison of the rounds, with the seconds that each took on this machine."""
    file = paths(root, "compare")["out"] / "rounds.json"
    if not file.exists():
        raise ReflowError(
            f"{file.relative_to(root)}: no comparison yet; run `reflow run`, or `dvc checkout`"
        )
    found: dict[str, Any] = json.loads(file.read_text())
    took = timings(root)
    for row in found["rounds"]:
        seconds = took.get(f"train@{row['round']}")
        row["floor"] = found["floor"]
        row["train_seconds"] = None if seconds is None else round(seconds, 1)
    return found


def rounds_table(found: Mapping[str, Any]) -> Table:
    """Lay out a comparison: a row per round, a column per NFE; fits 80 columns."""
    name = found["metric"]
    nfes = sorted({int(n) for row in found["rounds"] for n in row[name]})
    table = Table(
        title=f"{name} by NFE (real against real, the floor: {found['floor']:.3g})",
        title_justify="left",
        box=None,
        pad_edge=False,
        padding=(0, 1, 0, 0),
        header_style="bold",
    )
    table.add_column("round")
    for nfe in nfes:
        table.add_column(f"NFE {nfe}" if nfe == nfes[0] else str(nfe), justify="right")
    for column in ("straight", "rel", "cost", "train"):
        table.add_column(column, justify="right")
    for row in found["rounds"]:
        distances = [f"{row[name][str(n)]:.3g}" if str(n) in row[name] else "" for n in nfes]
        seconds = row.get("train_seconds")
        table.add_row(
            row["round"],
            *distances,
            f"{row['straightness']:.3g}",
            f"{row['straightness_rel']:.4f}",
            f"{row['transport_cost']:.3g}",
            "" if seconds is None else f"{seconds:.0f} s",
        )
    return table


def draw(root: Path, round_: str, file: Path, *, nfe: int, count: int, seed: int) -> None:
    """Write `count` samples of a round to a .png or .npy file."""
    if file.suffix not in {".png", ".npy"}:
        raise ReflowError(f"{file}: expected a name that ends in .png or .npy")
    import numpy as np
    import torch

    from fmcore import pictures
    from fmcore.coupling import gaussian_noise
    from fmcore.flow import Flow
    from fmcore.network import load
    from fmcore.solver import Solver

    model = load(paths(root, f"train@{round_}")["out"])
    noise = gaussian_noise(derive_seed(seed, "sample"), np.arange(count), model.shape)
    solver = Solver(name="euler", steps=nfe)
    x = Flow.of(model).sample(noise, solver, device=torch.device("cpu")).x
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        if file.suffix == ".npy":
            np.save(file, x.numpy())
        else:
            image = len(model.shape) == 3
            pictures.samples_by_nfe(file, {nfe: x}, image=image, reference=None)
    except OSError as error:
        raise ReflowError(f"{file}: cannot be written ({error.strerror})") from error
