"""Interpolants x_t = alpha(t) target + sigma(t) source, with t = 0 data and t = 1 noise.

Theory: Ayan Das, "Match Flows, Not Scores" (2024). An interpolant is its settings: fields plus
four formulas. Times are tensors [B]; the formulas are elementwise.
"""

import math
from abc import abstractmethod
from typing import ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from fmcore.settings import Length, Settings

EDGE = 1e-3
"""Distance kept from an end of [0, 1] at which a formula is singular."""

Objective = Literal["velocity", "noise", "target", "mean_flow"]
"""What a network predicts: the velocity, the source (denoising score matching), the target, or the
velocity averaged over a span of time (Geng et al. 2025)."""


class Schedule(Settings):
    """The base of every interpolant x_t = alpha(t) target + sigma(t) source.

    One of your own (`name: custom`) has the four formulas, elementwise in t [B], and its settings
    as fields. Reading it checks alpha(0) = 1, sigma(0) close to 0, and the derivatives.
    """

    first: ClassVar[float] = 0.0
    """The smallest time at which all four formulas are finite."""

    @abstractmethod
    def alpha(self, t: Tensor) -> Tensor:
        """Return the weight of the target [B], 1 at t = 0."""

    @abstractmethod
    def sigma(self, t: Tensor) -> Tensor:
        """Return the weight of the source [B], 0 (or close to it) at t = 0."""

    @abstractmethod
    def d_alpha(self, t: Tensor) -> Tensor:
        """Return d alpha / dt [B]."""

    @abstractmethod
    def d_sigma(self, t: Tensor) -> Tensor:
        """Return d sigma / dt [B]."""

    def at(self, t: Tensor, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return alpha, sigma, alpha', sigma' at t [B], shaped as factors of x [B, *D]."""
        s = expand(t, x)
        return self.alpha(s), self.sigma(s), self.d_alpha(s), self.d_sigma(s)

    @property
    def noise_scale(self) -> float:
        """Return sigma(1), about 1 except for `ve`: the flow starts at sigma(1) source."""
        return float(self.sigma(torch.ones((), dtype=torch.float64)))


class Linear(Schedule):
    """alpha = 1 - t, sigma = t: the straight interpolant of rectified flow."""

    name: Literal["linear"] = "linear"

    def alpha(self, t: Tensor) -> Tensor:
        return 1 - t

    def sigma(self, t: Tensor) -> Tensor:
        return t

    def d_alpha(self, t: Tensor) -> Tensor:
        return -torch.ones_like(t)

    def d_sigma(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)


class Cosine(Schedule):
    """alpha = cos(pi t / 2), sigma = sin(pi t / 2): constant alpha^2 + sigma^2."""

    name: Literal["cosine"] = "cosine"

    def alpha(self, t: Tensor) -> Tensor:
        return torch.cos(math.pi / 2 * t)

    def sigma(self, t: Tensor) -> Tensor:
        return torch.sin(math.pi / 2 * t)

    def d_alpha(self, t: Tensor) -> Tensor:
        return -math.pi / 2 * torch.sin(math.pi / 2 * t)

    def d_sigma(self, t: Tensor) -> Tensor:
        return math.pi / 2 * torch.cos(math.pi / 2 * t)


class Polynomial(Schedule):
    """alpha = (1 - t)^n, sigma = 1 - alpha: straight paths at a speed that changes."""

    name: Literal["polynomial"] = "polynomial"
    power: float = Field(default=2.0, ge=1, le=100)
    """The exponent n in alpha = (1 - t)^n. 1 is the linear interpolant. Above 1 the velocity at t =
    1 is 0 whatever the target, so one step of Euler stays where it is, and there is no one-step
    student."""

    def alpha(self, t: Tensor) -> Tensor:
        return (1 - t) ** self.power

    def sigma(self, t: Tensor) -> Tensor:
        return 1 - self.alpha(t)

    def d_alpha(self, t: Tensor) -> Tensor:
        return -self.power * (1 - t) ** (self.power - 1)

    def d_sigma(self, t: Tensor) -> Tensor:
        return -self.d_alpha(t)


class VariancePreserving(Schedule):
    """alpha^2 + sigma^2 = 1 with beta(t) linear: alpha = exp(-int beta / 2) (Song et al. 2021).

    sigma' grows without bound towards t = 0, so training times keep a distance from 0.
    """

    first: ClassVar[float] = EDGE
    name: Literal["variance_preserving"] = "variance_preserving"
    beta_min: float = Field(default=0.1, ge=1e-3, le=1e3)
    """Noise rate beta at t = 0."""
    beta_max: float = Field(default=20.0, ge=1e-3, le=1e3)
    """Noise rate beta at t = 1. Raise it so that less of the target is left there."""

    def _beta(self, t: Tensor) -> Tensor:
        return self.beta_min + (self.beta_max - self.beta_min) * t

    def _integral(self, t: Tensor) -> Tensor:
        return self.beta_min * t + (self.beta_max - self.beta_min) * t**2 / 2

    def alpha(self, t: Tensor) -> Tensor:
        return torch.exp(-self._integral(t) / 2)

    def sigma(self, t: Tensor) -> Tensor:
        return torch.sqrt(-torch.expm1(-self._integral(t)))

    def d_alpha(self, t: Tensor) -> Tensor:
        return -self._beta(t) / 2 * self.alpha(t)

    def d_sigma(self, t: Tensor) -> Tensor:
        return self._beta(t) * self.alpha(t) ** 2 / (2 * self.sigma(t))


class VarianceExploding(Schedule):
    """alpha = 1, sigma = sigma_min (sigma_max / sigma_min)^t (Song et al. 2021)."""

    name: Literal["variance_exploding"] = "variance_exploding"
    sigma_min: Length = 0.01
    """Standard deviation of the noise at t = 0, in units of the data. This noise stays in the
    samples."""
    sigma_max: Length = 50.0
    """Standard deviation of the noise at t = 1, in units of the data. It should be well above the
    spread of the data."""

    @model_validator(mode="after")
    def _ordered(self) -> "VarianceExploding":
        if self.sigma_min >= self.sigma_max:
            raise ValueError(f"sigma_min {self.sigma_min:g} must be below {self.sigma_max:g}")
        return self

    def alpha(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)

    def sigma(self, t: Tensor) -> Tensor:
        return self.sigma_min * torch.exp(math.log(self.sigma_max / self.sigma_min) * t)

    def d_alpha(self, t: Tensor) -> Tensor:
        return torch.zeros_like(t)

    def d_sigma(self, t: Tensor) -> Tensor:
        return math.log(self.sigma_max / self.sigma_min) * self.sigma(t)


def expand(t: Tensor, like: Tensor) -> Tensor:
    """Reshape t [B] to [B, 1, ...] so that it broadcasts against like [B, *D]."""
    return t.reshape(-1, *(1,) * (like.ndim - 1))


def interpolate(
    interpolant: Schedule, target: Tensor, source: Tensor, t: Tensor
) -> tuple[Tensor, Tensor]:
    """Return x_t [B, *D] and its velocity u_t = alpha' target + sigma' source [B, *D]."""
    if isinstance(interpolant, Linear):  # the same in a third of the operations
        return target.lerp(source, expand(t, target).to(target)), source - target
    a, b, da, db = interpolant.at(t, target)
    return a * target + b * source, da * target + db * source
