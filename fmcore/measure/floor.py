"""The floor: what real data scores against other real data, over many cuts."""

from typing import Any

import torch
from torch import Tensor

from fmcore.dataset.densities import EightGaussians
from fmcore.measure.distances import WIDE, Group, Measures, Reference
from fmcore.measure.neighbours import mode_scores, nearest
from fmcore.verdict import keys

DEAR = 8
"""Cuts of the floor for what is dear: all that compares each sample with each, wide features."""


def modes(about: dict[str, Any], x: Tensor) -> dict[str, float]:
    """Return how samples x fit the modes of the data's law; empty for other data."""
    data = about.get("data") or {}
    if data.get("name") != "eight_gaussians":
        return {}
    law = EightGaussians.model_validate(data)
    return mode_scores(x, law.modes(), law.std)


def shared(label: Tensor | None, halves: list[tuple[Tensor, Tensor]]) -> tuple[list[int], int]:
    """Return the classes that every half has, and how many samples of each are compared."""
    if label is None:
        return [], 0
    counts = [
        torch.bincount(label[side], minlength=int(label.max()) + 1)
        for cut in halves
        for side in cut
    ]
    least = torch.stack(counts).min(0).values
    keys = [k for k, count in enumerate(least.tolist()) if count > 1]
    return keys, min((int(least[k]) for k in keys), default=0)


def nearest_floor(train: Tensor, unseen: Tensor) -> dict[str, float]:
    """Return the floor of `nearest_train`: real samples that did not train; empty without any."""
    if not len(train) or len(unseen) < 2:
        return {}
    far = nearest(unseen, train)
    found = {"nearest_train": float(far.mean())}
    return {**found, keys.error("nearest_train"): float(far.std()) / len(far) ** 0.5}


def floor_of(
    whole: Group,
    halves: list[tuple[Tensor, Tensor]],
    measures: Measures,
    target: Tensor,
    about: dict[str, Any],
) -> list[dict[str, float]]:
    """Measure one half of each cut against the other; what is dear on the first cuts alone."""
    wide, found = whole.features.shape[1] > WIDE, []
    keys = range(int(whole.label.max()) + 1) if whole.label is not None else ()
    for i, (reference, other) in enumerate(halves[:DEAR] if wide else halves):
        side = whole.rows(reference)
        real = Reference.of(side, measures.points)
        fake = whole.rows(other)
        values = {**measures.cheap(fake, real), **modes(about, target[other])}
        if i == 0:
            values |= measures.infinity(fake, real, seed=i)
        if i < DEAR:
            values |= measures.dear(fake, real)
        if whole.label is not None and measures.class_n and (i == 0 or not wide):
            own = whole.label[reference]
            enough = [k for k in keys if int((own == k).sum()) > 1]
            values |= measures.classes(fake, Reference.of(side, measures.points, enough))
        found.append(values)
    return found
