"""Interpolants x_t = alpha(t) target + sigma(t) source, with t = 0 data and t = 1 noise.

Theory: Ayan Das, "Match Flows, Not Scores" (2024). An interpolant is its settings: fields plus
four formulas. Times are tensors [B]; the formulas are elementwise.
"""

import math
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from fmcore.settings import Settings


class Linear(Settings):
    """alpha = 1 - t, sigma = t: the straight interpolant of rectified flow."""

    name: Literal["linear"] = "linear"

    def alpha(self, t: Tensor) -> Tensor:
        """Return 1 - t [B]."""
        return 1 - t

    def sigma(self, t: Tensor) -> Tensor:
        """Return t [B]."""
        return t

    def d_alpha(self, t: Tensor) -> Tensor:
        """Return d alpha / dt = -1 [B]."""
        return -torch.ones_like(t)

    def d_sigma(self, t: Tensor) -> Tensor:
        """Return d sigma / dt = 1 [B]."""
        return torch.ones_like(t)


class Cosine(Settings):
    """alpha = cos(pi t / 2), sigma = sin(pi t / 2): constant alpha^2 + sigma^2."""

    name: Literal["cosine"] = "cosine"

    def alpha(self, t: Tensor) -> Tensor:
        """Return cos(pi t / 2) [B]."""
        return torch.cos(math.pi / 2 * t)

    def sigma(self, t: Tensor) -> Tensor:
        """Return sin(pi t / 2) [B]."""
        return torch.sin(math.pi / 2 * t)

    def d_alpha(self, t: Tensor) -> Tensor:
        """Return -pi/2 sin(pi t / 2) [B]."""
        return -math.pi / 2 * torch.sin(math.pi / 2 * t)

    def d_sigma(self, t: Tensor) -> Tensor:
        """Return pi/2 cos(pi t / 2) [B]."""
        return math.pi / 2 * torch.cos(math.pi / 2 * t)


Interpolant = Annotated[Linear | Cosine, Field(discriminator="name")]


def expand(t: Tensor, like: Tensor) -> Tensor:
    """Reshape t [B] to [B, 1, ...] so that it broadcasts against like [B, *D]."""
    return t.reshape(-1, *(1,) * (like.ndim - 1))


def interpolate(
    interpolant: Linear | Cosine, target: Tensor, source: Tensor, t: Tensor
) -> tuple[Tensor, Tensor]:
    """Return x_t [B, *D] and its velocity u_t = alpha' target + sigma' source [B, *D].

    >>> x = torch.zeros(1, 2); e = torch.ones(1, 2)
    >>> interpolate(Linear(), x, e, torch.tensor([0.25]))
    (tensor([[0.2500, 0.2500]]), tensor([[1., 1.]]))
    """
    s = expand(t, target)
    x = interpolant.alpha(s) * target + interpolant.sigma(s) * source
    u = interpolant.d_alpha(s) * target + interpolant.d_sigma(s) * source
    return x, u


def to_source(interpolant: Linear | Cosine, velocity: Tensor, x: Tensor, t: Tensor) -> Tensor:
    """Return E[source | x_t = x] = (alpha v - alpha' x) / (alpha sigma' - alpha' sigma).

    Holds for any coupling; the denominator is 1 for `linear` and pi/2 for `cosine`.
    """
    s = expand(t, x)
    a, b, da, db = (
        interpolant.alpha(s), interpolant.sigma(s), interpolant.d_alpha(s), interpolant.d_sigma(s),
    )  # fmt: skip
    return (a * velocity - da * x) / (a * db - da * b)


def to_target(interpolant: Linear | Cosine, velocity: Tensor, x: Tensor, t: Tensor) -> Tensor:
    """Return E[target | x_t = x] = (sigma' x - sigma v) / (alpha sigma' - alpha' sigma)."""
    s = expand(t, x)
    a, b, da, db = (
        interpolant.alpha(s), interpolant.sigma(s), interpolant.d_alpha(s), interpolant.d_sigma(s),
    )  # fmt: skip
    return (db * x - b * velocity) / (a * db - da * b)


def to_score(interpolant: Linear | Cosine, velocity: Tensor, x: Tensor, t: Tensor) -> Tensor:
    """Return the score -E[source | x] / sigma(t) of the marginal at t > 0.

    Valid only for the independent coupling with standard normal source (Tweedie): on a coupling
    that a flow produced, source and target determine each other and this is not the score.
    """
    return -to_source(interpolant, velocity, x, t) / interpolant.sigma(expand(t, x))
