"""The reverse-time SDE with the same marginals as the flow (Song et al. 2021; Das 2024).

    dx = [v - (churn^2 / 2) g^2 score] dt + churn g dw,   t from 1 to 0

churn 0 is the probability-flow ODE, churn 1 the full reverse SDE. The score comes from the
velocity, hence needs the independent coupling.
"""

from collections.abc import Callable
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from fmcore.coupling import gaussian_noise
from fmcore.flow import Flow, joined
from fmcore.interpolant import EDGE, Schedule
from fmcore.settings import ReflowError, Settings, derive_seed
from fmcore.solver import Solution, Velocity
from fmcore.views import diffusion_squared, to_score


class Sde(Settings):
    """Euler-Maruyama: how many equal steps, and how much of the noise is drawn anew."""

    name: str = Field(default="euler_maruyama", pattern="^euler_maruyama$")
    steps: int = Field(default=64, gt=0)
    churn: float = Field(default=1.0, ge=0, le=1)


@torch.no_grad()
def euler_maruyama(
    velocity: Velocity,
    interpolant: Schedule,
    x: Tensor,
    settings: Sde,
    noise: Callable[[int], Tensor],
) -> Solution:
    """Carry x [B, *D] from t = 1 to t = 0; `noise(i)` is standard normal [B, *D] for step i.

    Where alpha = 0 the diffusion g has no bound (x_1 is all source), so that step is the ODE's.
    """
    grid = torch.linspace(1, 0, settings.steps + 1, dtype=torch.float64).to(x.device, x.dtype)
    for i, (t, after) in enumerate(pairwise(grid)):
        at, h = t.expand(len(x)), t - after
        v = velocity(x, at)
        drift = -h * v
        if settings.churn and float(interpolant.alpha(t)) > EDGE:
            g2 = diffusion_squared(interpolant, t)
            score = to_score(interpolant, v, x, at)
            drift = drift + h * settings.churn**2 / 2 * g2 * score
            drift = drift + settings.churn * (g2 * h).sqrt() * noise(i).to(x)
        x = x + drift
    return Solution(x, settings.steps)


def diffuse(
    flow: Flow,
    source: Tensor,
    settings: Sde,
    ids: NDArray[np.int64],
    *,
    seed: int,
    device: torch.device,
    batch: int = 1024,
    label: Tensor | None = None,
    guidance: float = 1.0,
) -> Solution:
    """Carry source [N, *D] to t = 0 by the reverse SDE, with noise by (seed, id [N], step).

    Raises ReflowError where the velocity is not a score.
    """
    if not flow.score:
        raise ReflowError(
            "the reverse SDE needs the score, which a velocity gives only if it was trained on the"
            " independent coupling: on any other, source and target depend on each other; use"
            " churn 0 (the ODE), or a round with `coupling: independent`"
        )
    tiled, parts = flow.tiled(), []
    for first in range(0, len(source), batch):
        rows, own = source[first : first + batch], ids[first : first + batch]
        named = None if label is None else label[first : first + batch].to(device)

        def noise(step: int, own: NDArray[np.int64] = own) -> Tensor:
            return gaussian_noise(derive_seed(seed, "sde", step), own, tuple(source.shape[1:]))

        start = (flow.interpolant.noise_scale * rows).to(device)
        v = tiled.velocity(named, guidance=guidance)
        parts.append(euler_maruyama(v, flow.interpolant, start, settings, noise))
    return joined(parts, 1 if label is None or guidance == 1 else 2)
