"""ODE solvers on a fixed grid: a solver is one function of one step.

The ODE is dx/dt = v(x, t); it carries source (t = 1) to target (t = 0), or back. The grid is
exact: the last step ends on `end` itself, never at an epsilon beside it.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from fmcore.settings import Settings

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
    """Which step, and how many of equal length."""

    name: Literal["euler", "midpoint", "heun", "rk4"] = "heun"
    steps: int = Field(default=18, gt=0)

    def refined(self) -> "Solver":
        """Return the same solver with twice the steps, for error estimates by step doubling."""
        return Solver(name=self.name, steps=2 * self.steps)


@dataclass(frozen=True)
class Solution:
    """Endpoint x [B, *D], counted evaluations, and the trajectory [T+1, B, *D] if asked for."""

    x: Tensor
    nfe: int
    trajectory: Tensor | None


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
    grid = torch.linspace(start, end, solver.steps + 1, device=x.device, dtype=torch.float64)
    grid = grid.to(x.dtype)
    for i in range(solver.steps):
        x = STEPS[solver.name](v, x, grid[i], grid[i + 1] - grid[i])
        yield x


@torch.no_grad()
def solve(
    velocity: Velocity,
    x: Tensor,
    solver: Solver,
    *,
    start: float = 1.0,
    end: float = 0.0,
    keep_trajectory: bool = False,
) -> Solution:
    """Integrate dx/dt = velocity(x, t) from `start` to `end`; x [B, *D] keeps its dtype.

    >>> solve(lambda x, t: x * 0 + 1, torch.zeros(1, 1), Solver(name="heun", steps=3)).nfe
    6
    """
    calls = [0]
    kept = [x]
    end_point = x
    for end_point in _walk(_count(velocity, calls), x, solver, start, end):
        if keep_trajectory:
            kept.append(end_point)
    return Solution(end_point, calls[0], torch.stack(kept) if keep_trajectory else None)
