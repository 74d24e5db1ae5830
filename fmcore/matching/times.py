"""Laws of t: which times a round trains on, drawn by the inverse of their CDF.

A law is its settings and `spread`: uniform draws u [B] in, times [B] out, so that stratified draws
stay stratified. A student is a law too: `point` at t = 1 for one step, `grid` for k steps.
"""

import math
from abc import abstractmethod
from typing import Annotated, ClassVar, Literal, cast

import torch
from pydantic import BeforeValidator, Field
from torch import Tensor

from fmcore.own import Own
from fmcore.settings import Settings, by_name


class Law(Settings):
    """The base of every law of t.

    One of your own (`name: custom`) has `spread`, the inverse of its CDF, and its settings as
    fields; that its times lie in [0, 1] is checked when it is read.
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
    """logit(t) ~ N(mean, std^2): the middle of the path (Esser et al. 2024, SD3)."""

    name: Literal["logit_normal"]
    mean: float = 0.0
    std: float = Field(default=1.0, gt=0)

    def spread(self, u: Tensor) -> Tensor:
        return torch.sigmoid(self.mean + self.std * torch.special.ndtri(u.double())).to(u.dtype)


class Mode(Law):
    """t = 1 - w - scale (cos^2(pi w / 2) - 1 + w) at w = 1 - u: heavy tails, tunable mode (SD3)."""

    name: Literal["mode"]
    scale: float = Field(default=1.29, ge=-1, le=2 / (math.pi - 2))

    def spread(self, u: Tensor) -> Tensor:
        w = 1 - u
        t = 1 - w - self.scale * (torch.cos(math.pi / 2 * w).square() - 1 + w)
        return t.clamp(0, 1)


class UShaped(Law):
    """Density e^{rate t} + e^{rate (1 - t)} (Lee et al. 2024, rate 4).

    The CDF is sinh(rate (t - 1/2)) / (2 sinh(rate / 2)) + 1/2.
    From round 2 on the ends are where the loss is, and one Euler step reads t = 1 alone.
    """

    name: Literal["u_shaped"]
    rate: float = Field(default=4.0, gt=0, le=30)

    def spread(self, u: Tensor) -> Tensor:
        c = (2 * u.double() - 1) * math.sinh(self.rate / 2)
        return (torch.asinh(c) / self.rate + 0.5).to(u.dtype).clamp(0, 1)


class Beta(Law):
    """Density t^{a-1} (1 - t)^{b-1} / B(a, b)."""

    name: Literal["beta"]
    a: float = Field(default=2.0, gt=0)
    b: float = Field(default=2.0, gt=0)

    def spread(self, u: Tensor) -> Tensor:
        from scipy.special import betaincinv  # a third of a second to import

        return torch.from_numpy(betaincinv(self.a, self.b, u.double().numpy())).to(u.dtype)


class Point(Law):
    """All mass at one time: at t = 1 the round is a one-step student of its coupling."""

    name: Literal["point"]
    at: float = Field(default=1.0, ge=0, le=1)

    def spread(self, u: Tensor) -> Tensor:
        return torch.full_like(u, self.at)


class Grid(Law):
    """The times 1/k, 2/k, ..., 1 alike: where k Euler steps read the velocity (a k-step student).

    Liu et al. 2022, section 2.3: distillation asks for nothing in between.
    """

    name: Literal["grid"]
    steps: int = Field(gt=0)

    def spread(self, u: Tensor) -> Tensor:
        return ((u * self.steps).floor().clamp(max=self.steps - 1) + 1) / self.steps


class Custom(Own, Law):
    """A law of t of the user's own, a subclass of `Law`."""

    base: ClassVar[type] = Law

    def check(self, own: Law) -> None:
        """Check that the times lie in [0, 1]."""
        u = (torch.arange(64) + 0.5) / 64
        t = own.spread(u)
        if t.shape != u.shape or not bool(((t >= 0) & (t <= 1)).all()):
            raise ValueError(f"spread must turn u [{len(u)}] into as many times in [0, 1]")

    def spread(self, u: Tensor) -> Tensor:
        """Return the user's times [B]."""
        return cast(Tensor, self.own.spread(u)).to(u.dtype)


LawOfTime = Annotated[
    Uniform | LogitNormal | Mode | UShaped | Beta | Point | Grid | Custom,
    Field(discriminator="name"),
    BeforeValidator(by_name),
]
