"""A network as a velocity field: converts its prediction to a velocity, with guidance."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor

from fmcore.choices.interpolants import Interpolant
from fmcore.matching.conversions import to_velocity, usable_times
from fmcore.matching.interpolant import Objective, Schedule, expand
from fmcore.own import read
from fmcore.settings import GuidanceWithin, strength


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
        guidance: float | GuidanceWithin = 1.0,
        span: float | Callable[[Tensor], Tensor] = 0.0,
    ) -> "FieldVelocity":
        """Return the function v(x, t) for label [B] and guidance: v_null + guidance (v - v_null).

        With guidance within some times, v_null is evaluated at those alone.

        `span` is for a network that predicts averages: the mean over [t - span, t], a number or a
        function of t [B]. It is the length of the step that will be taken from t.
        """
        between = usable_times(self.interpolant, self.objective)
        guided = label is not None and guidance != 1
        nulls = (
            torch.zeros(label.shape[0], dtype=torch.int64) if guided and label is not None else None
        )
        return FieldVelocity(self, label, guidance, span, between, nulls)

    def _call(self, x: Tensor, t: Tensor, label: Tensor | None, span: Tensor) -> Tensor:
        if self.objective == "mean_flow":
            return self.network(x, t, label, span)
        return self.network(x, t) if label is None else self.network(x, t, label)


@dataclass(frozen=True)
class FieldVelocity:
    """What `Field.velocity` returns.

    `nulls` [N] counts the evaluations of the null condition for each row, of which `index` [B] are
    at hand; None where there is no guidance.
    """

    field: Field
    label: Tensor | None
    guidance: float | GuidanceWithin
    span: float | Callable[[Tensor], Tensor]
    between: tuple[float, float]
    nulls: Tensor | None = None
    index: Tensor | None = None

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        """Return dx/dt [B, *D] at x [B, *D] and t [B]."""
        field, label, given = self.field, self.label, once(t)
        t = given.clamp(*self.between)
        over = self.span(t) if callable(self.span) else torch.full_like(t, self.span)
        times, over = t.expand(x.shape[0]), over.expand(x.shape[0])
        out = field._call(x, times, label, over)
        if label is not None and self.nulls is not None:
            kept = self._guided(given)
            if kept is None or (len(kept) == 1 and bool(kept)):
                out = self._pulled(out, x, times, label, over)
            elif len(kept) > 1 and bool(kept.any()):  # an adaptive solver: each row has its time
                some = (a[kept] for a in (out, x, times, label, over))
                out = out.masked_scatter(expand(kept, out), self._pulled(*some))
            self._count(kept, x.shape[0])
        return to_velocity(field.interpolant, field.objective, out, x, t)

    def _guided(self, t: Tensor) -> Tensor | None:
        """Return at which times t [B or 1] there is guidance; None for all."""
        if not isinstance(self.guidance, GuidanceWithin):
            return None
        return cast(Tensor, self.guidance.at(t))

    def _pulled(self, out: Tensor, x: Tensor, t: Tensor, label: Tensor, span: Tensor) -> Tensor:
        """Return the prediction `out` [B, *D], moved away from that for no condition."""
        plain = self.field._call(x, t, torch.full_like(label, self.field.classes), span)
        return plain + strength(self.guidance) * (out - plain)

    def _count(self, kept: Tensor | None, rows: int) -> None:
        assert self.nulls is not None
        if kept is None or len(kept) == 1:  # the same for all rows
            more = torch.full((rows,), 1 if kept is None else int(kept))
        else:
            more = kept.long().cpu()
        if self.index is None:
            self.nulls.add_(more)
        else:
            self.nulls[self.index] += more

    def rows(self, kept: Tensor) -> "FieldVelocity":
        """Return the velocity of the rows for which `kept` [B] is true."""
        if self.label is None or self.nulls is None:
            return replace(self, label=None if self.label is None else self.label[kept])
        index = torch.arange(len(self.nulls)) if self.index is None else self.index
        return replace(self, label=self.label[kept], index=index[kept.cpu()])


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
