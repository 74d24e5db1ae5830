"""What the command line shows: the plan, the table of rounds, samples."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table

from flows.dag import graph, lineage
from flows.dag.chain import arguments
from flows.dag.receipts import timings
from fmcore.settings import ReflowError

if TYPE_CHECKING:
    pass


def paths(root: Path, stage: str) -> dict[str, Path]:
    """Return the paths that dvc.yaml gives a stage, by their names in its command."""
    stages = graph.read(root)
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
    took, entries = timings(root), lineage.lock_entries(root)
    for row in found["rounds"]:
        stage = f"train@{row['round']}"
        seconds = took.get((stage, lineage.digest(entries.get(stage, {}))))
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
