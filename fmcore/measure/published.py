"""Scores as the papers define them: Inception Score, KID, CMMD.

They are compared with published numbers, so they follow the published formulas, splits and scales,
also where a better estimate exists (`neighbours.kernel_distance`).
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from fmcore.measure.neighbours import cubic, cubic_mmd

KID_SUBSETS, KID_SIZE = 100, 1000
"""Number and size of the subsets of the published KID."""

CMMD_SIGMA, CMMD_SCALE = 10.0, 1000.0
"""Width of the kernel and scale of the published CMMD."""

ROWS = 2000
"""Rows of a kernel matrix that are in memory at once."""


def inception_score(logits: Tensor, *, splits: int = 10) -> tuple[float, float, float]:
    """Return mean, standard deviation and standard error of exp E KL(p(y | x) || p(y)).

    Logits [N, K], split in their order (Salimans et al. 2016). The standard deviation is that of
    the splits themselves (ddof 0), as published. Splits share no sample, so the error of their
    mean is sd / sqrt(splits) (ddof 1).
    """
    logp = logits.double().log_softmax(1)
    scores = []
    for part in logp.tensor_split(splits):
        marginal = part.exp().mean(0).clamp(min=torch.finfo(torch.float64).tiny).log()
        scores.append((part.exp() * (part - marginal)).sum(1).mean().exp())
    found = torch.stack(scores)
    sd = float(found.std(unbiased=False))
    return float(found.mean()), sd, sd / (splits - 1) ** 0.5


def published_kid(fake: Tensor, real: Tensor, *, seed: int) -> tuple[float, float, float]:
    """Return mean, standard deviation and standard error of the KID of features [N, d], [M, d].

    100 subsets of 1,000 of each without repetition, kernel (a.b / d + 1)^3 of the features as they
    are, unbiased (Binkowski et al. 2018); all samples where there are fewer than 1,000. The
    standard deviation is that of the subsets (ddof 0), as published. Subsets are drawn from the
    same samples, so the error has two parts: that of the distance of all samples, `mmd_error`, and
    that of the draw of the subsets, sd / sqrt(subsets).
    """
    size = min(KID_SIZE, len(fake), len(real))
    generator = torch.Generator().manual_seed(seed)
    found = []
    for _ in range(KID_SUBSETS):
        x = fake[torch.randperm(len(fake), generator=generator)[:size]].double()
        y = real[torch.randperm(len(real), generator=generator)[:size]].double()
        found.append(cubic_mmd(x, y))
    each = torch.tensor(found, dtype=torch.float64)
    x, y = fake.double(), real.double()
    within, between = _kernel_means(x, x, cubic), _kernel_means(x, y, cubic)
    own = (x.square().mean(1) + 1).pow(3)  # of a sample with itself: not in the distance
    error = mmd_error((len(x) * within - own) / (len(x) - 1), between)
    drawn = float(each.std()) / KID_SUBSETS**0.5
    return float(each.mean()), float(each.std(unbiased=False)), math.hypot(error, drawn)


def cmmd(fake: Tensor, real: Tensor) -> tuple[float, float]:
    """Return 1000 times the squared MMD of embeddings [N, d], [M, d] and its standard error.

    Embeddings are scaled to length 1, the kernel is Gaussian with sigma 10, and means include the
    diagonal (Jayasumana et al. 2024). The error is `mmd_error`.
    """
    x, y = (a.double() / a.double().norm(dim=1, keepdim=True) for a in (fake, real))
    within, between = _kernel_means(x, x, _gaussian), _kernel_means(x, y, _gaussian)
    value = within.mean() + _kernel_means(y, y, _gaussian).mean() - 2 * between.mean()
    return float(CMMD_SCALE * value), CMMD_SCALE * mmd_error(within, between)


def mmd_error(within: Tensor, between: Tensor) -> float:
    """Return the standard error of a squared MMD over the generated samples.

    `within` [N] is the mean kernel of each generated sample with the others, `between` [N] with the
    real ones, which are taken as they are. The delta method: a sample moves the distance by
    2 (within - between) / N. A tenth too large for equal laws, where second-order terms count.
    """
    return float(2 * (within - between).std() / len(within) ** 0.5)


def _gaussian(a: Tensor, b: Tensor) -> Tensor:
    """Return the kernel of CMMD minus 1, which cancels in the distance."""
    return torch.cdist(a, b).square().div(-2 * CMMD_SIGMA**2).expm1()


def _kernel_means(a: Tensor, b: Tensor, kernel: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """Return the mean kernel [N] of each row of a [N, d] with the rows of b [M, d]."""
    return torch.cat([kernel(rows, b).mean(1) for rows in a.split(ROWS)])
