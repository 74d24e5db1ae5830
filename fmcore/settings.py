"""The base of every settings class, the one user-facing error, and named seeds."""

import hashlib
from collections.abc import Callable, Mapping
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

CONVENTION = "t=0 target (data), t=1 source (noise), v=dx/dt"
"""Written into every model and coupling, because half of the public code has t reversed."""

Log = Callable[[dict[str, float], int], object]
"""The callback to which a verb reports progress: `log({"loss": 0.3}, step)`."""

Accept = Callable[[Mapping[str, Any]], object]
"""Called with a verb's metrics before its outputs are put in place; may raise ReflowError."""


Say = Callable[[str], object]
"""The callback to which a verb tells lines for people."""


def silent(_: str) -> None:
    """Say nothing."""


class ReflowError(Exception):
    """An error that the user can fix: one sentence on what was expected, what was got, the fix."""


class Settings(BaseModel):
    """Frozen and strict: an unknown key, a wrong type, NaN or infinity is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


# Bounds of settings that occur more than once. Each lies far above what any machine can run or any
# study needs, so that a slip of the finger is an error when params.yaml is read, not an hour later.

Seed = Annotated[int, Field(ge=0, le=2**63 - 1)]
"""The seed of named draws; seeds of numpy and torch have 63 bits."""
StepCount = Annotated[int, Field(gt=0, le=10**9)]
"""Steps of an optimiser: ten million million images in batches of ten thousand."""
SampleCount = Annotated[int, Field(gt=0, le=10**9)]
"""Samples or pairs: two floats for each of them are 8 GB."""
SeveralSamples = Annotated[int, Field(gt=1, le=10**9)]
"""Samples of which a variance or a spread is taken."""
BatchSize = Annotated[int, Field(gt=0, le=10**7)]
"""Rows that lie in memory at once."""
GridSize = Annotated[int, Field(gt=0, le=10**5)]
"""Steps of a solver: the rounding of as many float32 sums is larger than the error of the steps."""
Width = Annotated[int, Field(gt=0, le=10**5)]
"""Features of a layer: a square matrix of this size is 40 GB."""
Depth = Annotated[int, Field(gt=0, le=10**3)]
"""Layers or blocks in a row."""
ClassCount = Annotated[int, Field(ge=0, le=10**7)]
"""Classes of a label, or conditions: ImageNet-21k has 21,843 classes, CC3M 3 million captions."""
WorkerCount = Annotated[int, Field(gt=0, le=1024)]
"""Threads or processes of a stage."""
LearningRate = Annotated[float, Field(gt=0, le=1e4)]
"""Learning rate of AdamW, whose steps are about as long as it is."""
Guidance = Annotated[float, Field(ge=0, le=1e3)]
"""Strength of guidance."""
Time = Annotated[float, Field(ge=0, le=1)]
"""A time: 0 is data, 1 the source."""
Share = Annotated[float, Field(ge=0, le=1)]
"""A share, or a time."""
Length = Annotated[float, Field(ge=1e-6, le=1e6)]
"""A length in units of the data: float32 has seven digits."""


class GuidanceWithin(Settings):
    """Guidance at some times only: it costs less and keeps variety (Kynkäänniemi et al. 2024)."""

    strength: Guidance
    """Strength of guidance between the two times; other times are not guided."""
    within: Annotated[tuple[Time, Time], Field(strict=False)]
    """The two times, the smaller first: 0 is data, 1 noise. Outside of them the null condition is
    not evaluated, so a step costs one evaluation, not two."""

    @model_validator(mode="after")
    def _some_times(self) -> "GuidanceWithin":
        if self.within[0] >= self.within[1]:
            raise ValueError(f"within: expected two times, the smaller first, got {self.within}")
        if self.strength == 1:
            raise ValueError("strength: 1 is no guidance; give `guidance: 1` without times")
        return self

    def at(self, t: Any) -> Any:
        """Say whether there is guidance at a time, or at each of the times t [B]."""
        return (t >= self.within[0]) & (t <= self.within[1])


GuidanceOf = Guidance | GuidanceWithin
"""A strength at all times, or `{strength: 3, within: [0.2, 0.8]}`."""


def strength(guidance: float | GuidanceWithin) -> float:
    """Return the strength of guidance at the times where there is some."""
    return guidance.strength if isinstance(guidance, GuidanceWithin) else guidance


MOST_WEIGHTS = 10**11
"""Weights of a network: with AdamW they take 1.6 TB, more than the GPUs of one machine have."""


def check_weights(count: int) -> None:
    """Raise ValueError for a network of more weights than a machine holds."""
    if count > MOST_WEIGHTS:
        raise ValueError(
            f"the network would have about {count:.0e} weights, at most {MOST_WEIGHTS:.0e} fit into"
            " a machine; make it smaller"
        )


def by_name(value: Any) -> Any:
    """Turn the short form `u_shaped` into `{name: u_shaped}`, before settings are checked."""
    return {"name": value} if isinstance(value, str) else value


def derive_seed(seed: int, *names: str | int) -> int:
    """Return a 63-bit seed for the random draw called `names`, so that no two draws share one.

    >>> derive_seed(0, "train", "rf1") == derive_seed(0, "train", "rf1")
    True
    >>> derive_seed(0, "train", "rf1") == derive_seed(0, "train", "rf2")
    False
    """
    text = "/".join(str(part) for part in (seed, *names))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1
