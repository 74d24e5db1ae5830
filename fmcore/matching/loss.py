"""The flow-matching loss: what trains a round, and what is measured on held-out pairs.

    E |v(x_t, t) - u_t|^2,  x_t = alpha target + sigma source,  u_t = alpha' target + sigma' source

Das 2024; Liu et al. 2022, equation 1. A network may predict the source or the target instead of
the velocity: one regression in other coordinates.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from fmcore.matching.conversions import usable_times
from fmcore.matching.interpolant import EDGE, Linear, Objective, Schedule, interpolate
from fmcore.matching.mean_flow import mean_flow_gap
from fmcore.settings import Settings


@dataclass(frozen=True)
class Batch:
    """Pairs at times: target and source [B, *D], t [B], label [B] and span [B] or None."""

    target: Tensor
    source: Tensor
    t: Tensor
    label: Tensor | None = None
    span: Tensor | None = None

    def part(self, cut: Callable[[Tensor], Tensor]) -> "Batch":
        """Return the batch of the rows that `cut` takes from each of its tensors."""
        label, span = (None if a is None else cut(a) for a in (self.label, self.span))
        return Batch(cut(self.target), cut(self.source), cut(self.t), label, span)


class Loss(Settings):
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
        if self.weight == "velocity" and objective in ("noise", "target"):
            a, b = interpolant.alpha(t), interpolant.sigma(t)
            w = a * interpolant.d_sigma(t) - interpolant.d_alpha(t) * b
            return (w / (a if objective == "noise" else b)).square()
        return torch.ones_like(t)


STRAIGHT, MSE = Linear(), Loss()


class Losses(NamedTuple):
    """`per_sample` [B], whose mean is minimised, and `mean_square` [], the plain error."""

    per_sample: Tensor
    mean_square: Tensor


def flow_matching_loss(
    network: Callable[..., Tensor],
    batch: Batch,
    interpolant: Schedule = STRAIGHT,
    objective: Objective = "velocity",
    loss: Loss = MSE,
) -> Losses:
    """Return the losses of a network on a batch.

    The network is called as (x [B, *D], t [B]), with the label behind if the batch has labels. A
    velocity of any origin has the objective `velocity`, so that losses compare.
    """
    t = batch.t.clamp(*usable_times(interpolant, objective))
    x, u = interpolate(interpolant, batch.target, batch.source, t)
    if objective == "mean_flow":
        gap = mean_flow_gap(network, x, u, t, batch.span, batch.label)
    else:
        aim = {"velocity": u, "noise": batch.source, "target": batch.target}[objective]
        gap = (network(x, t) if batch.label is None else network(x, t, batch.label)) - aim
    return Losses(loss.per_sample(gap, t, interpolant, objective), gap.square().mean())
