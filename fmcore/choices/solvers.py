"""Solvers of the ODE by their name in params.yaml."""

from abc import abstractmethod
from collections.abc import Iterable
from typing import Annotated, Any, ClassVar, Literal, cast

import torch
from pydantic import BeforeValidator, Field
from torch import Tensor

from fmcore.choices.multistep import AdamsBashforth
from fmcore.matching.conversions import Velocity
from fmcore.matching.interpolant import Schedule
from fmcore.own import Own
from fmcore.settings import Settings
from fmcore.solve.adaptive import Adaptive
from fmcore.solve.solver import Solver, euler, heun


class StepRule(Settings):
    """The base of a solver of your own (`name: custom`): one step, and its settings as fields.

    The grid (`steps`, `shift`, `times`) is set beside them in params.yaml. Each call of `v` counts
    as an evaluation. When params.yaml is read, the step must follow a constant velocity exactly.
    """

    @abstractmethod
    def step(self, v: Velocity, x: Tensor, t: Tensor, dt: Tensor) -> Tensor:
        """Return x [B, *D] at t + dt; t and dt are scalars, dt < 0 towards the target.

        `v(x, s)` is the velocity [B, *D] at x [B, *D] and a scalar time s.
        """


class Custom(Own, Solver):
    """A solver of the user's own on a fixed grid, a subclass of `StepRule`."""

    base: ClassVar[type] = StepRule
    name: Literal["custom"]  # type: ignore[assignment]
    """A step of the user's own, a subclass of `StepRule`."""

    def check(self, own: StepRule) -> None:
        """Check that a constant velocity is followed exactly."""
        x, t, dt = torch.zeros(3, 2), torch.tensor(0.75), torch.tensor(-0.25)
        found = own.step(lambda x, t: torch.ones_like(x), x, t, dt)
        if found.shape != x.shape or not bool(((found - dt).abs() <= 1e-5).all()):
            raise ValueError("a step of dx/dt = 1 must return x + dt")

    def step(self, v: Velocity, x: Tensor, t: Tensor, dt: Tensor) -> Tensor:
        """Return the user's step."""
        return cast(Tensor, self.own.step(v, x, t, dt))


class HeunToEuler(Solver):
    """Heun, but with an Euler step to t = 0: 2 steps - 1 evaluations (Karras et al. 2022)."""

    name: Literal["heun_to_euler"]  # type: ignore[assignment]
    """Heun with an Euler step at the end, the sampler of EDM: 35 evaluations for 18 steps."""

    def step(self, v: Velocity, x: Tensor, t: Tensor, dt: Tensor) -> Tensor:
        """Return x at t + dt by Heun, or by Euler where t + dt is 0."""
        return heun(v, x, t, dt) if t + dt else euler(v, x, t, dt)


def sampler_name(solver: Solver | Adaptive) -> str:
    """Return a solver's name in metrics: heun_18, shift_3_euler_4, dopri5, dopri5_0.001.

    >>> sampler_name(Solver(name="rk4", steps=12))
    'rk4_12'
    """
    if isinstance(solver, Adaptive):
        own = dict.fromkeys(f"{tolerance:g}" for tolerance in (solver.rtol, solver.atol))
        return "_".join([solver.name] if solver == Adaptive() else [solver.name, *own])
    name = solver.path.partition(":")[2].lower() if isinstance(solver, Custom) else solver.name
    if solver.times is not None:
        name = f"times_{name}"
    elif solver.shift != 1:
        name = f"shift_{solver.shift:g}_{name}"
    return f"{name}_{solver.steps}"


def euler_at(nfe: Iterable[int]) -> list[Solver]:
    """Return Euler with even steps at each number of steps, in order."""
    return [Solver(name="euler", steps=steps) for steps in sorted(set(nfe))]


OdeSolver = Annotated[
    Solver | HeunToEuler | AdamsBashforth | Custom | Adaptive, Field(discriminator="name")
]


PAIRS: dict[str, Solver] = {
    "linear": AdamsBashforth(name="ab4", steps=23, shift=0.5),
    "cosine": Solver(name="rk4", steps=6, shift=0.5),
    "polynomial": Solver(name="rk4", steps=7, shift=0.5),
    "variance_preserving": Solver(name="rk4", steps=10, shift=0.5),
    "variance_exploding": Solver(name="rk4", steps=10, shift=1.5),
}
"""The solver of pairs by interpolant: with few evaluations an endpoint is off by at most 1 % of the
data's standard deviation, half of where gates.solver_gap_rel warns, on velocities in closed form;
that of the linear path also on two trained flows (benchmarks/2026-11_pair_solvers.md)."""


def solver_of_pairs(interpolant: Schedule) -> Solver:
    """Return the solver that makes pairs where none is named; careful for one's own interpolant."""
    return PAIRS.get(getattr(interpolant, "name", ""), Solver(name="rk4", steps=16))


def _heun_unless_named(value: Any) -> Any:
    return {"name": "heun", **value} if isinstance(value, dict) else value


GridSolver = Annotated[
    Solver | HeunToEuler | AdamsBashforth | Custom,
    Field(discriminator="name"),
    BeforeValidator(_heun_unless_named),
]
"""A solver on a fixed grid."""
