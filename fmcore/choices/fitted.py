"""A multistep solver whose weights are fitted to known paths of the flow at hand.

As Adams-Bashforth, a step adds a weighted sum of the last velocities. There the weights make it
exact for polynomials, here they are those that end nearest to the known paths, step by step: linear
least squares (non-stationary solvers, Shaul et al. 2024, which fit all steps at once by gradients).
"""

from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Annotated, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from fmcore.choices.multistep import AdamsBashforth
from fmcore.matching.conversions import Velocity
from fmcore.solve.solver import Solver

LAST = 8
"""Velocities that a step uses: with all of them the error was hardly smaller."""
RIDGE = 1e-8
"""Share of its own size that is added to a weight's equation: velocities may be nearly equal."""

Weight = Annotated[float, Field(ge=-1e3, le=1e3)]
Row = Annotated[tuple[Weight, ...], Field(max_length=LAST, strict=False)]


class Fitted(Solver):
    """Steps of one evaluation, along sums of the last velocities whose weights are given.

    It holds for the flow that it was fitted to, from source to target.
    """

    name: Literal["fitted"]  # type: ignore[assignment]
    """A step along a sum of the last velocities, one evaluation each, with the weights that `auto`
    found for this flow. A coupling's manifest has them, to be named again."""
    weights: Annotated[tuple[Row, ...], Field(max_length=10_000, strict=False)]
    """For each step the weights of the last velocities, at most 8, the newest last."""

    @model_validator(mode="after")
    def _a_row_for_each_step(self) -> "Fitted":
        if self.times is None or len(self.weights) != self.steps:
            raise ValueError("fitted needs `times`, and in `weights` a row for each step")
        for number, row in enumerate(self.weights, start=1):
            if len(row) != min(number, LAST):
                raise ValueError(f"step {number} has {len(row)} weights, not {min(number, LAST)}")
        return self

    def walk(self, v: Velocity, x: Tensor, grid: Tensor) -> Iterator[Tensor]:
        """Yield x [B, *D] after each step of a grid [steps + 1]."""
        if grid[0] < grid[-1]:
            raise ValueError("a fitted solver goes from source to target only")
        slopes: list[Tensor] = []
        for t, row in zip(grid.to(x.device, x.dtype), self.weights, strict=False):
            slopes = [*slopes, v(x, t)][-LAST:]
            x = _moved(x, row, slopes)
            yield x

    def refined(self) -> AdamsBashforth:  # type: ignore[override]
        """Return Adams-Bashforth of order 4 with twice the steps, for error estimates.

        It is not much nearer to the path than this solver, so the gap is above the error: by 7 to
        50 % on trained flows, more where both are below 0.0005.
        """
        return AdamsBashforth(name="ab4", steps=self.steps, times=self.times).refined()


@torch.no_grad()
def fitted(v: Velocity, path: Callable[[float], Tensor], times: tuple[float, ...]) -> Fitted:
    """Return the solver on the grid `times` (from 1 to 0) that follows `path` most closely.

    `path(t)` is where the samples [B, *D] are at t, `v(x, t)` takes t [B]. Sums are in float64.
    """
    x, rows = path(times[0]), list[tuple[float, ...]]()
    slopes: list[Tensor] = []
    for t, after in pairwise(times):
        slopes = [*slopes, v(x, torch.full((len(x),), t, dtype=x.dtype))][-LAST:]
        a = torch.stack([slope.flatten().double() for slope in slopes])
        size = a.square().sum(dim=1).sqrt().clamp(min=1e-300)
        a = a / size[:, None]
        wanted = a @ (path(after) - x).flatten().double()
        eye = torch.eye(len(a), dtype=torch.float64)
        found = torch.linalg.solve(a @ a.T + RIDGE * eye, wanted) / size
        rows.append(tuple(found.tolist()))
        x = _moved(x, rows[-1], slopes)
    return Fitted(name="fitted", steps=len(rows), times=times, weights=tuple(rows))


def _moved(x: Tensor, row: tuple[float, ...], slopes: list[Tensor]) -> Tensor:
    for weight, slope in zip(row, slopes, strict=True):
        x = x + weight * slope
    return x
