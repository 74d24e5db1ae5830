"""Which round to ship for which NFE, and whether another round pays."""

from collections.abc import Sequence

from fmcore.verdict.comparison import Choice, RoundResult, nearest
from fmcore.verdict.errors import paired

STRAIGHT = 0.01
"""Below this relative straightness one Euler step is the flow: another round gains nothing."""

Rounds = Sequence[RoundResult]


def ship(rounds: Rounds) -> dict[str, Choice]:
    """Return the round to ship: one_step (NFE 1), few_step (nearest to NFE 4), best (any NFE).

    The rule is the least distance; where two rounds tie, the earlier one.

    >>> rf1 = RoundResult("rf1", "independent", None, False, {1: 9.0, 4: 1.0}, {})
    >>> rf2 = RoundResult("rf2", "rf1", "rf1", False, {1: 2.0, 4: 1.5}, {})
    >>> {use: choice.round for use, choice in ship([rf1, rf2]).items()}
    {'one_step': 'rf2', 'few_step': 'rf1', 'best': 'rf1'}
    """
    every = [Choice(r.name, nfe, d, r.error(nfe)) for r in rounds for nfe, d in r.distances.items()]
    if not every:
        return {}
    found = {}
    for use, nfe in (("one_step", 1), ("few_step", nearest(c.nfe for c in every)), ("best", None)):
        allowed = [c for c in every if nfe is None or c.nfe == nfe]
        if allowed:
            found[use] = min(allowed, key=lambda c: c.distance)
    return found


def next_round(rounds: Rounds, floor: float) -> list[str]:
    """Say for every last round of a branch whether another rectification pays, and why."""
    by_name = {r.name: r for r in rounds}
    parents = {r.parent for r in rounds if not r.student}
    return [
        f"after {r.name}: {_verdict(r, by_name.get(str(r.parent)), floor)}"
        for r in rounds
        if r.name not in parents and not r.student
    ]


def _verdict(own: RoundResult, parent: RoundResult | None, floor: float) -> str:
    most, distances = own.most, own.distances
    before = parent.at(most) if parent else None
    worse = paired(own.cuts[most], parent.cuts[most]) if parent and before is not None else None
    if before is not None and worse is not None and worse.seen:
        return (
            f"stop; at NFE {most} the distance rose from {before:.3g} to {distances[most]:.3g}:"
            " the rounds drift from the data (more pairs, or inverted real pairs in the mix)"
        )
    rel = own.metrics["straightness_rel"]
    if rel < STRAIGHT:
        return (
            f"stop; the paths are straight (relative straightness {rel:.2g} < {STRAIGHT:g});"
            " what is left at NFE 1 is training error: train longer, or a one-step student"
        )
    return (
        f"another round pays; the paths still bend (relative straightness {rel:.2g}), and NFE 1"
        f" scores {distances[min(distances)]:.3g} where NFE {most} scores {distances[most]:.3g}"
    )
