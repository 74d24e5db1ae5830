"""Gates: numbers that must lie within bounds before the chain goes on, and what to do if not."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import Field, model_validator

from fmcore.settings import Settings


class Level(Settings):
    """Above `warn` a gate warns, above `fail` it stops the chain; null means never."""

    warn: float | None = Field(default=None, ge=0, le=1e12)
    """Above this value the gate warns; null means never."""
    fail: float | None = Field(default=None, ge=0, le=1e12)
    """Above this value the stage fails and the chain stops; null means never."""

    @model_validator(mode="after")
    def _ordered(self) -> "Level":
        if self.warn is not None and self.fail is not None and self.warn > self.fail:
            raise ValueError(f"warn {self.warn:g} lies above fail {self.fail:g}")
        return self


class Gates(Settings):
    """The bounds of each gate: they decide whether a stage is accepted, not what it writes."""

    noise_z: Level = Level(warn=4, fail=6)
    """Largest z-score of mean, variance and fourth moment of the pairs' source against N(0, 1)."""
    noise_repeats: Level = Level(fail=0)
    """How many sources occur twice in a coupling."""
    endpoint_shift: Level = Level(warn=0.05, fail=0.5)
    """Squared gap in mean and spread between generated targets and the data, over the data's
    variance."""
    solver_gap_rel: Level = Level(warn=0.02, fail=0.2)
    """Error of the solver on audited pairs, over the data's standard deviation."""
    held_out_ratio: Level = Level(warn=1.2, fail=2)
    """Loss on held-out pairs over that on trained pairs. Far above 1 the network remembers its
    pairs."""
    cost_rise: Level = Level(warn=0.01, fail=0.1)
    """Rise of the transport cost from the round's coupling to its own paths, over the former.
    Rectification rules out a rise."""
    budget_defect: Level = Level(warn=0.1)
    """Size of the defect in cost(k-1) - cost(k) = S + V, over the former cost. If it is large, the
    velocity is under-fitted or over-fitted."""
    drift_rel: Level = Level(warn=0.1)
    """Error of real samples after inversion and one step back, less that of the flow's own samples,
    over the data's variance."""


WORDS: dict[str, tuple[str, str]] = {
    "noise_z": (
        "the source of the pairs is not standard normal (largest z-score {value:.3g})",
        "source and target may be swapped, or the noise is not drawn per pair",
    ),
    "noise_repeats": (
        "{value:.0f} sources occur twice",
        "pairs with the same noise add nothing: draw it by (seed, pair_id)",
    ),
    "endpoint_shift": (
        "mean and spread of the endpoints differ from the data by {value:.3g} of its variance",
        "train the round longer, or solve with more steps",
    ),
    "solver_gap_rel": (
        "the solver's error is {value:.3g} of the data's standard deviation",
        "take more steps or a solver of higher order",
    ),
    "held_out_ratio": (
        "the loss on held-out pairs is {value:.3g} times that on trained pairs",
        "the network remembers its pairs: more pairs, fewer steps or a smaller network",
    ),
    "cost_rise": (
        "the transport cost rose by {value:.3g} of its former value, which rectification rules out",
        "the round's training has not converged, or another flow made the coupling",
    ),
    "budget_defect": (
        "cost(k-1) - cost(k) differs from S + V by {value:.3g} of the cost",
        "the velocity is under-fitted (positive) or over-fitted (negative)",
    ),
    "drift_rel": (
        "inverted real samples have more error than the flow's own, by {value:.3g} of the variance",
        "the rounds drift from the data: mix inverted real pairs into the coupling",
    ),
}
"""For each gate: what was found, and what to change."""


@dataclass(frozen=True)
class Verdict:
    """The state of a gate for a value, and its message."""

    gate: str
    value: float
    state: Literal["ok", "warn", "fail"]
    says: str


def judge(gates: Gates, values: Mapping[str, Any]) -> list[Verdict]:
    """Judge those of the values that have a gate. The sign of a defect does not matter.

    >>> [v.state for v in judge(Gates(), {"held_out_ratio": 1.5, "loss": 3.0})]
    ['warn']
    """
    found = []
    for name in Gates.model_fields:
        if name not in values:
            continue
        value, level = float(values[name]), getattr(gates, name)
        size = abs(value) if name == "budget_defect" else value
        state: Literal["ok", "warn", "fail"] = "ok"
        if level.warn is not None and not size <= level.warn:
            state = "warn"
        if level.fail is not None and not size <= level.fail:
            state = "fail"
        found.append(Verdict(name, value, state, _words(name, value, level, state)))
    return found


def _words(name: str, value: float, level: Level, state: str) -> str:
    if state == "ok":
        return f"{name} {value:.3g}"
    what, mend = WORDS[name]
    limit = level.fail if state == "fail" else level.warn
    return f"{what.format(value=value)}, {state} level {limit:g} (gates.{name}): {mend}"
