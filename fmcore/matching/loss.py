"""The flow-matching loss: minimised in training, and measured on held-out pairs.

    E |v(x_t, t) - u_t|^2,  x_t = alpha target + sigma source,  u_t = alpha' target + sigma' source

Das 2024; Liu et al. 2022, equation 1. A network may predict the source or the target instead of
the velocity: the same regression in other coordinates.

Objective mean_flow learns a velocity averaged over a span, by a rule of `maps`.
"""

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import replace
from typing import ClassVar, Literal

from pydantic import Field
from torch import Tensor

from fmcore.matching.conversions import usable_times
from fmcore.matching.interpolant import EDGE, Linear, Objective, Schedule, interpolate
from fmcore.matching.maps import MEAN_FLOW, Batch, FlowMap
from fmcore.settings import Settings


class SampleLoss(Settings):
    """The base of every loss.

    One of your own (`name: custom`) has `per_sample` and its settings as fields, and says whether
    it `learns_mean`. Training minimises its mean; the curve shows the mean square error.
    """

    learns_mean: ClassVar[bool] = False
    """Whether the prediction that minimises it is E[aim | x_t], for every law of the aim. Only then
    is the velocity that of the marginals, so that the flow reaches the data from any coupling."""

    @abstractmethod
    def per_sample(
        self, gap: Tensor, t: Tensor, interpolant: Schedule, objective: Objective
    ) -> Tensor:
        """Return the loss [B] of the gaps [B, *D] between prediction and aim at times t [B]."""

    def of_batch(
        self, gap: Tensor, batch: Batch, t: Tensor, interpolant: Schedule, objective: Objective
    ) -> Tensor:
        """Return the loss [B]; a loss that needs more of the batch than its gaps replaces this."""
        return self.per_sample(gap, t, interpolant, objective)


class Loss(SampleLoss):
    """The loss of one sample, and its weight by t.

    `pseudo_huber` is sqrt(|gap|^2 + c^2) - c (Lee et al. 2024): far pairs weigh less. `normalised`
    divides each sample by its own loss: all times get equal weight (Kim et al. 2025).
    """

    name: Literal["mse", "pseudo_huber"] = "mse"
    """`mse` is the squared error, which learns the mean; `pseudo_huber` gives less weight to pairs
    with a large error, and learns about their median: not for the independent coupling."""
    c: float | None = Field(default=None, gt=0, le=1e6)
    """Where pseudo_huber turns from square to linear, in units of |gap|. null is 0.00054 times the
    dimension of the data."""
    normalised: bool = False
    """Whether each sample's loss is divided by its own value: all samples get equal weight. It
    steadies objective mean_flow, and learns no mean: where paths cross it goes to the nearest."""
    weight: Literal["one", "inverse_t", "velocity"] = "one"
    """Weight by t: `one`, `inverse_t` (1 / t), or `velocity` (for objectives noise and target:
    minimises the error of the velocity)."""

    @property
    def learns_mean(self) -> bool:  # type: ignore[override]
        """Whether it is the square, whose minimiser is the mean; weights by t change nothing."""
        return self.name == "mse" and not self.normalised

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
        if self.weight == "inverse_t":
            return value * (1 / t.clamp(min=EDGE))
        if self.weight == "velocity" and objective in ("noise", "target"):
            a, b, da, db = interpolant.at(t, t)
            return value * ((a * db - da * b) / (a if objective == "noise" else b)).square()
        return value


def flow_matching_loss(
    network: Callable[..., Tensor],
    batch: Batch,
    interpolant: Schedule = Linear(),
    objective: Objective = "velocity",
    loss: SampleLoss = Loss(),
    rule: FlowMap = MEAN_FLOW,
) -> tuple[Tensor, Tensor]:
    """Return the loss of each sample [B], whose mean is minimised, and the mean square error [].

    The network is called as (x [B, *D], t [B]), then the label if the batch has labels. A velocity,
    however computed, has the objective `velocity`, so losses compare. The error has no gradient.
    """
    t = batch.t.clamp(*usable_times(interpolant, objective))
    x, u = interpolate(interpolant, batch.target, batch.source, t)
    if objective == "mean_flow":
        gap = rule.gap(network, replace(batch, t=t), x, u, interpolant)
    else:
        aim = {"velocity": u, "noise": batch.source, "target": batch.target}[objective]
        gap = (network(x, t) if batch.label is None else network(x, t, batch.label)) - aim
    return loss.of_batch(gap, batch, t, interpolant, objective), gap.detach().square().mean()
