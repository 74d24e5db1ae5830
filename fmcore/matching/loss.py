"""What a round minimises: the gap between prediction and its aim, sample by sample."""

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from fmcore.matching.interpolant import EDGE, Objective, Schedule
from fmcore.settings import Settings


class Loss(Settings):
    """The loss of one sample, and its weight by t.

    `pseudo_huber` is sqrt(|gap|^2 + c^2) - c with c = 0.00054 d unless given (Lee et al. 2024):
    far pairs pull less. `normalised` divides each sample by its own loss, so that all times weigh
    alike (Kim et al. 2025). `weight: inverse_t` is 1 / t; `velocity` makes a network that predicts
    the source or the target minimise the error of its velocity.
    """

    name: Literal["mse", "pseudo_huber"] = "mse"
    """`mse` is the squared error; `pseudo_huber` lets pairs with a large error pull less, which
    helps from round 2 on."""
    c: float | None = Field(default=None, gt=0)
    """Where pseudo_huber turns from square to linear, in units of |gap|. null is 0.00054 times the
    dimension of the data."""
    normalised: bool = False
    """Whether each sample's loss is divided by its own value, so that all samples weigh alike. It
    suits objective mean_flow."""
    weight: Literal["one", "inverse_t", "velocity"] = "one"
    """Weight by t: `one`, `inverse_t` (1 / t), or `velocity` (for objectives noise and target:
    minimises the error of the velocity)."""

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
