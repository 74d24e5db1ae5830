"""Scores as the papers define them: Inception Score, KID, CMMD.

They are compared with published numbers, so they follow the published formulas, splits and scales,
also where a better estimate exists (`neighbours.kernel_distance`).
"""

import torch
from torch import Tensor

from fmcore.measure.neighbours import cubic_mmd

KID_SUBSETS, KID_SIZE = 100, 1000
"""Number and size of the subsets of the published KID."""

CMMD_SIGMA, CMMD_SCALE = 10.0, 1000.0
"""Width of the kernel and scale of the published CMMD."""

ROWS = 2000
"""Rows of a kernel matrix that are in memory at once."""


def inception_score(logits: Tensor, *, splits: int = 10) -> tuple[float, float]:
    """Return mean and standard deviation over splits of exp E KL(p(y | x) || p(y)).

    Logits [N, K], split in their order (Salimans et al. 2016). The standard deviation is that of
    the splits themselves (ddof 0), as published: it is not the error of the mean.
    """
    logp = logits.double().log_softmax(1)
    scores = []
    for part in logp.tensor_split(splits):
        marginal = part.exp().mean(0).clamp(min=torch.finfo(torch.float64).tiny).log()
        scores.append((part.exp() * (part - marginal)).sum(1).mean().exp())
    found = torch.stack(scores)
    return float(found.mean()), float(found.std(unbiased=False))


def published_kid(fake: Tensor, real: Tensor, *, seed: int) -> tuple[float, float]:
    """Return mean and standard deviation over subsets of the KID of features [N, d], [M, d].

    100 subsets of 1,000 of each without repetition, kernel (a.b / d + 1)^3 of the features as they
    are, unbiased (Binkowski et al. 2018); all samples where there are fewer than 1,000. The
    standard deviation is that of the subsets (ddof 0), as published.
    """
    size = min(KID_SIZE, len(fake), len(real))
    generator = torch.Generator().manual_seed(seed)
    found = []
    for _ in range(KID_SUBSETS):
        x = fake[torch.randperm(len(fake), generator=generator)[:size]].double()
        y = real[torch.randperm(len(real), generator=generator)[:size]].double()
        found.append(cubic_mmd(x, y))
    each = torch.tensor(found, dtype=torch.float64)
    return float(each.mean()), float(each.std(unbiased=False))


def cmmd(fake: Tensor, real: Tensor) -> float:
    """Return 1000 times the squared MMD of embeddings [N, d], [M, d] with a Gaussian kernel.

    Embeddings are scaled to length 1, the kernel's sigma is 10, and means include the diagonal
    (Jayasumana et al. 2024).
    """
    x, y = (a.double() / a.double().norm(dim=1, keepdim=True) for a in (fake, real))

    def mean(a: Tensor, b: Tensor) -> Tensor:
        total = sum(
            torch.cdist(rows, b).square().div(-2 * CMMD_SIGMA**2).expm1().sum()
            for rows in a.split(ROWS)
        )
        return torch.as_tensor(total) / (len(a) * len(b))  # of the kernel minus 1, which cancels

    return float(CMMD_SCALE * (mean(x, x) + mean(y, y) - 2 * mean(x, y)))
