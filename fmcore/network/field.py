"""A network as a velocity field: converts its prediction to a velocity, with guidance."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from fmcore.choices.interpolants import Interpolant
from fmcore.matching.conversions import Velocity, to_velocity, usable_times
from fmcore.matching.interpolant import Objective, Schedule
from fmcore.own import read


@dataclass(frozen=True)
class Field:
    """dx/dt = v(x, t), by a network that predicts one of four things.

    `network` is called as (x [B, *D], t [B]) and, where there are classes or spans, with the label
    [B] and the span [B] as further arguments.
    """

    network: Callable[..., Tensor]
    interpolant: Schedule
    objective: Objective = "velocity"
    classes: int = 0

    def velocity(
        self,
        label: Tensor | None = None,
        *,
        guidance: float = 1.0,
        span: float | Callable[[Tensor], Tensor] = 0.0,
    ) -> Velocity:
        """Return the function v(x, t) for label [B] and guidance: v_null + guidance (v - v_null).

        `span` is for a network that predicts averages: the mean over [t - span, t], a number or a
        function of t [B]. It is the length of the step that will be taken from t.
        """
        between = usable_times(self.interpolant, self.objective)
        return FieldVelocity(self, label, guidance, span, between)

    def _call(self, x: Tensor, t: Tensor, label: Tensor | None, span: Tensor) -> Tensor:
        if self.objective == "mean_flow":
            return self.network(x, t, label, span)
        return self.network(x, t) if label is None else self.network(x, t, label)


@dataclass(frozen=True)
class FieldVelocity:
    """What `Field.velocity` returns."""

    field: Field
    label: Tensor | None
    guidance: float
    span: float | Callable[[Tensor], Tensor]
    between: tuple[float, float]

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        """Return dx/dt [B, *D] at x [B, *D] and t [B]."""
        field, label = self.field, self.label
        t = once(t).clamp(*self.between)
        over = self.span(t) if callable(self.span) else torch.full_like(t, self.span)
        times, over = t.expand(x.shape[0]), over.expand(x.shape[0])
        out = field._call(x, times, label, over)
        if label is not None and self.guidance != 1:
            null = torch.full_like(label, field.classes)
            plain = field._call(x, times, null, over)
            out = plain + self.guidance * (out - plain)
        return to_velocity(field.interpolant, field.objective, out, x, t)

    def rows(self, kept: Tensor) -> "FieldVelocity":
        """Return the velocity of the rows for which `kept` [B] is true."""
        return replace(self, label=None if self.label is None else self.label[kept])


def once(t: Tensor) -> Tensor:
    """Return the one time [1] of all rows where t [B] is an expanded tensor, else t.

    A solver on a fixed grid has one time for all rows; what depends on the time alone is then
    computed once.
    """
    return t[:1] if t.stride(0) == 0 else t


def maps_to_end(about: dict[str, Any]) -> bool:
    """Return whether the spans of a model all reach t = 0, from its config: rule consistency."""
    return bool(about.get("map", {}).get("name") == "consistency")


def interpolant_of(about: dict[str, Any]) -> Schedule:
    """Return the interpolant that a model's config names; the straight one where it names none."""
    given = about.get("interpolant", {"name": "linear"})
    found: Schedule = read(Interpolant, given, "a model's config.json: interpolant")
    return found
