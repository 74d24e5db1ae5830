"""Closed forms for source N(0, I) and target N(mu, diag s^2), independent coupling.

Straight interpolant unless said otherwise; t = 0 data, t = 1 noise.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from fmcore.matching.interpolant import Linear, Schedule, expand


def gaussian_velocity(
    mu: Tensor, s: Tensor, interpolant: Schedule | None = None
) -> Callable[[Tensor, Tensor], Tensor]:
    """Return v*(x, t) = alpha' mu + (alpha alpha' s^2 + sigma sigma')/D (x - alpha mu)."""
    path = interpolant or Linear()

    def velocity(x: Tensor, t: Tensor) -> Tensor:
        t = expand(t, x)
        a, b, da, db = path.alpha(t), path.sigma(t), path.d_alpha(t), path.d_sigma(t)
        variance = a**2 * s**2 + b**2
        return da * mu + (a * da * s**2 + b * db) / variance * (x - a * mu)

    return velocity


def straightness(s: float) -> float:
    """Return S of the exact 1-rectified flow for one axis: (2 - pi/2) s."""
    return (2 - math.pi / 2) * s


def least_loss(s: float) -> float:
    """Return V, the least training loss for one axis: (pi/2) s."""
    return math.pi / 2 * s


def eight_gaussians_velocity(radius: float, std: float) -> Callable[[Tensor, Tensor], Tensor]:
    """Return the exact velocity to eight Gaussians on a circle (straight interpolant)."""
    angles = torch.arange(8, dtype=torch.float64) * math.pi / 4
    modes = radius * torch.stack([angles.cos(), angles.sin()], dim=1)

    def velocity(x: Tensor, t: Tensor) -> Tensor:
        t = expand(t, x)[..., None]
        centred = x[:, None, :] - (1 - t) * modes
        variance = (1 - t) ** 2 * std**2 + t**2
        log_weight = -centred.square().sum(-1, keepdim=True) / (2 * variance)
        weight = log_weight.softmax(dim=1)
        drift = (t - (1 - t) * std**2) / variance * centred - modes
        return (weight * drift).sum(1)

    return velocity


def mixture_velocity(
    modes: Tensor, s: Tensor, interpolant: Schedule | None = None, weights: Tensor | None = None
) -> Callable[[Tensor, Tensor], Tensor]:
    """Return the exact velocity to a mixture of N(mode, diag s^2), modes [M, d], s [d].

    Given the mode it is that of a Gaussian; modes weigh as the posterior of x_t says. `weights` [M]
    are equal unless given.
    """
    path = interpolant or Linear()
    prior = torch.zeros(len(modes)) if weights is None else weights.log()

    def velocity(x: Tensor, t: Tensor) -> Tensor:
        a, b, da, db = (f(expand(t, x))[..., None].to(x.dtype) for f in (
            path.alpha, path.sigma, path.d_alpha, path.d_sigma))  # fmt: skip
        variance = a**2 * s**2 + b**2
        centred = x[:, None, :] - a * modes
        log_weight = prior[:, None] - (centred.square() / (2 * variance)).sum(-1, keepdim=True)
        own = da * modes + (a * da * s**2 + b * db) / variance * centred
        return (log_weight.softmax(dim=1) * own).sum(1)

    return velocity
