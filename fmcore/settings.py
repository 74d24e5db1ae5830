"""The base of every settings class, the one user-facing error, and named seeds."""

import hashlib
from collections.abc import Callable, Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict

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
