"""What a round minimises: the gap between prediction and its aim, sample by sample."""

from abc import abstractmethod
from typing import Annotated, Any, ClassVar, Literal, cast

import torch
from pydantic import BeforeValidator, Field
from torch import Tensor

from fmcore.matching.interpolant import EDGE, Linear, Objective, Schedule
from fmcore.own import Own
from fmcore.settings import Settings


class SampleLoss(Settings):
    """The base of every loss.

    One of your own (`name: custom`) has `per_sample` and its settings as fields. The training
    minimises its mean; the curve of a training shows the mean square error whatever it is.
    """

    @abstractmethod
    def per_sample(
        self, gap: Tensor, t: Tensor, interpolant: Schedule, objective: Objective
    ) -> Tensor:
        """Return the loss [B] of the gaps [B, *D] between prediction and aim at times t [B]."""


class Loss(SampleLoss):
    """The loss of one sample, and its weight by t.

    `pseudo_huber` is sqrt(|gap|^2 + c^2) - c with c = 0.00054 d unless given (Lee et al. 2024):
    far pairs pull less. `normalised` divides each sample by its own loss, so that all times weigh
    alike (Kim et al. 2025). `weight: inverse_t` is 1 / t; `velocity` makes a network that predicts
    the source or the target minimise the error of its velocity.
    """

    name: Literal["mse", "pseudo_huber"] = "mse"
    c: float | None = Field(default=None, gt=0)
    normalised: bool = False
    weight: Literal["one", "inverse_t", "velocity"] = "one"

    def per_sample(
        self, gap: Tensor, t: Tensor, interpolant: Schedule, objective: Objective
    ) -> Tensor:
        """Return the weighted loss [B] of the gaps [B, *D] at the times t [B]."""
        flat = gap.flatten(1)
        if self.name == "mse":
            value = flat.square().mean(dim=1)
        else:
            c = self.c or 0.00054 * flat.shape[1]
            value = (flat.square().sum(dim=1) + c * c).sqrt() - c
        if self.normalised:
            value = value / value.detach().clamp(min=1e-6)
        return value * self._weights(t, interpolant, objective)

    def _weights(self, t: Tensor, interpolant: Schedule, objective: Objective) -> Tensor:
        if self.weight == "inverse_t":
            return 1 / t.clamp(min=EDGE)
        if self.weight == "velocity" and objective != "velocity":
            a, b = interpolant.alpha(t), interpolant.sigma(t)
            w = a * interpolant.d_sigma(t) - interpolant.d_alpha(t) * b
            return (w / (a if objective == "noise" else b)).square()
        return torch.ones_like(t)


class Custom(Own, SampleLoss):
    """A loss of the user's own, a subclass of `SampleLoss`."""

    base: ClassVar[type] = SampleLoss

    def check(self, own: SampleLoss) -> None:
        """Check that there is one loss for each sample, and that it has a gradient."""
        gap = torch.linspace(-1, 1, 12).reshape(4, 3).requires_grad_(True)
        value = own.per_sample(gap, torch.linspace(0.1, 0.9, 4), Linear(), "velocity")
        if value.shape != (4,) or not value.requires_grad:
            raise ValueError("per_sample must return [B] losses of gaps [B, *D], with gradient")

    def per_sample(
        self, gap: Tensor, t: Tensor, interpolant: Schedule, objective: Objective
    ) -> Tensor:
        """Return the user's loss [B]."""
        return cast(Tensor, self.own.per_sample(gap, t, interpolant, objective))


def _mse_unless_named(value: Any) -> Any:
    return {"name": "mse", **value} if isinstance(value, dict) else value


LossOfRound = Annotated[
    Loss | Custom, Field(discriminator="name"), BeforeValidator(_mse_unless_named)
]
