"""The floor: what real data scores against other real data, over many cuts."""

from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from fmcore.dataset.densities import EightGaussians
from fmcore.measure.distances import WIDE, Group, Measures, Summary
from fmcore.measure.neighbours import mode_scores, nearest
from fmcore.verdict import keys

DEAR = 8
"""Cuts of the floor for what is dear: all that compares each sample with each, wide features."""

RARE = 0.25
"""Share of the mean size of a class below which one is too rare to be compared."""
MEMORY = 2**30
"""Bytes, at most, of the second moments of all classes: one matrix each, in every cut."""


def has_modes(about: dict[str, Any]) -> bool:
    """Return whether the data's law has modes that are known."""
    return bool((about.get("data") or {}).get("name") == "eight_gaussians")


def modes(about: dict[str, Any], x: Tensor) -> dict[str, float]:
    """Return how samples x fit the modes of the data's law; empty for other data."""
    if not has_modes(about):
        return {}
    law = EightGaussians.model_validate(about["data"])
    return mode_scores(x, law.modes(), law.std)


def shared(
    label: Tensor | None, halves: Iterable[tuple[Tensor, Tensor]], most: int
) -> tuple[list[int], int]:
    """Return the classes that are compared, at most `most`, and how many samples of each.

    All are compared by as many as the rarest has, so those with less than `RARE` of the mean, in
    the half where they have fewest, are left out; of more than `most` the largest stay.
    """
    if label is None:
        return [], 0
    counts = [
        torch.bincount(label[side], minlength=int(label.max()) + 1)
        for cut in halves
        for side in cut
    ]
    least = torch.stack(counts).min(0).values
    there = least > 1
    enough = there & (least >= RARE * least[there].double().mean())
    largest = least.where(enough, 0).sort(descending=True, stable=True).indices
    keys = sorted(k for k in largest[:most].tolist() if enough[k])
    return keys, min((int(least[k]) for k in keys), default=0)


def most_classes(width: int, cuts: int) -> int:
    """Return how many classes have a place in `MEMORY` at features of some width."""
    return MEMORY // (8 * width**2 * (1 if width > WIDE else cuts))


def nearest_floor(train: Tensor, unseen: Tensor) -> dict[str, float]:
    """Return the floor of `nearest_train`: real samples that did not train; empty without any."""
    if not len(train) or len(unseen) < 2:
        return {}
    far = nearest(unseen, train)
    found = {"nearest_train": float(far.mean())}
    return {**found, keys.error("nearest_train"): float(far.std()) / len(far) ** 0.5}


def floor_of(
    whole: Group,
    halves: Iterable[tuple[Tensor, Tensor]],
    measures: Measures,
    classes: Sequence[int],
    about: dict[str, Any],
) -> list[dict[str, float]]:
    """Measure one half of each cut against the other; what is dear on the first cuts alone."""
    wide, found = whole.features.shape[1] > WIDE, []
    for i, (reference, other) in enumerate(islice(halves, DEAR if wide else None)):
        by_class = classes if i == 0 or not wide else ()
        real = Summary.of(whole.parts(reference), measures.points, by_class)
        limit = measures.class_n
        fake = Summary.of(whole.parts(other), measures.points, by_class, limit=limit)
        values = measures.cheap(fake, real)
        if has_modes(about) and whole.points is not None:
            values |= modes(about, whole.points[other])
        if i == 0:
            values |= measures.infinity(whole.features[other], real, seed=i)
        if i < DEAR:
            values |= measures.dear(fake, real)
        found.append({**values, **measures.classes(fake, real)})
    return found
