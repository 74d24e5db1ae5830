"""Frechet distance of two Gaussians fitted to features, in float64 throughout."""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from fmcore.settings import ReflowError

ROWS = 4096
"""Features whose statistics are summed at once. It is no setting: it changes the last bits."""


@dataclass(frozen=True)
class GaussianStats:
    """Count, mean [d] and centred second moment m2 [d, d] (a sum) of features, float64."""

    n: int
    mean: Tensor
    m2: Tensor

    @classmethod
    def from_features(cls, features: Tensor, rows: Tensor | None = None) -> "GaussianStats":
        """Compute the statistics of features [N, d], or of some rows [M] of them, in their order.

        `ROWS` of them are in float64 at once.
        """
        found: GaussianStats | None = None
        parts = features.split(ROWS) if rows is None else (features[r] for r in rows.split(ROWS))
        for part in parts:
            own = cls._of(part)
            found = own if found is None else found.merge(own)
        if found is None or not bool(found.mean.isfinite().all()):  # one that is not spoils it
            taken = features if rows is None else features[rows]
            bad = int((~taken.isfinite()).any(1).sum())
            raise ReflowError(
                f"{bad} of {len(features if rows is None else rows)} samples are not finite: the"
                " velocity diverges; train it again with a lower lr, or use more NFE"
            )
        return found

    @classmethod
    def _of(cls, features: Tensor) -> "GaussianStats":
        x = features.double()
        mean = x.mean(0)
        centred = x.sub_(mean) if x is not features else x - mean
        return cls(len(x), mean, centred.T @ centred)

    @classmethod
    def of(cls, mean: Tensor, covariance: Tensor) -> "GaussianStats":
        """Return known statistics: mean [d], covariance [d, d] of a number that is not known."""
        return cls(2, mean, covariance)  # the covariance is m2 / (n - 1)

    def merge(self, other: "GaussianStats") -> "GaussianStats":
        """Return the statistics of both sets together (Chan et al. 1983)."""
        n = self.n + other.n
        delta = other.mean - self.mean
        m2 = self.m2 + other.m2 + torch.outer(delta, delta) * (self.n * other.n / n)
        return GaussianStats(n, self.mean + delta * (other.n / n), m2)

    @property
    def covariance(self) -> Tensor:
        """Return the unbiased covariance [d, d]."""
        return self.m2 / (self.n - 1)

    @cached_property
    def root(self) -> Tensor:
        """Return the symmetric square root of the covariance [d, d]."""
        values, vectors = torch.linalg.eigh(self.covariance)
        root: Tensor = (vectors * values.clamp(min=0).sqrt()) @ vectors.T
        return root


def frechet_distance(a: GaussianStats, b: GaussianStats) -> float:
    """Return |m1 - m2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2)) (Dowson and Landau 1982).

    The trace of the root is taken from the eigenvalues of R S1 R with R = S2^(1/2): symmetric,
    hence real, and correct also with fewer samples than dimensions. `b` is the reference, whose
    root is cached.
    """
    cross = torch.linalg.eigvalsh(b.root @ a.covariance @ b.root).clamp(min=0).sqrt().sum()
    traces = a.covariance.trace() + b.covariance.trace()
    return float(((a.mean - b.mean).square().sum() + traces - 2 * cross).clamp(min=0))


def frechet_error(features: Tensor, reference: GaussianStats) -> float:
    """Return the standard error of `frechet_distance` for generated features [N, d].

    The delta method: each sample x moves the distance by 2 (m1 - m2).u + u'(I - T)u with u = x - m1
    and T = S2^(1/2) (S2^(1/2) S1 S2^(1/2))^(-1/2) S2^(1/2), the optimal map from S1 to S2; the
    error is the standard deviation of that over the samples, over the root of N. The reference is
    taken as it is. Needs N well above d; the bias of a small N is not in it.
    """
    x = features.double()
    stats, root = GaussianStats.from_features(features), reference.root
    values, vectors = torch.linalg.eigh(root @ stats.covariance @ root)
    inverse = torch.where(values > values.max() * 1e-12, values.clamp(min=0).rsqrt(), 0.0)
    sides = root @ (vectors * inverse.sqrt())
    u = x - stats.mean
    moved = (
        2 * (u @ (stats.mean - reference.mean)) + u.square().sum(1) - (u @ sides).square().sum(1)
    )
    return float(moved.std() / len(x) ** 0.5)


def frechet_infinity(
    features: Tensor, reference: GaussianStats, *, seed: int = 0, sizes: int = 15
) -> float:
    """Return the distance of features [N, d] extrapolated to infinitely many samples.

    The bias of a Frechet distance is linear in 1/N: a line is fitted to the distances of 15 random
    subsets of N/10 to N samples (Chong and Forsyth 2020), of N/2 or 2 d at least where N/10 is less
    than 2 d: below that the bias is not linear. The reference stays finite, and its bias stays in
    the result: it is above 0 for a perfect generator.
    """
    n, d = features.shape
    least = max(2, n // 10, min(n // 2, 2 * d))
    counts = torch.linspace(least, n, sizes).long().unique()
    if len(counts) < 2:
        return frechet_distance(GaussianStats.from_features(features), reference)
    generator = torch.Generator().manual_seed(seed)
    distances = []
    for count in counts.tolist():
        rows = torch.randperm(n, generator=generator)[:count]
        distances.append(frechet_distance(GaussianStats.from_features(features, rows), reference))
    x, y = 1 / counts.double(), torch.tensor(distances, dtype=torch.float64)
    slope = ((x - x.mean()) * (y - y.mean())).sum() / (x - x.mean()).square().sum()
    return float(y.mean() - slope * x.mean())
