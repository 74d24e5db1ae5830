"""Laws of t: which times a round trains on, drawn by the inverse of their CDF.

A law is its settings and `spread`, which maps uniform draws u [B] to times [B], so that stratified
draws stay stratified. A law also makes a student: `point` at t = 1 for one step, `grid` for k.
"""

import math
from abc import abstractmethod
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from fmcore.settings import GridSize, Settings


class Law(Settings):
    """The base of every law of t.

    One of your own (`name: custom`) has `spread`, the inverse of its CDF, and its settings as
    fields. Reading it checks that its times lie in [0, 1].
    """

    @abstractmethod
    def spread(self, u: Tensor) -> Tensor:
        """Return the times [B] at which the CDF is u [B]; u is uniform in [0, 1)."""


class Uniform(Law):
    """All times alike."""

    name: Literal["uniform"] = "uniform"

    def spread(self, u: Tensor) -> Tensor:
        return u


class LogitNormal(Law):
    """logit(t) ~ N(mean, std^2): more times in the middle of the path (Esser et al. 2024, SD3)."""

    name: Literal["logit_normal"] = "logit_normal"
    mean: float = Field(default=0.0, ge=-100, le=100)
    """Mean of logit(t). Above 0 more times lie near the source."""
    std: float = Field(default=1.0, gt=0, le=100)
    """Standard deviation of logit(t). Lower it to concentrate the times around the middle."""

    def spread(self, u: Tensor) -> Tensor:
        return torch.sigmoid(self.mean + self.std * torch.special.ndtri(u.double())).to(u.dtype)


class Mode(Law):
    """t = 1 - w - scale (cos^2(pi w / 2) - 1 + w) at w = 1 - u: heavy tails, tunable mode (SD3)."""

    name: Literal["mode"] = "mode"
    scale: float = Field(default=1.29, ge=-1, le=2 / (math.pi - 2))
    """How much the density peaks in the middle; below 0 it peaks at the ends, 0 is uniform."""

    def spread(self, u: Tensor) -> Tensor:
        w = 1 - u
        t = 1 - w - self.scale * (torch.cos(math.pi / 2 * w).square() - 1 + w)
        return t.clamp(0, 1)


class UShaped(Law):
    """Density e^{rate t} + e^{rate (1 - t)} (Lee et al. 2024, rate 4).

    From round 2 the loss is high at the ends. CDF: sinh(rate (t - 1/2)) / (2 sinh(rate / 2)) + 1/2.
    """

    name: Literal["u_shaped"] = "u_shaped"
    rate: float = Field(default=4.0, gt=0, le=30)
    """How strongly times concentrate at both ends; towards 0 the law is uniform."""

    def spread(self, u: Tensor) -> Tensor:
        c = (2 * u.double() - 1) * math.sinh(self.rate / 2)
        return (torch.asinh(c) / self.rate + 0.5).to(u.dtype).clamp(0, 1)


class Beta(Law):
    """Density t^{a-1} (1 - t)^{b-1} / B(a, b)."""

    name: Literal["beta"] = "beta"
    a: float = Field(default=2.0, ge=0.01, le=1000)
    """First parameter. Raise it for more times near the source (t = 1)."""
    b: float = Field(default=2.0, ge=0.01, le=1000)
    """Second parameter. Raise it for more times near the target (t = 0)."""

    def spread(self, u: Tensor) -> Tensor:
        from scipy.special import betaincinv  # its import takes a third of a second

        return torch.from_numpy(betaincinv(self.a, self.b, u.double().numpy())).to(u.dtype)


class Point(Law):
    """All mass at one time: at t = 1 the round is a one-step student of its coupling."""

    name: Literal["point"] = "point"
    at: float = Field(default=1.0, ge=0, le=1)
    """The only time that is trained. 1 makes a one-step student."""

    def spread(self, u: Tensor) -> Tensor:
        return torch.full_like(u, self.at)


class Grid(Law):
    """The times 1/k, ..., 1 of k Euler steps: for a k-step student (Liu et al. 2022, 2.3)."""

    name: Literal["grid"] = "grid"
    steps: GridSize
    """The k of the times 1/k, 2/k, ..., 1: the number of Euler steps that the student takes."""

    def spread(self, u: Tensor) -> Tensor:
        return ((u * self.steps).floor().clamp(max=self.steps - 1) + 1) / self.steps
