"""Transport cost of a coupling, and distances between two sets of points.

Rectification does not raise the transport cost, for any convex cost (Liu et al. 2022, theorem 3.5).
"""

import math

import torch
from torch import Tensor


def standard_error(values: Tensor) -> float:
    """Return the standard error of the mean of independent values [B]; 0 for one value."""
    return float(values.double().std() / math.sqrt(len(values))) if len(values) > 1 else 0.0


def ratio_with_error(above: Tensor, below: Tensor) -> tuple[float, float]:
    """Return the ratio of two means over the same paths [B] and its standard error (linearised)."""
    mean = max(float(below.mean()), 1e-12)
    ratio = float(above.mean()) / mean
    return ratio, standard_error((above - ratio * below) / mean)


def _lengths(source: Tensor, target: Tensor) -> Tensor:
    gap: Tensor = (source.double() - target.double()).flatten(1)
    lengths: Tensor = torch.linalg.vector_norm(gap, dim=1)
    return lengths


def _distances(a: Tensor, b: Tensor) -> Tensor:
    """Return |a_i - b_j|; cdist's faster form subtracts squares and loses digits."""
    far: Tensor = torch.cdist(a.double(), b.double(), compute_mode="donot_use_mm_for_euclid_dist")
    return far


def _same_size(a: Tensor, b: Tensor) -> None:
    if a.shape != b.shape:  # scipy would assign the smaller set, and broadcasting repeat it
        raise ValueError(f"two sets of one shape needed, got {list(a.shape)} and {list(b.shape)}")


def transport_cost(source: Tensor, target: Tensor) -> float:
    """Return E||target - source||^2 for pairs [B, *D]."""
    return float(_lengths(source, target).square().mean())


def cost_rise(source: Tensor, before: Tensor, after: Tensor) -> tuple[float, float]:
    """Return (after - before) / before of the transport costs of two couplings, and its error.

    Both couple the same sources [B, *D]: to the targets `before` and to the targets `after`. What
    the costs have in common cancels pair by pair, so the error is that of the differences (of a
    ratio of means, to first order).
    """
    old, new = (_lengths(source, target).square() for target in (before, after))
    return ratio_with_error(new - old, old)


def costs_per_pair(source: Tensor, target: Tensor) -> dict[str, Tensor]:
    """Return the cost of each pair [B] for the three convex costs, by the name of the metric."""
    lengths = _lengths(source, target)
    return {
        "transport_cost": lengths.square(),
        "transport_cost_l1": lengths,
        "transport_cost_l4": lengths.pow(4),
    }


def w2(a: Tensor, b: Tensor) -> float:
    """Return the exact Wasserstein-2 distance of two point sets [N, d] of equal size.

    The best assignment by scipy: cubic in N, a fifth of a second for 1,000 points.
    """
    _same_size(a, b)
    from scipy.optimize import linear_sum_assignment  # its import takes a third of a second

    cost = _distances(a, b).square()
    rows, columns = linear_sum_assignment(cost.numpy())
    return float(cost[rows, columns].mean().sqrt())


def sliced_w2(a: Tensor, b: Tensor, *, seed: int, directions: int = 500) -> float:
    """Return W2 averaged (in the square) over random projections; point sets [N, d], equal size."""
    _same_size(a, b)
    generator = torch.Generator().manual_seed(seed)
    theta = torch.randn(a.shape[1], directions, generator=generator, dtype=torch.float64)
    theta = theta / theta.norm(dim=0)
    x, y = (p.double() @ theta for p in (a, b))
    return float((x.sort(dim=0).values - y.sort(dim=0).values).square().mean().sqrt())


ROWS = 256
"""Points whose distances to all others are in memory at once."""


def energy_distance(a: Tensor, b: Tensor, *, own: float | None = None) -> float:
    """Return 2 E|A-B| - E|A-A'| - E|B-B'| as a U-statistic: unbiased, mean 0 for equal laws.

    `own` is `mean_within(b)`, if it is known.
    """
    between = _total(a, b) / (len(a) * len(b))
    return 2 * between - mean_within(a) - (mean_within(b) if own is None else own)


def mean_within(x: Tensor) -> float:
    """Return the mean distance of two different points of x [N, d]."""
    return _total(x, x) / (len(x) * (len(x) - 1))


def _total(a: Tensor, b: Tensor) -> float:
    return float(sum(_distances(part, b).sum() for part in a.split(ROWS)))
