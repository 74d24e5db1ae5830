"""The distances of one group of samples to the real data of one cut."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from fmcore.measure.frechet import GaussianStats, frechet_distance, frechet_infinity
from fmcore.measure.neighbours import kernel_distance, manifold_scores
from fmcore.measure.transport import energy_distance, sliced_w2, w2

NEIGHBOURS = 1000
"""Samples on each side for the kernel distance, precision, recall, density and coverage."""
PAIRS = 2000
"""Points on each side for the energy distance."""
WIDE = 512
"""Features wider than this make a Frechet distance dear: its cost grows with their cube."""


@dataclass(frozen=True)
class Group:
    """Samples to compare: features [n, d]; the samples [n, k] where they are points; labels [n]."""

    features: Tensor
    points: Tensor | None = None
    label: Tensor | None = None

    def rows(self, rows: Tensor) -> "Group":
        """Return the group of some rows."""
        return Group(
            self.features[rows],
            None if self.points is None else self.points[rows],
            None if self.label is None else self.label[rows],
        )


@dataclass(frozen=True)
class Reference:
    """The real data of one cut: statistics of its features, some of them, its points, classes.

    `features` [M, d] are the first `NEIGHBOURS`, `points` [P, k] as many as a distance needs.
    """

    stats: GaussianStats
    features: Tensor
    points: Tensor | None
    classes: dict[int, GaussianStats]

    @classmethod
    def of(cls, real: Group, points: int, classes: Iterable[int] = ()) -> "Reference":
        """Return the reference that a group of real samples is, with statistics of `classes`."""
        own = real.label
        return cls(
            GaussianStats.from_features(real.features),
            real.features[:NEIGHBOURS].clone(),
            None if real.points is None else real.points[: max(points, PAIRS)].clone(),
            {k: GaussianStats.from_features(real.features[own == k]) for k in classes}
            if own is not None
            else {},
        )


@dataclass(frozen=True)
class Measures:
    """What is measured, and under which names.

    `frechet` names the Frechet distance, `kernel` the kernel distance, `points` is the number on
    each side of W2, `class_n` the number of samples that is compared of each class.
    """

    frechet: str
    kernel: str
    points: int
    class_n: int = 0

    def cheap(self, fake: Group, real: Reference) -> dict[str, float]:
        """Return the Frechet distance, and the energy distance of points."""
        stats = GaussianStats.from_features(fake.features)
        found = {self.frechet: frechet_distance(stats, real.stats)}
        if fake.points is not None and real.points is not None:
            found["energy"] = energy_distance(fake.points[:PAIRS], real.points[:PAIRS])
        return found

    def dear(self, fake: Group, real: Reference) -> dict[str, float]:
        """Return what compares all pairs of samples: by kernel, by neighbours, W2 of points.

        The names of W2 say of how many points: its bias depends on their number.
        """
        some = fake.features[:NEIGHBOURS]
        found = {
            self.kernel: kernel_distance(some, real.features),
            **manifold_scores(some, real.features),
        }
        if fake.points is not None and real.points is not None:
            a, b = fake.points[: self.points], real.points[: self.points]
            found[f"w2_n{self.points}"] = w2(a, b)
            found[f"sliced_w2_n{self.points}"] = sliced_w2(a, b, seed=0)
        return found

    def classes(self, fake: Group, real: Reference) -> dict[str, float]:
        """Return the Frechet distance of each class to that of the real data."""
        found: dict[str, float] = {}
        for key, stats in real.classes.items() if fake.label is not None else ():
            own = fake.features[fake.label == key][: self.class_n]
            if len(own) > 1:
                distance = frechet_distance(GaussianStats.from_features(own), stats)
                found[f"{self.frechet}_class_{key}"] = distance
        return found

    def infinity(self, fake: Group, real: Reference, *, seed: int) -> dict[str, float]:
        """Return the Frechet distance at infinitely many samples; the reference stays finite."""
        return {f"{self.frechet}_inf": frechet_infinity(fake.features, real.stats, seed=seed)}


def disjoint(count: int, n: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return the rows of two disjoint random halves of `n` out of `count`."""
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    return order[:n], order[n : 2 * n]
