"""Losses by their name in params.yaml."""

from typing import Annotated, Any, ClassVar, cast

import torch
from pydantic import BeforeValidator, Field
from torch import Tensor

from fmcore.matching.interpolant import Linear, Objective, Schedule
from fmcore.matching.loss import Loss, SampleLoss
from fmcore.own import Own


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
