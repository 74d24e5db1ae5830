"""ODE solvers: on a fixed grid a solver is one function of one step; `dopri5` adapts its steps.

The ODE is dx/dt = v(x, t); it carries source (t = 1) to target (t = 0), or back. The grid is
exact: the last step ends on `end` itself, never at an epsilon beside it.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from fmcore.settings import Settings
from fmcore.solve.adaptive import dopri5

Velocity = Callable[[Tensor, Tensor], Tensor]
"""(x [B, *D], t [B]) -> dx/dt [B, *D]. Any module, or a lambda."""

Step = Callable[[Velocity, Tensor, Tensor, Tensor], Tensor]


def euler(v: Velocity, x: Tensor, t: Tensor, dt: Tensor) -> Tensor:
    """One step of order 1, one evaluation: x + dt v(x, t)."""
    return x + dt * _at(v, x, t)


def midpoint(v: Velocity, x: Tensor, t: Tensor, dt: Tensor) -> Tensor:
    """One step of order 2, two evaluations: the velocity at the middle of an Euler half step."""
    return x + dt * _at(v, x + dt / 2 * _at(v, x, t), t + dt / 2)


def heun(v: Velocity, x: Tensor, t: Tensor, dt: Tensor) -> Tensor:
    """One step of order 2, two evaluations: the mean of both ends (explicit trapezoid)."""
    first = _at(v, x, t)
    return x + dt / 2 * (first + _at(v, x + dt * first, t + dt))


def rk4(v: Velocity, x: Tensor, t: Tensor, dt: Tensor) -> Tensor:
    """One step of order 4, four evaluations: the classical Runge-Kutta rule."""
    k1 = _at(v, x, t)
    k2 = _at(v, x + dt / 2 * k1, t + dt / 2)
    k3 = _at(v, x + dt / 2 * k2, t + dt / 2)
    k4 = _at(v, x + dt * k3, t + dt)
    return x + dt / 6 * (k1 + 2 * k2 + 2 * k3 + k4)


STEPS: dict[str, Step] = {"euler": euler, "midpoint": midpoint, "heun": heun, "rk4": rk4}


class Solver(Settings):
    """Which step, how many, and where: equal steps, steps shifted to the noise, or `times`.

    `shift` s maps t to s t / (1 + (s - 1) t) (Esser et al. 2024); above 1 it takes shorter steps
    near the target. `times` is a grid of your own, from 1 down to 0.
    """

    name: Literal["euler", "midpoint", "heun", "rk4"] = "heun"
    """The step: `euler` has order 1, `midpoint` and `heun` order 2, `rk4` order 4, for 1, 2, 2 and
    4 evaluations each."""
    steps: int = Field(default=18, gt=0)
    """Number of steps from t = 1 to t = 0. Raise it when gates.solver_gap_rel warns; cost grows
    with it."""
    shift: float = Field(default=1.0, gt=0)
    """Moves the grid: t becomes s t / (1 + (s - 1) t). Above 1 steps are shorter near the target, 1
    is even steps."""
    times: Annotated[tuple[float, ...] | None, Field(strict=False)] = None
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
        if self.times is not None:
            grid = torch.tensor(self.times, dtype=torch.float64)
            grid = grid if start > end else grid.flip(0)
            return start + (end - start) * (grid - grid[0]) / (grid[-1] - grid[0])
        grid = torch.linspace(start, end, self.steps + 1, dtype=torch.float64)
        if self.shift == 1:
            return grid
        shifted = self.shift * grid / (1 + (self.shift - 1) * grid)
        first, last = shifted[0], shifted[-1]
        return start + (end - start) * (shifted - first) / (last - first)

    def refined(self) -> "Solver":
        """Return the same solver with twice the steps, for error estimates by step doubling."""
        if self.times is None:
            return Solver(name=self.name, steps=2 * self.steps, shift=self.shift)
        middle = [(a + b) / 2 for a, b in pairwise(self.times)]
        times = sorted([*self.times, *middle], reverse=True)
        return Solver(name=self.name, times=tuple(times), steps=len(times) - 1)


class Adaptive(Settings):
    """Dormand-Prince 5(4) with a step size of its own for each row."""

    name: Literal["dopri5"]
    rtol: float = Field(default=1e-5, gt=0)
    """Error that a step may have relative to the size of the sample. Lower it for accurate pairs;
    each tenth costs about 1.6 times the evaluations."""
    atol: float = Field(default=1e-5, gt=0)
    """Error that a step may have in absolute terms, in units of the data."""
    max_steps: int = Field(default=1000, gt=0)
    """Steps after which a sample that has not arrived is an error. Raise it for tight
    tolerances."""

    def refined(self) -> "Adaptive":
        """Return the same solver with a tenth of the tolerances."""
        tighter = {"rtol": self.rtol / 10, "atol": self.atol / 10}
        return self.model_copy(update=tighter)


OdeSolver = Annotated[Solver | Adaptive, Field(discriminator="name")]


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


def _at(v: Velocity, x: Tensor, t: Tensor) -> Tensor:
    """Evaluate the velocity with the scalar time t repeated for every row."""
    return v(x, t.expand(x.shape[0]))


def _count(velocity: Velocity, calls: list[int]) -> Velocity:
    """Wrap the velocity so that the NFE is counted where it happens and cannot be wrong."""

    def counted(x: Tensor, t: Tensor) -> Tensor:
        calls[0] += 1
        return velocity(x, t)

    return counted


def _walk(v: Velocity, x: Tensor, solver: Solver, start: float, end: float) -> Iterator[Tensor]:
    """Yield x after each step of the grid."""
    grid = solver.grid(start, end).to(x.device, x.dtype)
    for t, after in pairwise(grid):
        x = STEPS[solver.name](v, x, t, after - t)
        yield x


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
        x, evaluations = dopri5(
            velocity, x, start, end, rtol=solver.rtol, atol=solver.atol, max_steps=solver.max_steps
        )
        return Solution(x, int(evaluations.max()), evaluations=evaluations)
    calls = [0]
    kept = [x]
    end_point = x
    for end_point in _walk(_count(velocity, calls), x, solver, start, end):
        if keep_trajectory:
            kept.append(end_point)
    return Solution(end_point, calls[0], torch.stack(kept) if keep_trajectory else None)
