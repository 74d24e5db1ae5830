"""What the command line shows: the plan, the table of rounds, samples."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table

from flows import dag
from flows.tracking.records import arguments, timings
from fmcore.settings import ReflowError, derive_seed

if TYPE_CHECKING:
    from torch import Tensor


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


def comparison(root: Path) -> dict[str, Any]:
    """Return the comparison of the rounds, with the seconds that each took on this machine."""
    file = paths(root, "compare")["out"] / "rounds.json"
    if not file.exists():
        raise ReflowError(
            f"{file.relative_to(root)}: no comparison yet; run `reflow run`, or `dvc checkout`"
        )
    found: dict[str, Any] = json.loads(file.read_text())
    took, entries = timings(root), dag.lock_entries(root)
    for row in found["rounds"]:
        stage = f"train@{row['round']}"
        seconds = took.get((stage, dag.digest(entries.get(stage, {}))))
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


@dataclass(frozen=True)
class Draw:
    """What to draw: Euler or, with churn, the reverse SDE; a class and its guidance."""

    nfe: int = 1
    count: int = 64
    seed: int = 0
    churn: float = 0.0
    label: int | None = None
    guidance: float = 1.0


def draw(root: Path, round_: str, file: Path, wanted: Draw) -> None:
    """Write samples of a round to a .png or .npy file."""
    if file.suffix not in {".png", ".npy"}:
        raise ReflowError(f"{file}: expected a name that ends in .png or .npy")
    import numpy as np

    from fmcore import pictures

    x = _samples(paths(root, f"train@{round_}")["out"], wanted)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        if file.suffix == ".npy":
            np.save(file, x.numpy())
        else:
            pictures.samples_by_nfe(file, {wanted.nfe: x}, image=x.ndim == 4, reference=None)
    except OSError as error:
        raise ReflowError(f"{file}: cannot be written ({error.strerror})") from error


def _samples(model: Path, wanted: Draw) -> "Tensor":
    import numpy as np
    import torch

    from fmcore.coupling import gaussian_noise
    from fmcore.flow import Flow
    from fmcore.network import load
    from fmcore.sde import Sde, diffuse
    from fmcore.solver import Solver

    loaded = load(model)
    flow, ids, cpu = Flow.of(loaded), np.arange(wanted.count), torch.device("cpu")
    noise = gaussian_noise(derive_seed(wanted.seed, "sample"), ids, loaded.shape)
    if wanted.label is None and wanted.guidance != 1:
        raise ReflowError("--guidance pulls towards a class; say which by --label")
    if wanted.label is not None and not 0 <= wanted.label < flow.classes:
        has = f"classes 0 to {flow.classes - 1}" if flow.classes else "no classes"
        raise ReflowError(f"--label {wanted.label}: the model has {has}")
    label = None if wanted.label is None else torch.full((wanted.count,), wanted.label)
    if wanted.churn:
        sde = Sde(steps=wanted.nfe, churn=wanted.churn)
        found = diffuse(
            flow, noise, sde, ids, seed=wanted.seed, device=cpu, label=label,
            guidance=wanted.guidance,
        )  # fmt: skip
    else:
        solver = Solver(name="euler", steps=wanted.nfe)
        found = flow.sample(noise, solver, device=cpu, label=label, guidance=wanted.guidance)
    return found.x
