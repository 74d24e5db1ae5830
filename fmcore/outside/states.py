"""States of paths from outside: at which times they are, and into which pieces they cut a path."""

from collections.abc import Sequence
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, field_validator

from fmcore.coupling.compact import Store
from fmcore.settings import ReflowError, Settings, Time

Times = tuple[float, ...]
"""The times of the states of a path, in the order in which they lie: all up, or all down."""
NAME, TIMES = "states", "times"
"""The arrays of states [N, S, *D] and of their times [S], as `export` names them."""
NEAR = 1e-4
"""How far a time may be from the multiple of 1/K that it stands for: decimals are rounded."""
MOST = 256
"""Pieces of a path, at most."""


class States(Settings):
    """The states of each path between its two ends."""

    name: str = NAME
    """Name of the states: a column, an array or the ending of a file, [S, *D] for each pair."""
    times: Annotated[tuple[Time, ...], Field(strict=False)] | None = None
    """The time of each, in the order in which they lie, such as [0.75, 0.5, 0.25]: 0 is the target,
    1 the source, which may be among them. null takes what the files, or one beside them, say."""

    @field_validator("times")
    @classmethod
    def _in_order(cls, times: Times | None) -> Times | None:
        if times is not None and (wrong := _wrong(times)):
            raise ValueError(wrong)
        return times


def even(count: int) -> Times:
    """Return the times 1 - 1/K, ..., 1/K of the states that a coupling of `count` pieces keeps."""
    return tuple(1 - j / count for j in range(1, count))


def checked(times: object, place: str) -> Times:
    """Return times that a file or a class gives; raise ReflowError if they are none of states."""
    times = times.tolist() if isinstance(times, np.ndarray) else times
    listed: list[Any] = [*times] if isinstance(times, list | tuple) else [times]
    numbers = all(isinstance(t, int | float) for t in listed)
    wrong = _wrong(listed) if numbers else f"expected numbers, got {str(times)[:60]}"
    if wrong:
        raise ReflowError(f"{place}: {TIMES}: {wrong}")
    return tuple(float(t) for t in listed)


def _wrong(times: Sequence[Any]) -> str | None:
    up, down = sorted(set(times)), sorted(set(times), reverse=True)
    if list(times) not in (up, down) or not all(0 <= t <= 1 for t in times):
        shown = ", ".join(f"{t:g}" for t in times[:8])
        return f"expected different times from 1 to 0, or from 0 to 1, got [{shown}]"
    return None if any(0 < t < 1 for t in times) else "expected one between 0 and 1, got none"


def settled(store: Store, times: Times) -> Store:
    """Return `store` with the number of pieces into which the states at `times` cut a path.

    That is `store.pieces` where it is given, else the largest that they allow. Raises ReflowError
    if the states at the ends of its pieces are not there, or states are there and cut none.
    """
    if "pieces" in store.model_fields_set:
        _ = places(times, store.pieces)
        return store
    counts = range(min(len(times) + 1, MOST), 1, -1)
    found = next((count for count in counts if _places(times, count)), 1)
    if times and found == 1:
        raise ReflowError(
            f"couplings: the states are at t = {_shown(times)}, which cut no path into pieces of"
            " one length; give states at multiples of 1/K, or leave them out: store: {pieces: 1}"
        )
    return store.model_copy(update={"pieces": found}) if found > 1 else store


def places(times: Times, pieces: int) -> list[int]:
    """Return the places in `times` of t = 1 - 1/pieces, ..., 1/pieces, in this order.

    Raises ReflowError if one is not there.
    """
    found = _places(times, pieces)
    if found is None:
        there = f"are at t = {_shown(times)}" if times else "are none, or none whose times are said"
        raise ReflowError(
            f"couplings: store.pieces {pieces} keeps states at multiples of 1/{pieces}, the states"
            f" of the pairs {there}; give import.states with its times, or other pieces"
        )
    return found


def _places(times: Times, pieces: int) -> list[int] | None:
    wanted = even(pieces)
    if not times:
        return None if wanted else []
    near = [int(np.abs(np.subtract(times, t)).argmin()) for t in wanted]
    good = all(abs(times[i] - t) <= NEAR for i, t in zip(near, wanted, strict=True))
    return near if good else None


def apart(x: NDArray[Any], times: Times, place: object) -> NDArray[Any]:
    """Return states [N, ...] as [N, S, ...], a state for each of the `times` [S].

    Raises ReflowError for another number of states.
    """
    count = len(times)
    if x.ndim == 2 and x.shape[1] % count == 0:  # flat rows
        return x.reshape(len(x), count, -1)
    if x.ndim < 3 or x.shape[1] != count:
        raise ReflowError(
            f"{place}: the states of a pair have the shape {list(x.shape[1:])}, their times are"
            f" {count}: [{_shown(times)}]; give a time for each state"
        )
    return x


def _shown(times: Times) -> str:
    more = ", ..." if len(times) > 6 else ""
    return ", ".join(f"{t:.6g}" for t in times[:6]) + more
