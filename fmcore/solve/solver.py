"""ODE solvers: on a fixed grid a solver is one function of one step; `dopri5` adapts its steps.

The ODE is dx/dt = v(x, t); it maps source (t = 1) to target (t = 0), or back. The grid is
exact: the last step ends on `end` itself, not at a distance epsilon from it.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, pairwise
from typing import Annotated, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from fmcore.matching.conversions import Velocity
from fmcore.settings import GridSize, Settings, Share
from fmcore.solve.adaptive import Adaptive, dopri5

Step = Callable[[Velocity, Tensor, Tensor, Tensor], Tensor]
"""(v, x, t, dt) -> x at t + dt; here v takes the time t [] of all rows."""


def euler(v: Velocity, x: Tensor, t: Tensor, dt: Tensor) -> Tensor:
    """One step of order 1, one evaluation: x + dt v(x, t)."""
    return x + dt * v(x, t)


def midpoint(v: Velocity, x: Tensor, t: Tensor, dt: Tensor) -> Tensor:
    """One step of order 2, two evaluations: the velocity at the middle of an Euler half step."""
    return x + dt * v(x + dt / 2 * v(x, t), t + dt / 2)


def heun(v: Velocity, x: Tensor, t: Tensor, dt: Tensor) -> Tensor:
    """One step of order 2, two evaluations: the mean of both ends (explicit trapezoid)."""
    first = v(x, t)
    return x + dt / 2 * (first + v(x + dt * first, t + dt))


def rk4(v: Velocity, x: Tensor, t: Tensor, dt: Tensor) -> Tensor:
    """One step of order 4, four evaluations: the classical Runge-Kutta rule."""
    k1 = v(x, t)
    k2 = v(x + dt / 2 * k1, t + dt / 2)
    k3 = v(x + dt / 2 * k2, t + dt / 2)
    k4 = v(x + dt * k3, t + dt)
    return x + dt / 6 * (k1 + 2 * k2 + 2 * k3 + k4)


STEPS: dict[str, Step] = {"euler": euler, "midpoint": midpoint, "heun": heun, "rk4": rk4}


class Solver(Settings):
    """Which step, how many, and where: equal steps, shifted (Esser et al. 2024), or `times`."""

    name: Literal["euler", "midpoint", "heun", "rk4"] = "heun"
    """The step: `euler` has order 1, `midpoint` and `heun` order 2, `rk4` order 4, for 1, 2, 2 and
    4 evaluations each."""
    steps: GridSize = 18
    """Number of steps from t = 1 to t = 0. Raise it when gates.solver_gap_rel warns; cost grows
    with it."""
    shift: float = Field(default=1.0, ge=1e-3, le=1e3)
    """Moves the grid: t becomes s t / (1 + (s - 1) t). Above 1 steps are shorter near the source (t
    = 1), as in SD3, and the last one is the longest; below 1 they are shorter near the target; 1 is
    even steps."""
    times: Annotated[tuple[Share, ...] | None, Field(max_length=10_000, strict=False)] = None
    """A grid of your own, falling from 1 to 0, in place of `steps` and `shift`. null is none."""

    @model_validator(mode="before")
    @classmethod
    def _steps_of_times(cls, given: object) -> object:
        times = given.get("times") if isinstance(given, dict) else None
        if isinstance(given, dict) and isinstance(times, list | tuple) and "steps" not in given:
            return {**given, "steps": max(1, len(times) - 1)}
        return given

    @model_validator(mode="after")
    def _times_make_a_grid(self) -> "Solver":
        if self.times is None:
            return self
        falling = all(a > b for a, b in pairwise(self.times))
        if len(self.times) < 2 or self.times[0] != 1 or self.times[-1] != 0 or not falling:
            raise ValueError(f"times must fall from 1 to 0, got {list(self.times)}")
        if self.steps != len(self.times) - 1 or self.shift != 1:
            raise ValueError("times is a whole grid: leave out steps and shift")
        return self

    def grid(self, start: float, end: float) -> Tensor:
        """Return the times [steps + 1] from `start` to `end`, both exact, in float64."""
        grid = torch.linspace(start, end, self.steps + 1, dtype=torch.float64)
        if self.times is not None:
            given = torch.tensor(self.times, dtype=torch.float64)
            grid = given if start > end else given.flip(0)
        elif self.shift == 1:
            return grid
        else:
            grid = self.shift * grid / (1 + (self.shift - 1) * grid)
        return start + (end - start) * (grid - grid[0]) / (grid[-1] - grid[0])

    def refined(self) -> Self:
        """Return the same solver with twice the steps, for error estimates by step doubling."""
        if self.times is None:
            return self.model_copy(update={"steps": 2 * self.steps})
        middle = ((a + b) / 2 for a, b in pairwise(self.times))
        times = sorted((*self.times, *middle), reverse=True)
        return self.model_copy(update={"times": tuple(times), "steps": len(times) - 1})

    def step(self, v: Velocity, x: Tensor, t: Tensor, dt: Tensor) -> Tensor:
        return STEPS[self.name](v, x, t, dt)

    def walk(self, v: Velocity, x: Tensor, grid: Tensor) -> Iterator[Tensor]:
        """Yield x [B, *D] after each step of a grid [steps + 1] in float64."""
        for t, after in pairwise(grid.to(x.device, x.dtype)):
            x = self.step(v, x, t, after - t)
            yield x


@dataclass(frozen=True)
class Solution:
    """Endpoint x [B, *D], counted evaluations, and the trajectory [T+1, B, *D] if asked for.

    `nfe` is the count of every row; for an adaptive solver the largest of its `evaluations` [B].
    """

    x: Tensor
    nfe: int
    trajectory: Tensor | None = None
    evaluations: Tensor | None = None


@torch.no_grad()
def solve(
    velocity: Velocity,
    x: Tensor,
    solver: Solver | Adaptive,
    *,
    start: float = 1.0,
    end: float = 0.0,
    keep_trajectory: bool | Sequence[int] = False,
) -> Solution:
    """Integrate dx/dt = velocity(x, t) from `start` to `end`; x [B, *D] keeps its dtype.

    Of the trajectory, all states are kept, or those after some numbers of steps, in their order.

    >>> solve(lambda x, t: x * 0 + 1, torch.zeros(1, 1), Solver(name="heun", steps=3)).nfe
    6
    """
    if isinstance(solver, Adaptive):
        if keep_trajectory:
            raise ValueError("an adaptive solver keeps no trajectory: each row has its own times")
        x, evaluations = dopri5(velocity, x, solver, start, end)
        return Solution(x, int(evaluations.max()), evaluations=evaluations)
    calls, kept = 0, dict[int, Tensor]()
    wanted = range(solver.steps + 1) if keep_trajectory is True else keep_trajectory or ()

    def v(x: Tensor, t: Tensor) -> Tensor:
        nonlocal calls
        calls += 1  # the NFE counts every call
        return velocity(x, t.expand(len(x)))

    now = x
    for k, now in enumerate(chain([x], solver.walk(v, x, solver.grid(start, end)))):
        if k in wanted:
            kept[k] = now
    return Solution(now, calls, torch.stack([kept[k] for k in wanted]) if wanted else None)
