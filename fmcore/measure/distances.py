"""The distances of one group of samples to the real data of one cut."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from fmcore.measure.frechet import ROWS, GaussianStats, frechet_distance, frechet_infinity
from fmcore.measure.neighbours import (
    NEAREST,
    balls,
    kernel_distance,
    kernel_within,
    manifold_scores,
)
from fmcore.measure.transport import energy_distance, mean_within, sliced_w2, w2

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

    def parts(self, rows: Tensor) -> Iterator["Group"]:
        """Yield the groups of some rows, `ROWS` at a time."""
        return (self.rows(some) for some in rows.split(ROWS))


@dataclass(frozen=True)
class Summary:
    """What is kept of many samples, generated or real: it does not grow with their number.

    Statistics of their features, of all and by class; `features` [M, d] of the first `NEIGHBOURS`,
    `points` [P, k] as many as a distance needs.
    """

    stats: GaussianStats
    features: Tensor
    points: Tensor | None
    classes: dict[int, GaussianStats]

    @classmethod
    def of(
        cls,
        groups: Iterable[Group],
        points: int,
        classes: Iterable[int] = (),
        *,
        limit: int | None = None,
    ) -> "Summary":
        """Return the summary of groups that follow one another.

        Statistics of `classes` are of the first `limit` samples of each, of all for None; a class
        with a single sample has none.
        """
        stats: GaussianStats | None = None
        first, plane = _First(NEIGHBOURS), _First(max(points, PAIRS))
        by_class: dict[int, GaussianStats] = {}
        wanted = list(classes)
        for group in groups:
            stats = _added(stats, group.features)
            first.add(group.features)
            if group.points is not None:
                plane.add(group.points)
            for key in wanted if group.label is not None else ():
                before = by_class.get(key)
                left = None if limit is None else limit - (before.n if before else 0)
                own = group.features[group.label == key][:left]
                if len(own):
                    by_class[key] = _added(before, own)
        if stats is None:
            raise ValueError("no samples to measure")
        enough = {key: found for key, found in by_class.items() if found.n > 1}
        return cls(stats, first.rows(), plane.rows() if plane.found else None, enough)

    @cached_property
    def balls(self) -> Tensor:
        """Return the squared distance of each of `features` to its k-th neighbour among them."""
        return balls(self.features, min(NEAREST, len(self.features) - 1))

    @cached_property
    def kernel(self) -> float:
        """Return the mean kernel of two of `features`."""
        return kernel_within(self.features)

    @cached_property
    def spread(self) -> float:
        """Return the mean distance of two of the first `PAIRS` points."""
        assert self.points is not None
        return mean_within(self.points[:PAIRS])


class _First:
    """The first rows of tensors [N, d] that follow one another, at most `count`."""

    def __init__(self, count: int) -> None:
        self.left, self.found = count, list[Tensor]()

    def add(self, x: Tensor) -> None:
        if self.left > 0:
            self.found.append(x[: self.left].clone())  # not a view: it would hold all of x
            self.left -= len(self.found[-1])

    def rows(self) -> Tensor:
        return torch.cat(self.found)


def _added(stats: GaussianStats | None, features: Tensor) -> GaussianStats:
    own = GaussianStats.from_features(features)
    return own if stats is None else stats.merge(own)


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

    def cheap(self, fake: Summary, real: Summary) -> dict[str, float]:
        """Return the Frechet distance, and the energy distance of points."""
        found = {self.frechet: frechet_distance(fake.stats, real.stats)}
        if fake.points is not None and real.points is not None:
            a, b = fake.points[:PAIRS], real.points[:PAIRS]
            found["energy"] = energy_distance(a, b, own=real.spread)
        return found

    def dear(self, fake: Summary, real: Summary) -> dict[str, float]:
        """Return what compares all pairs of samples: by kernel, by neighbours, W2 of points.

        The names of W2 say of how many points: its bias depends on their number.
        """
        same = len(fake.features) == len(real.features)  # then they have the same k
        known = real.balls if same else None
        found = {
            self.kernel: kernel_distance(fake.features, real.features, own=real.kernel),
            **manifold_scores(fake.features, real.features, real_balls=known),
        }
        if fake.points is not None and real.points is not None:
            a, b = fake.points[: self.points], real.points[: self.points]
            found[f"w2_n{self.points}"] = w2(a, b)
            found[f"sliced_w2_n{self.points}"] = sliced_w2(a, b, seed=0)
        return found

    def classes(self, fake: Summary, real: Summary) -> dict[str, float]:
        """Return the Frechet distance of each class to that of the real data."""
        return {
            f"{self.frechet}_class_{key}": frechet_distance(fake.classes[key], stats)
            for key, stats in real.classes.items()
            if key in fake.classes
        }

    def infinity(self, features: Tensor, real: Summary, *, seed: int) -> dict[str, float]:
        """Return the Frechet distance at infinitely many samples; the reference stays finite.

        It takes random subsets of features [N, d], so that all of them are needed.
        """
        return {f"{self.frechet}_inf": frechet_infinity(features, real.stats, seed=seed)}


def disjoint(count: int, n: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return the rows of two disjoint random halves of `n` out of `count`."""
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    return order[:n], order[n : 2 * n]
