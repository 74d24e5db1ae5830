"""What a Frechet distance does not measure: kernel distance, and neighbours in feature space.

A few distinct samples, repeated often, have a good Frechet distance and a poor coverage: this
reveals a flow that remembers its pairs.
"""

import math

import torch
from torch import Tensor

NEAREST = 5
"""The k of precision, recall, density and coverage."""


def _far(a: Tensor, b: Tensor) -> Tensor:
    far: Tensor = torch.cdist(a.double(), b.double())
    return far


def kernel_distance(fake: Tensor, real: Tensor) -> float:
    """Return the squared maximum mean discrepancy of features [N, d], [M, d].

    The kernel is (a.b / d + 1)^3 (Binkowski et al. 2018), the estimate unbiased: 0 on average for
    equal laws. Features are divided by the root mean square of the real ones around their mean:
    otherwise the cube of unbounded features has no meaning.
    """
    x, y = fake.double(), real.double()
    y_mean = y.mean(0)
    scale = (y - y_mean).square().mean().sqrt().clamp(min=1e-12)
    return cubic_mmd(x / scale, y / scale)


def cubic_mmd(x: Tensor, y: Tensor) -> float:
    """Return the unbiased squared MMD of x [N, d], y [M, d] for the kernel `cubic`."""

    def within(a: Tensor) -> Tensor:
        k = cubic(a, a)
        return (k.sum() - k.diagonal().sum()) / (len(a) * (len(a) - 1))

    return float(within(x) + within(y) - 2 * cubic(x, y).mean())


def cubic(a: Tensor, b: Tensor) -> Tensor:
    """Return the kernel (a.b / d + 1)^3 [N, M] of a [N, d], b [M, d]."""
    return ((a @ b.T) / a.shape[1] + 1).pow(3)


def manifold_scores(fake: Tensor, real: Tensor, *, k: int = NEAREST) -> dict[str, float]:
    """Return precision, recall, density and coverage of features [N, d] against [M, d].

    Precision and recall: the share of fake (real) within the k-th neighbour's distance of some real
    (fake) sample (Kynkaanniemi et al. 2019). Density counts such balls, divided by k; coverage is
    the share of real samples whose ball holds a fake one (Naeem et al. 2020).
    """
    k = min(k, len(real) - 1, len(fake) - 1)
    between = _far(fake, real)
    real_ball = _far(real, real).kthvalue(k + 1, dim=1).values  # the first neighbour is itself
    fake_ball = _far(fake, fake).kthvalue(k + 1, dim=1).values
    inside = between <= real_ball
    return {
        "precision": float(inside.any(1).double().mean()),
        "recall": float((between <= fake_ball[:, None]).any(0).double().mean()),
        "density": float(inside.sum(1).double().mean() / k),
        "coverage": float((between.min(0).values <= real_ball).double().mean()),
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


def nearest(fake: Tensor, train: Tensor, *, rows: int = 256) -> Tensor:
    """Return the distances [N] of features [N, d] to the nearest of the training data [M, d].

    Well below those of real samples that did not train, the flow repeats its training data.
    """
    return torch.cat([_far(part, train).min(1).values for part in fake.split(rows)])


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
