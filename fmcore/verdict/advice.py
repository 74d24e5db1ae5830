"""Which round to ship for which NFE, and whether another round pays."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

STRAIGHT = 0.01
"""Below this relative straightness one Euler step is the flow: another round has nothing to win."""

Rounds = Sequence[Mapping[str, Any]]
"""Rounds as `compare` writes them: name, parent, metric by NFE (keys are strings), metrics."""


@dataclass(frozen=True)
class Choice:
    """A round and the NFE at which its distance is the least."""

    round: str
    nfe: int
    distance: float


def ship(rounds: Rounds, metric: str) -> dict[str, Choice]:
    """Return the round to ship: one_step (NFE 1), few_step (nearest to NFE 4), best (any NFE).

    The rule is the least distance; where two rounds tie, the earlier one.

    >>> rows = [{"round": "rf1", "fd": {"1": 9.0, "4": 1.0}},
    ...         {"round": "rf2", "fd": {"1": 2.0, "4": 1.5}}]
    >>> {k: v.round for k, v in ship(rows, "fd").items()}
    {'one_step': 'rf2', 'few_step': 'rf1', 'best': 'rf1'}
    """
    every = [
        Choice(row["round"], int(nfe), float(value))
        for row in rounds
        for nfe, value in row[metric].items()
    ]
    if not every:
        return {}
    few = min({c.nfe for c in every}, key=lambda nfe: (abs(nfe - 4), nfe))
    found = {}
    for name, nfe in (("one_step", 1), ("few_step", few), ("best", None)):
        allowed = [c for c in every if nfe is None or c.nfe == nfe]
        if allowed:
            found[name] = min(allowed, key=lambda c: c.distance)
    return found


def next_round(rounds: Rounds, metric: str, floor: float) -> list[str]:
    """Say for every last round of a branch whether another rectification pays, and why."""
    by_name = {row["round"]: row for row in rounds}
    parents = {row.get("parent") for row in rounds if not row.get("student")}
    return [
        f"after {row['round']}: {_verdict(row, by_name.get(str(row.get('parent'))), metric, floor)}"
        for row in rounds
        if row["round"] not in parents and not row.get("student")
    ]


def _verdict(
    row: Mapping[str, Any], parent: Mapping[str, Any] | None, metric: str, floor: float
) -> str:
    distances = {int(k): float(v) for k, v in row[metric].items()}
    most = max(distances)
    if parent is not None and str(most) in parent[metric]:
        before, spread = float(parent[metric][str(most)]), float(row.get("spread", 0.0))
        if distances[most] > before + 2 * spread + 0.1 * floor:
            return (
                f"stop; at NFE {most} the distance rose from {before:.3g} to {distances[most]:.3g}:"
                " the rounds drift from the data (more pairs, or inverted real pairs in the mix)"
            )
    rel = float(row["straightness_rel"])
    if rel < STRAIGHT:
        return (
            f"stop; the paths are straight (relative straightness {rel:.2g} < {STRAIGHT:g});"
            " what is left at NFE 1 is training error: train longer, or a one-step student"
        )
    return (
        f"another round pays; the paths still bend (relative straightness {rel:.2g}), and NFE 1"
        f" scores {distances[min(distances)]:.3g} where NFE {most} scores {distances[most]:.3g}"
    )
