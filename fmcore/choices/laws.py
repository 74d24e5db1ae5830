"""Laws of t by their name in params.yaml, with those that the theory does not need."""

import math
from typing import Annotated, ClassVar, Literal, cast

import torch
from pydantic import BeforeValidator, Field
from torch import Tensor

from fmcore.matching.times import Grid, Law, Point, Uniform, UShaped
from fmcore.own import Own
from fmcore.settings import by_name


class LogitNormal(Law):
    """logit(t) ~ N(mean, std^2): more times in the middle of the path (Esser et al. 2024, SD3)."""

    name: Literal["logit_normal"] = "logit_normal"
    mean: float = Field(default=0.0, ge=-100, le=100)
    """Mean of logit(t). Above 0 more times lie near the source."""
    std: float = Field(default=1.0, gt=0, le=100)
    """Standard deviation of logit(t). Lower it to concentrate the times around the middle."""

    def spread(self, u: Tensor) -> Tensor:
        """Return the times [B] at which the CDF is u [B]."""
        return torch.sigmoid(self.mean + self.std * torch.special.ndtri(u.double())).to(u.dtype)


class Mode(Law):
    """t = 1 - w - scale (cos^2(pi w / 2) - 1 + w) at w = 1 - u: heavy tails, tunable mode (SD3)."""

    name: Literal["mode"] = "mode"
    scale: float = Field(default=1.29, ge=-1, le=2 / (math.pi - 2))
    """How much the density peaks in the middle; below 0 it peaks at the ends, 0 is uniform."""

    def spread(self, u: Tensor) -> Tensor:
        """Return the times [B] at which the CDF is u [B]."""
        w = 1 - u
        t = 1 - w - self.scale * (torch.cos(math.pi / 2 * w).square() - 1 + w)
        return t.clamp(0, 1)


class Beta(Law):
    """Density t^{a-1} (1 - t)^{b-1} / B(a, b)."""

    name: Literal["beta"] = "beta"
    a: float = Field(default=2.0, ge=0.01, le=1000)
    """First parameter. Raise it for more times near the source (t = 1)."""
    b: float = Field(default=2.0, ge=0.01, le=1000)
    """Second parameter. Raise it for more times near the target (t = 0)."""

    def spread(self, u: Tensor) -> Tensor:
        """Return the times [B] at which the CDF is u [B]."""
        from scipy.special import betaincinv  # its import takes a third of a second

        return torch.from_numpy(betaincinv(self.a, self.b, u.double().numpy())).to(u.dtype)


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
