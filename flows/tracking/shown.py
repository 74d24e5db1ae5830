"""The numbers that MLflow shows as metrics: curves, and a dozen to sort by. Pure, without MLflow.

Its pages draw one chart for each metric, in groups by what stands before the slash, in alphabetical
order: `distance/` comes first. The other numbers of a round are in its artifacts, `receipts/`.
"""

from collections.abc import Iterable, Mapping

from fmcore.verdict import keys
from fmcore.verdict.comparison import Comparison, RoundResult

Point = tuple[str, float, int]
"""A point of a metric: its name, its value, its step."""

DISTANCE, FLOOR, GAP, SCORE = "distance/", "distance/floor", "over_t/gap", "score/"
OLD_GAP = "gap_over_t"
"""The name of `GAP` in records of earlier versions."""

SCORES = ("straightness_rel", "transport_cost", "held_out_ratio")
"""Metrics without an NFE that rounds are sorted by."""


def trained(rows: Iterable[Mapping[str, float]]) -> list[Point]:
    """Return the curve of a training; the step is the training's.

    >>> trained([{"step": 50.0, "loss": 2.0}])
    [('train/loss', 2.0, 50)]
    """
    return [
        (f"train/{name}", value, int(row["step"]))
        for row in rows
        for name, value in row.items()
        if name != "step"
    ]


def measured(values: Mapping[str, float], gaps: Iterable[Mapping[str, float]]) -> list[Point]:
    """Return the curves of an evaluation: every measure over NFE, the gap over t in thousandths.

    Errors, and measures of other weights than the average, are left to the receipt.

    >>> measured({"fd/nfe_1": 9.0, "fd_se/nfe_1": 0.1, "fd_raw/nfe_1": 8.0, "fd/floor": 1.0}, [])
    [('measures/fd', 9.0, 1)]
    """
    base = {name for name, _, _ in keys.measured(values)}
    shown = {name for name in base if not any(_derived(name, other) for other in base - {name})}
    points = [(f"measures/{m}", v, nfe) for m, nfe, v in keys.measured(values) if m in shown]
    return points + [(GAP, row["gap"], round(1000 * row["t"])) for row in gaps]


def _derived(name: str, other: str) -> bool:
    """Say whether a measure is another one's error, or that of other weights."""
    rest = name.removeprefix(f"{other}_")
    return rest != name and rest != "inf"


def scored(found: Comparison, own: RoundResult) -> list[Point]:
    """Return the curve of a round's distance over NFE, the floor beside it, and its scores."""
    over = [(f"{DISTANCE}{found.metric}", float(v), nfe) for nfe, v in own.distances.items()]
    floor = [(FLOOR, float(found.floor), nfe) for nfe in own.distances]
    return [*over, *floor, *((f"{SCORE}{k}", v, 0) for k, v in scores(own).items())]


def scores(own: RoundResult) -> dict[str, float]:
    """Return the numbers that rounds are sorted by, each with its error as `<name>_se`."""
    least = min(own.distances, key=lambda nfe: own.distances[nfe])
    found: dict[str, float | None] = {"best_nfe": float(least)}
    for name, nfe in (("nfe_1", 1), ("best", least)):
        found |= {name: own.at(nfe), f"{name}_se": own.error(nfe)}
    for name in SCORES:
        error = keys.error(name)
        found |= {name: own.metrics.get(name), error: own.metrics.get(error)}
    return {name: float(value) for name, value in found.items() if value is not None}


def over_rounds(values: Mapping[str, float], index: int) -> list[Point]:
    """Return numbers of a round for the run of its chain; the step is the number of the round.

    >>> over_rounds({"best": 2.0}, 1)
    [('round/best', 2.0, 1)]
    """
    return [(f"round/{name}", value, index) for name, value in values.items()]


def compared(found: Comparison) -> list[Point]:
    """Return the curves of a chain: every round's distance over NFE, the floor; and its scores."""
    points = [
        (f"{DISTANCE}{r.name}", float(value), nfe)
        for r in found.rounds
        if not r.replicate
        for nfe, value in r.distances.items()
    ]
    points += [(FLOOR, float(found.floor), nfe) for nfe in found.nfes]
    score: dict[str, float | None] = {"floor": found.floor, "floor_se": found.floor_se}
    for use, choice in found.ship.items():
        name = "nfe_1" if use == "one_step" else use
        score |= {name: choice.distance, f"{name}_se": choice.se}
        if use != "one_step":
            score[f"{name}_nfe"] = choice.nfe
    points += [(f"{SCORE}{name}", float(v), 0) for name, v in score.items() if v is not None]
    return points + [point for over in found.replicates for point in over.points(found.metric)]
