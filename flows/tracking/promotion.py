"""The rule by which a registered model takes an alias from another; pure, without MLflow.

A model takes an alias if its distance at that use is less than the holder's by more than both their
errors together (root of the sum of squares), and both were measured by one yardstick. Within the
error, or by another yardstick, the holder keeps the alias. Each move lowers the distance by more
than the error, so aliases come to rest, and publishing a chain again moves none.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from fmcore.verdict.comparison import nearest

USES = ("one_step", "few_step", "best")

Distances = Mapping[int, tuple[float, float]]
"""Distance and its error by NFE. The error is the standard error over the yardstick's cuts of
the data; 0 if there is one cut, or where it was not recorded."""


@dataclass(frozen=True)
class Score:
    """The distance of a model at a use, its error, and the NFE that it was measured at."""

    nfe: int
    distance: float
    error: float

    def __str__(self) -> str:
        return f"{self.distance:.4g} ± {self.error:.2g} at NFE {self.nfe}"


def score(use: str, own: Distances, holder: Distances | None = None) -> Score | None:
    """Return the score of a model at a use; None if it was not measured there.

    `one_step` is NFE 1, `best` the NFE with the least distance. `few_step` is the NFE nearest to 4
    among those of the `holder`, so that both are measured at the same.

    >>> score("few_step", {1: (9.0, 0.1), 4: (2.0, 0.1)})
    Score(nfe=4, distance=2.0, error=0.1)
    >>> score("few_step", {1: (9.0, 0.1), 4: (2.0, 0.1)}, {1: (8.0, 0.1), 5: (2.0, 0.1)})
    """
    if not own:
        return None
    if use == "best":
        nfe = min(own, key=lambda n: own[n][0])
    else:
        nfe = 1 if use == "one_step" else nearest(holder or own)
    return Score(nfe, *own[nfe]) if nfe in own else None


def chosen(use: str, holder: str | None, measured: Mapping[str, Distances]) -> str | None:
    """Return which of the models, all measured by one yardstick, has the alias of a use.

    Without a holder it is the one with the least distance, the first of two that are equal. A
    holder that was not measured by this yardstick compares with none, and stays.

    >>> measured = {"1": {1: (3.0, 0.3)}, "2": {1: (2.8, 0.3)}, "3": {1: (2.0, 0.3)}}
    >>> chosen("one_step", "1", measured), chosen("one_step", "2", measured)
    ('3', '3')
    >>> chosen("one_step", "1", {k: measured[k] for k in "12"})
    '1'
    """
    like = measured.get(holder) if holder is not None else None
    if holder is not None and like is None:
        return holder
    found = {name: score(use, own, like) for name, own in measured.items()}
    scores = {name: s for name, s in found.items() if s is not None}
    now = scores.get(holder) if holder is not None else None
    if now is not None:
        scores = {
            name: s
            for name, s in scores.items()
            if s.distance + math.hypot(s.error, now.error) < now.distance
        }
    return min(scores, key=lambda name: scores[name].distance, default=holder)
