"""Solvers of the ODE by their name in params.yaml."""

from abc import abstractmethod
from typing import Annotated, Any, ClassVar, Literal, cast

import torch
from pydantic import BeforeValidator, Field
from torch import Tensor

from fmcore.matching.conversions import Velocity
from fmcore.own import Own
from fmcore.settings import Settings
from fmcore.solve.adaptive import Adaptive
from fmcore.solve.solver import Solver


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


OdeSolver = Annotated[Solver | Custom | Adaptive, Field(discriminator="name")]


def _heun_unless_named(value: Any) -> Any:
    return {"name": "heun", **value} if isinstance(value, dict) else value


GridSolver = Annotated[
    Solver | Custom, Field(discriminator="name"), BeforeValidator(_heun_unless_named)
]
"""A solver on a fixed grid."""
