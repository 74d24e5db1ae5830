"""ODE solvers: on a fixed grid a solver is one function of one step; `dopri5` adapts its steps.

The ODE is dx/dt = v(x, t); it carries source (t = 1) to target (t = 0), or back. The grid is
exact: the last step ends on `end` itself, never at an epsilon beside it.
"""

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, Any, ClassVar, Literal, Self, cast

import torch
from pydantic import BeforeValidator, Field, model_validator
from torch import Tensor

from fmcore.matching.conversions import Velocity
from fmcore.own import Own
from fmcore.settings import Settings
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


class StepRule(Settings):
    """The base of a solver of your own (`name: custom`): one step, and its settings as fields.

    The grid (`steps`, `shift`, `times`) stands beside them in params.yaml. Evaluations are counted
    where they happen. That a constant velocity is followed exactly is checked when it is read.
    """

    @abstractmethod
    def step(self, v: Velocity, x: Tensor, t: Tensor, dt: Tensor) -> Tensor:
        """Return x [B, *D] at t + dt; t and dt are scalars, dt < 0 towards the target.

        `v(x, s)` is the velocity [B, *D] at x [B, *D] and a scalar time s.
        """


class Solver(Settings):
    """Which step, how many, and where: equal steps, steps shifted to the noise, or `times`.

    `shift` s maps t to s t / (1 + (s - 1) t) (Esser et al. 2024); above 1 it takes shorter steps
    near the target. `times` is a grid of your own, from 1 down to 0.
    """

    name: Literal["euler", "midpoint", "heun", "rk4"] = "heun"
    steps: int = Field(default=18, gt=0)
    shift: float = Field(default=1.0, gt=0)
    times: Annotated[tuple[float, ...] | None, Field(strict=False)] = None

    @model_validator(mode="before")
    @classmethod
    def _steps_of_times(cls, given: dict[str, object]) -> dict[str, object]:
        times = given.get("times")
        if isinstance(times, list | tuple) and "steps" not in given:
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
        middle = [(a + b) / 2 for a, b in pairwise(self.times)]
        times = sorted([*self.times, *middle], reverse=True)
        return self.model_copy(update={"times": tuple(times), "steps": len(times) - 1})

    def step(self, v: Velocity, x: Tensor, t: Tensor, dt: Tensor) -> Tensor:
        """Return x [B, *D] at t + dt."""
        return STEPS[self.name](v, x, t, dt)


class Custom(Own, Solver):
    """A solver of the user's own on a fixed grid, a subclass of `StepRule`."""

    base: ClassVar[type] = StepRule
    name: Literal["custom"]  # type: ignore[assignment]

    def check(self, own: StepRule) -> None:
        """Check that a constant velocity is followed exactly."""
        x, t, dt = torch.zeros(3, 2), torch.tensor(0.75), torch.tensor(-0.25)
        found = own.step(lambda x, t: torch.ones_like(x), x, t, dt)
        if found.shape != x.shape or not bool(((found - dt).abs() <= 1e-5).all()):
            raise ValueError("a step of dx/dt = 1 must return x + dt")

    def step(self, v: Velocity, x: Tensor, t: Tensor, dt: Tensor) -> Tensor:
        """Return the user's step."""
        return cast(Tensor, self.own.step(v, x, t, dt))


OdeSolver = Annotated[Solver | Custom | Adaptive, Field(discriminator="name")]


def _heun_unless_named(value: Any) -> Any:
    return {"name": "heun", **value} if isinstance(value, dict) else value


GridSolver = Annotated[
    Solver | Custom, Field(discriminator="name"), BeforeValidator(_heun_unless_named)
]
"""A solver on a fixed grid."""


@dataclass(frozen=True)
class Solution:
    """Endpoint x [B, *D], counted evaluations, and the trajectory [T+1, B, *D] if asked for.

    `nfe` is the number of evaluations of every row, of an adaptive solver their largest, whose
    numbers for each row are then `evaluations` [B].
    """

    x: Tensor
    nfe: int
    trajectory: Tensor | None = None
    evaluations: Tensor | None = None


@torch.no_grad()
def solve(
    velocity: Velocity,
    x: Tensor,
    solver: OdeSolver,
    *,
    start: float = 1.0,
    end: float = 0.0,
    keep_trajectory: bool = False,
) -> Solution:
    """Integrate dx/dt = velocity(x, t) from `start` to `end`; x [B, *D] keeps its dtype.

    >>> solve(lambda x, t: x * 0 + 1, torch.zeros(1, 1), Solver(name="heun", steps=3)).nfe
    6
    """
    if isinstance(solver, Adaptive):
        if keep_trajectory:
            raise ValueError("an adaptive solver keeps no trajectory: each row has its own times")
        x, evaluations = dopri5(velocity, x, solver, start, end)
        return Solution(x, int(evaluations.max()), evaluations=evaluations)
    calls, kept = 0, [x]

    def v(x: Tensor, t: Tensor) -> Tensor:
        nonlocal calls
        calls += 1  # the NFE, counted where it happens
        return velocity(x, t.expand(len(x)))

    for t, after in pairwise(solver.grid(start, end).to(x.device, x.dtype)):
        x = solver.step(v, x, t, after - t)
        if keep_trajectory:
            kept.append(x)
    return Solution(x, calls, torch.stack(kept) if keep_trajectory else None)
