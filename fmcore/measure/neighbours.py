"""What a Frechet distance does not measure: kernel distance, and neighbours in feature space.

A few distinct samples, repeated often, have a good Frechet distance and a poor coverage: this
reveals a flow that remembers its pairs.
"""

import math

import torch
from torch import Tensor

NEAREST = 5
"""The k of precision, recall, density and coverage."""


BLOCK = 128
"""Rows that are compared at once with all others: memory does not grow with their square."""


def _far(a: Tensor, b: Tensor) -> Tensor:
    far: Tensor = torch.cdist(a.double(), b.double())
    return far


def _squares(a: Tensor, b: Tensor) -> Tensor:
    """Return |a_i - b_j|^2 [N, M] of a [N, d], b [M, d] in float64: one product, as cdist's.

    Of equal rows it may be a little below 0.
    """
    a, b = a.double(), b.double()
    ones = b.new_ones(max(len(a), len(b)), 1)
    left = torch.cat([-2 * a, a.square().sum(1, keepdim=True), ones[: len(a)]], 1)
    right = torch.cat([b, ones[: len(b)], b.square().sum(1, keepdim=True)], 1)
    return left @ right.T


def kernel_distance(fake: Tensor, real: Tensor, *, own: float | None = None) -> float:
    """Return the squared maximum mean discrepancy of features [N, d], [M, d].

    The kernel is (a.b / d + 1)^3 (Binkowski et al. 2018), the estimate unbiased: 0 on average for
    equal laws. Features are divided by the root mean square of the real ones around their mean:
    otherwise the cube of unbounded features has no meaning. `own` is `kernel_within(real)`, if it
    is known.
    """
    scale = _spread(real)
    return cubic_mmd(fake.double() / scale, real.double() / scale, own=own)


def kernel_within(real: Tensor) -> float:
    """Return the mean kernel of two of the real features [M, d], which `kernel_distance` takes."""
    return _within(real.double() / _spread(real))


def _spread(real: Tensor) -> Tensor:
    """Return the root mean square [] of features around their mean; 1 where they are all equal."""
    y = real.double()
    found = (y - y.mean(0)).square().mean().sqrt()
    return found.where(found > 1e-12 * y.abs().max(), 1.0)


def cubic_mmd(x: Tensor, y: Tensor, *, own: float | None = None) -> float:
    """Return the unbiased squared MMD of x [N, d], y [M, d] for the kernel `cubic`.

    `own` is the mean kernel of two of y, if it is known.
    """
    between = _total(x, y) / (len(x) * len(y))
    return _within(x) + (_within(y) if own is None else own) - 2 * between


def _within(x: Tensor) -> float:
    """Return the mean kernel of two different rows of x [N, d]."""
    same = float((x.square().mean(1) + 1).pow(3).sum())
    return (_total_within(x) - same) / (len(x) * (len(x) - 1))


def _total(a: Tensor, b: Tensor) -> float:
    return float(sum(cubic(part, b).sum() for part in a.split(BLOCK)))


def _total_within(x: Tensor) -> float:
    """Return the sum of the kernel over all pairs of rows of x [N, d], which is symmetric."""
    parts, found = x.split(BLOCK), 0.0
    for i, part in enumerate(parts):
        found += float(cubic(part, part).sum()) + 2 * _total(part, x[(i + 1) * BLOCK :])
    return found


def cubic(a: Tensor, b: Tensor) -> Tensor:
    """Return the kernel (a.b / d + 1)^3 [N, M] of a [N, d], b [M, d]."""
    return torch.addmm(a.new_ones(1), a, b.T, alpha=1 / a.shape[1]).pow_(3)


def balls(x: Tensor, k: int) -> Tensor:
    """Return the squared distance [N] of each of the features x [N, d] to its k-th neighbour."""
    whole = x.double()
    near = [
        _squares(part, whole).topk(k + 1, largest=False).values[:, k] for part in whole.split(BLOCK)
    ]
    return torch.cat(near).clamp(min=0)  # the first neighbour is itself


def manifold_scores(
    fake: Tensor, real: Tensor, *, k: int = NEAREST, real_balls: Tensor | None = None
) -> dict[str, float]:
    """Return precision, recall, density and coverage of features [N, d] against [M, d].

    Precision and recall: the share of fake (real) within the k-th neighbour's distance of some real
    (fake) sample (Kynkaanniemi et al. 2019). Density counts such balls, divided by k; coverage is
    the share of real samples whose ball holds a fake one (Naeem et al. 2020). `real_balls` [M] is
    `balls(real, k)`, if it is known.
    """
    k = min(k, len(real) - 1, len(fake) - 1)
    real_balls = balls(real, k) if real_balls is None else real_balls
    inside = torch.zeros(len(fake), dtype=torch.int64)
    recalled = torch.zeros(len(real), dtype=torch.bool)
    closest = torch.full((len(real),), math.inf, dtype=torch.float64)
    whole = real.double()
    parts = zip(
        fake.split(BLOCK), balls(fake, k).split(BLOCK), inside.split(BLOCK), strict=True
    )  # the parts of `inside` are views
    for rows, own_balls, counted in parts:
        far = _squares(rows, whole)
        counted[:] = (far <= real_balls).sum(1)
        recalled |= (far <= own_balls[:, None]).any(0)
        closest = torch.minimum(closest, far.amin(0))
    return {
        "precision": float((inside > 0).double().mean()),
        "recall": float(recalled.double().mean()),
        "density": float(inside.double().mean() / k),
        "coverage": float((closest <= real_balls).double().mean()),
    }


def recall_error(fake: Tensor, real: Tensor, *, k: int, splits: int = 24, seed: int) -> float:
    """Return the standard error of the recall over another draw of the generated samples [N, d].

    Balls depend on all samples together, so that a jackknife is off (1.2 to 1.8 times the truth).
    The difference of two random halves gives the variance at N / 2, that of quarters the one at
    N / 4; their ratio, held between 1/2 (samples count alone) and 1, carries the former to N
    (subsampling, Politis et al. 1999, with the rate estimated).
    """
    generator = torch.Generator().manual_seed(seed)
    between, within = torch.cdist(fake, real), torch.cdist(fake, fake)

    def recall(rows: Tensor) -> float:
        near = min(k, len(rows) - 1)
        ball = within[rows][:, rows].kthvalue(near + 1, dim=1).values
        return float((between[rows] <= ball[:, None]).any(0).double().mean())

    def variance(parts: tuple[Tensor, ...]) -> float:
        return float(torch.tensor([recall(rows) for rows in parts]).double().var())

    orders = [torch.randperm(len(fake), generator=generator) for _ in range(splits)]
    half = sum(variance(order.chunk(2)) for order in orders) / splits
    quarter = sum(variance(order.chunk(4)) for order in orders) / splits
    falls = min(max(half / quarter, 0.5), 1.0) if quarter else 1.0
    return math.sqrt(half * falls)


def nearest(fake: Tensor, train: Tensor, *, block: int = 512) -> Tensor:
    """Return the distances [N] of features [N, d] to the nearest of the training data [M, d].

    Well below those of real samples that did not train, the flow repeats its training data. The
    `block` of training data with the nearest one is found in float32, the distance in float64.
    Features in which the training data do not differ (dead units) do not decide which is nearest.
    """
    blocks, differ = train.split(block), (train != train[0]).any(0)
    used = train[:, differ]
    centre = used.mean(0)
    x = fake[:, differ] - centre
    least = x.new_empty(len(blocks), len(x))
    for i, some in enumerate(used.split(block)):  # small tensors kept apart would split freed ones
        least[i] = _least(x, some - centre)
    which = least.argmin(0)
    found = torch.empty(len(fake), dtype=torch.float64)
    for i, some in enumerate(blocks):
        rows = (which == i).nonzero().flatten()
        for part in rows.split(BLOCK):
            found[part] = _far(fake[part], some).amin(1)
    return found


def _least(a: Tensor, b: Tensor) -> Tensor:
    """Return min over j of |a_i - b_j|^2 - |a_i|^2 for a [N, d], b [M, d]: products, no root.

    What is in memory at once fits into a core's cache.
    """
    own = b.square().sum(1)
    return torch.cat([torch.addmm(own, rows, b.T, alpha=-2).amin(1) for rows in a.split(BLOCK)])


def mode_scores(x: Tensor, modes: Tensor, std: float) -> dict[str, float]:
    """Return how well points [N, d] fit equally weighted Gaussian modes [K, d].

    `mode_share` is the share within three standard deviations of a mode, `mode_weights_tv` the
    total variation distance of the shares of the modes from 1/K.
    """
    far, nearest = _far(x.flatten(1), modes).min(1)
    shares = torch.bincount(nearest, minlength=len(modes)).double() / len(x)
    return {
        "mode_share": float((far <= 3 * std).double().mean()),
        "mode_weights_tv": float((shares - 1 / len(modes)).abs().sum() / 2),
    }
