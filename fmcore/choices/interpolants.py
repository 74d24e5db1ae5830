"""Interpolants by their name in params.yaml."""

from typing import Annotated, ClassVar, cast

import torch
from pydantic import Field
from torch import Tensor

from fmcore.matching.interpolant import (
    Cosine,
    Linear,
    Polynomial,
    Schedule,
    VarianceExploding,
    VariancePreserving,
)
from fmcore.own import Own


class Custom(Own, Schedule):
    """A schedule of the user's own, a subclass of `Schedule`."""

    base: ClassVar[type] = Schedule

    def check(self, own: Schedule) -> None:
        """Check the ends and the derivatives."""
        check(own)

    @property
    def first(self) -> float:  # type: ignore[override]
        """The smallest time of the user's schedule."""
        return float(self.own.first)

    def alpha(self, t: Tensor) -> Tensor:
        """Return the user's alpha [B]."""
        return cast(Tensor, self.own.alpha(t))

    def sigma(self, t: Tensor) -> Tensor:
        """Return the user's sigma [B]."""
        return cast(Tensor, self.own.sigma(t))

    def d_alpha(self, t: Tensor) -> Tensor:
        """Return the user's d alpha / dt [B]."""
        return cast(Tensor, self.own.d_alpha(t))

    def d_sigma(self, t: Tensor) -> Tensor:
        """Return the user's d sigma / dt [B]."""
        return cast(Tensor, self.own.d_sigma(t))


Interpolant = Annotated[
    Linear | Cosine | Polynomial | VariancePreserving | VarianceExploding | Custom,
    Field(discriminator="name"),
]


def check(schedule: Schedule) -> None:
    """Raise ValueError unless alpha(0) = 1, sigma(0) is small, and the derivatives are right."""
    ends = torch.tensor([0.0, 1.0], dtype=torch.float64)
    a, b = schedule.alpha(ends), schedule.sigma(ends)
    if not (abs(float(a[0]) - 1) <= 1e-6 and abs(float(b[0])) <= 0.02 * float(b[1])):
        raise ValueError(f"alpha(0) = {float(a[0]):g}, sigma(0) = {float(b[0]):g}; need 1 and 0")
    t, h = torch.linspace(0.05, 0.95, 19, dtype=torch.float64), 1e-6
    for name in ("alpha", "sigma"):
        f = getattr(schedule, name)
        slope, given = (f(t + h) - f(t - h)) / (2 * h), getattr(schedule, f"d_{name}")(t)
        wrong = ~((slope - given).abs() <= 1e-4 * (1 + slope.abs()))  # true for NaN too
        if bool(wrong.any()):
            at = float(t[wrong][0])
            raise ValueError(f"d_{name} is not the derivative of {name} at t = {at:g}")
