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
