"""Gates: numbers that must lie within bounds before the chain goes on, and what to do if not."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import Field, model_validator

from fmcore.settings import Settings
from fmcore.verdict.errors import quantile, with_error


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
    held_out_rel: Level = Level(warn=1, fail=100)
    """Loss on held-out pairs over that of the best constant velocity. Above 1 the network has
    learned less than a mean, far above it has diverged."""
    cost_rise: Level = Level(warn=0.01, fail=0.1)
    """Rise of the transport cost from the round's coupling to its own paths, over the former.
    Rectification rules out a rise."""
    budget_defect: Level = Level(warn=0.1)
    """Size of the defect in cost(k-1) - cost(k) = S + V, over the former cost. If it is large, the
    velocity is under-fitted or over-fitted."""
    drift_rel: Level = Level(warn=0.1)
    """Error of real samples after inversion and one step back, less that of the flow's own samples,
    over the data's variance."""
    recall_lost: Level = Level(warn=0.2)
    """Share of the recall of real data (its floor) that generated samples lack, at the NFE with the
    least distance. Above it parts of the data are missing."""
    memorised: Level = Level(warn=0.3)
    """How much nearer generated samples are to the nearest training sample than held-out data is,
    as a share of the latter. Above it the flow repeats its training data."""
    reconstruction: Level = Level(warn=2, fail=10)
    """Distance to real data of what data.codec gives back of real data, over the floor. No round on
    its latents can do better."""


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
        "train the round longer, solve with more steps or, for data whose means are far from 0 or"
        " whose deviations are far from 1, set data.scale",
    ),
    "solver_gap_rel": (
        "the solver's error is {value:.3g} of the data's standard deviation",
        "take more steps or a solver of higher order",
    ),
    "held_out_ratio": (
        "the loss on held-out pairs is {value:.3g} times that on trained pairs",
        "the network remembers its pairs: more pairs, fewer steps or a smaller network",
    ),
    "held_out_rel": (
        "the loss on held-out pairs is {value:.3g} times that of a velocity that is the same"
        " everywhere",
        "the network has learned less than a mean, or diverged: lower train.lr, raise train.warmup"
        " or train.steps",
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
    "recall_lost": (
        "generated samples lack {value:.3g} of the recall of real data",
        "parts of the data are missing: more pairs, or inverted real pairs in the mix",
    ),
    "memorised": (
        "generated samples are nearer to training data than held-out data is, by {value:.3g} of the"
        " distance",
        "the flow repeats its training data: more data or pairs, fewer steps, a smaller network",
    ),
    "reconstruction": (
        "real data that the codec encoded and decoded is {value:.3g} times as far from real data as"
        " real data is",
        "no round on these latents can do better: take a codec that was trained on such data, or"
        " with more channels",
    ),
}
"""For each gate: what was found, and what to change."""


ROWS = {
    "endpoint_shift": "pairs",
    "solver_gap_rel": "audited",
    "held_out_ratio": "held_out_pairs",
    "held_out_rel": "held_out_pairs",
    "cost_rise": "cost_pairs",
    "budget_defect": "held_out_pairs",
    "drift_rel": "recon_samples",
}
"""For each gate on a mean over rows: the metric that says over how many."""
LEAST_ROWS = 64
"""Rows that decide a gate: with fewer the standard error is itself too uncertain."""
SURE = 2.0
"""Standard errors by which a mean must exceed a level: noise does so once in 44 times. For a mean
over few cuts it is the quantile of Student's t of the same probability."""
STAGES = {
    "calibrate": ("reconstruction",),
    "couple": ("noise_z", "noise_repeats", "endpoint_shift", "solver_gap_rel"),
    "train": ("held_out_ratio", "held_out_rel"),
    "evaluate": ("cost_rise", "budget_defect", "drift_rel", "recall_lost", "memorised"),
}
"""The gates of each stage: one that its metrics do not have was not measured."""
ABSENT = {
    "noise_z": "the source is a data set, not noise",
    "noise_repeats": "the source is a data set, not noise",
    "solver_gap_rel": "the pairs come from outside, with no error of their solver",
    "held_out_ratio": "no held-out pairs",
    "held_out_rel": "no held-out pairs",
    "cost_rise": "a student, guidance, or another interpolant than linear",
    "budget_defect": "a student, guidance, another interpolant than linear, or no held-out pairs",
    "drift_rel": "evaluate.reconstructions is 0, no held-out data, or data without classes",
    "memorised": "no data is held out",
}
"""Why a gate may not have been measured."""
CERTAIN = 0.97725
"""The probability of `SURE` standard errors of a normal law."""
UNIT = (0.1, 10.0)
"""Root mean squares of data for which networks, learning rates and solvers are made."""
BY_SCALE = {"endpoint_shift", "solver_gap_rel", "held_out_ratio", "held_out_rel", "cost_rise"}
"""Gates that data far from unit scale trips, whatever else is right."""

State = Literal["ok", "warn", "fail", "undecided", "not measured"]


@dataclass(frozen=True)
class Verdict:
    """The state of a gate for a value, and its message.

    `undecided` means that too few rows were measured, or that the value lies above the fail level
    with an error so large that the gate may be right; `not measured` that there is no value: they
    neither warn nor fail.
    """

    gate: str
    value: float | None
    state: State
    says: str


def judge(gates: Gates, values: Mapping[str, Any]) -> list[Verdict]:
    """Judge those of the values that have a gate. The sign of a defect does not matter.

    A mean warns or fails only if it exceeds the level by `SURE` standard errors (`<name>_se`, over
    `<name>_cuts` cuts if there are few), and is not decided on fewer than `LEAST_ROWS` rows.

    >>> [v.state for v in judge(Gates(), {"held_out_ratio": 1.5, "loss": 3.0})]
    ['warn']
    >>> [v.state for v in judge(Gates(), {"held_out_ratio": 2.2, "held_out_pairs": 5})]
    ['undecided']
    """
    found = []
    for name in Gates.model_fields:
        if name not in values:
            continue
        value, level = float(values[name]), getattr(gates, name)
        margin = _margin(name, values)
        size = abs(value) if name == "budget_defect" else value
        rows = values.get(ROWS.get(name, ""))
        if rows is not None and rows < LEAST_ROWS and math.isfinite(value):
            found.append(Verdict(name, value, "undecided", _few(name, value, rows)))
            continue
        state: State = "ok"
        if level.warn is not None and not size - margin <= level.warn:
            state = "warn"
        if level.fail is not None and not size <= level.fail:
            noise: State = "warn" if state == "warn" else "undecided"
            state = noise if size - margin <= level.fail else "fail"
        found.append(Verdict(name, value, state, _words(name, value, level, state, values)))
    return found


def absent(stage: str, values: Mapping[str, Any]) -> list[Verdict]:
    """Return a verdict for every gate of a stage (couple, train, evaluate) without a value."""
    return [
        Verdict(name, None, "not measured", f"{name} was not measured{_reason(name)}")
        for name in STAGES[stage]
        if name not in values
    ]


def _reason(name: str) -> str:
    return f": {ABSENT[name]}" if name in ABSENT else ""


def _margin(name: str, values: Mapping[str, Any]) -> float:
    """Return by how much a value must exceed a level: 0 for one without an error."""
    error, cuts = float(values.get(f"{name}_se", 0.0)), values.get(f"{name}_cuts")
    return error * (SURE if cuts is None else quantile(CERTAIN, int(cuts)))


def _few(name: str, value: float, rows: float) -> str:
    word = ROWS[name].rpartition("_")[2]
    return f"{name} {value:.3g} is not decided: {rows:.0f} {word}, {LEAST_ROWS} needed"


def _words(name: str, value: float, level: Level, state: str, values: Mapping[str, Any]) -> str:
    error = float(values.get(f"{name}_se", 0.0))
    if state == "ok":
        return f"{name} {with_error(value, error)}"
    if state == "undecided":
        return f"{name} {with_error(value, error)} is not decided: its error is too large"
    what, mend = WORDS[name]
    limit = f"{state} level {level.fail if state == 'fail' else level.warn or 0:g}"
    if state == "warn" and level.fail is not None and abs(value) > level.fail:
        limit = f"fail level {level.fail:g} within the standard error {error:.2g}, so not failed"
    scale = float(values.get("target_rms", 1.0))
    if name in BY_SCALE and not UNIT[0] <= scale <= UNIT[1]:
        mend = f"the data is far from unit scale (root mean square {scale:.3g}): set data.scale to"
        mend += " standardise it"
    return f"{what.format(value=value)}, {limit} (gates.{name}): {mend}"
