"""The reverse-time SDE with the same marginals as the flow (Song et al. 2021; Das 2024).

    dx = [v - (churn^2 / 2) g^2 score] dt + churn g dw,   t from 1 to 0

churn 0 is the probability-flow ODE, churn 1 the full reverse SDE. The score comes from the
velocity, hence needs the independent coupling.
"""

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor

from fmcore.matching.conversions import Velocity, diffusion_squared, to_score, to_target
from fmcore.matching.interpolant import EDGE, Schedule
from fmcore.solve.solver import Solution


@torch.no_grad()
def euler_maruyama(
    velocity: Velocity,
    interpolant: Schedule,
    x: Tensor,
    noise: Callable[[int], Tensor],
    *,
    steps: int,
    churn: float,
) -> Solution:
    """Integrate x [B, *D] from t = 1 to t = 0; `noise(i)` is standard normal [B, *D] for step i.

    Where alpha = 0 the diffusion g has no bound (x_1 is all source), so that step solves the ODE.
    The last step draws no noise, which nothing would remove: with churn it returns E[target | x]
    (the denoising step of Song et al. 2021; Karras et al. 2022).
    """
    grid = torch.linspace(1, 0, steps + 1, dtype=torch.float64).to(x.device, x.dtype)
    for i, (t, after) in enumerate(pairwise(grid)):
        at, h = t.expand(len(x)), t - after
        v = velocity(x, at)
        drift = -h * v
        if churn and float(interpolant.alpha(t)) > EDGE:
            if after == 0:
                return Solution(to_target(interpolant, v, x, at), steps)
            g2 = diffusion_squared(interpolant, t)
            score = to_score(interpolant, v, x, at)
            drift = drift + h * churn**2 / 2 * g2 * score
            drift = drift + churn * (g2 * h).sqrt() * noise(i).to(x)
        x = x + drift
    return Solution(x, steps)
