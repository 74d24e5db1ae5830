"""How the vectors of pairs are on disk: whole, or compact.

Whole, target and source are lists of float32. Compact, noise is not stored: it is a function of
(seed, pair_id) and is drawn again when pairs are read, and a sha256 of each block of it is kept, so
that other noise is an error. Compact targets are two bytes or one for each number. A compact column
has the bytes of a row's numbers, little-endian; Parquet holds short numbers in four bytes each.
"""

import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from pydantic import Field, model_validator
from torch import Tensor

from fmcore.coupling.columns import finite, floats, lists, packed, unpacked
from fmcore.coupling.noise import gaussian_noise
from fmcore.scale import Scale
from fmcore.settings import ReflowError, Settings

KEY = b"store"
"""The key of a compact shard's metadata: rows of a block, what was clipped, hashes of sources."""

BYTES = {"float32": 4, "float16": 2, "uint8": 1}
LEVELS = 255
"""Steps of uint8 between the ends of its range."""

Bound = Annotated[float, Field(ge=-1e12, le=1e12)]


class Store(Settings):
    """What of a pair is on disk; training sees the same sources, and targets as near as stated."""

    source: bool = True
    """Whether sources are stored. With false, noise is drawn again from seed and `pair_id` when
    pairs are read, and checked by its sha256; inverted pairs keep their source. Saves half of the
    bytes where disks or the remote are the limit."""
    target: Literal["float32", "float16", "uint8"] = "float32"
    """Numbers of a target: whole (`float32`), to 1 part in 2048 (`float16`), or one of 256 levels
    from `low` to `high` (`uint8`), the resolution of 8-bit images. Change it when couplings of
    images fill disks."""
    low: Bound | None = None
    """Lowest level of uint8, in the data's own units; smaller values become it and are counted as
    `target_clipped`. null is -1 for images."""
    high: Bound | None = None
    """Highest level of uint8, as `low`. null is 1 for images."""

    pieces: Annotated[int, Field(ge=1, le=256, exclude_if=lambda pieces: pieces == 1)] = 1
    """Into how many pieces of one length in t stored states cut each path, for `train.pieces`; each
    costs the bytes of a target. The solver's grid, or an import's states, need their times. 1
    stores the ends alone; an import left without keeps all it can."""

    @model_validator(mode="after")
    def _range(self) -> "Store":
        if (self.low is None) != (self.high is None):
            raise ValueError("store: give both low and high, or neither")
        if self.low is not None and self.high is not None:
            if self.target != "uint8":
                raise ValueError(f"store: low and high are of uint8, target is {self.target}")
            if self.low >= self.high:
                raise ValueError(f"store: low is {self.low:g}, high {self.high:g}; low is below it")
        return self

    def refusal(self, *, noise: bool, mix: Mapping[Any, float]) -> str | None:
        """Return why sources cannot be left out of pairs from `noise` or not, in the shares `mix`.

        None if they can, or are stored.
        """
        if not self.source and not noise:
            return "false needs noise, which can be drawn again; samples of a data set are stored"
        if not self.source and "generated" not in mix:
            return "false needs generated pairs: the source of an inverted pair is no noise"
        return None

    def settled(self, *, image: bool) -> dict[str, Any] | None:
        """Return what a coupling records; None for pairs that are stored whole."""
        if self.source and self.target == "float32" and self.pieces == 1:
            return None
        if self.target == "uint8" and self.low is None:
            if not image:
                raise ReflowError(
                    "couplings: store.target uint8 needs store.low and store.high, the range of the"
                    " data in its own units; only that of images is known"
                )
            return {**self.model_dump(), "low": -1.0, "high": 1.0}
        return self.model_dump(exclude_none=True)

    def width(self, size: int, inverted: float = 0.0) -> float:
        """Return the bytes of target, source and stored states of a pair, `size` numbers each.

        `inverted` is the share of pairs that keep their source.
        """
        states = (self.pieces - 1) * max(2, BYTES[self.target])
        return size * (BYTES[self.target] + 4 * (1.0 if self.source else inverted) + states)


@dataclass(frozen=True)
class Form:
    """The form of a coupling's vectors on disk.

    `units` are those of its pairs, `seed` and `shape` [*D] those of its noise; a `mixed` coupling
    has the column `kind`.
    """

    store: Store
    units: Scale
    seed: int
    shape: tuple[int, ...]
    mixed: bool

    @property
    def size(self) -> int:
        """Numbers of a sample."""
        return math.prod(self.shape)

    @property
    def whole(self) -> bool:
        """Whether both sides are lists of float32."""
        return self.store.source and self.store.target == "float32"

    @property
    def levels(self) -> bool:
        """Whether targets are one of 256 levels."""
        return self.store.target == "uint8"

    @property
    def has_source(self) -> bool:
        """Whether there is a column of sources."""
        return self.store.source or self.mixed

    def wrong(self, name: str, kind: pa.DataType) -> str | None:
        """Return what is expected of the column `name`, if its type `kind` is something else."""
        size, short = self.size, BYTES[self.store.target]
        listed = self.store.source if name == "source" else self.store.target == "float32"
        if name == "trajectory":
            size, short = size * (self.store.pieces - 1), max(2, short)
        if listed:
            fits = pa.types.is_fixed_size_list(kind) and kind.list_size == size
            return None if fits else f"{size} floats a row"
        width = size * (4 if name == "source" else short)
        fits = pa.types.is_fixed_size_binary(kind) and kind.byte_width == width
        return None if fits else f"{width} bytes a row"

    def columns(
        self,
        ids: NDArray[np.int64],
        target: Tensor,
        source: Tensor | None,
        drawn: NDArray[np.bool_],
        block: int,
    ) -> tuple[dict[str, pa.Array], dict[bytes, str]]:
        """Return the columns of pairs `ids` [N], and the metadata of a shard with them.

        `target` and `source` are [N, *D]; `drawn` [N] says whose source is the noise of its id,
        which is hashed in blocks of `block` pairs.
        Raises ReflowError for a value that is not finite or beyond the range of float16.
        """
        flat = finite(target, "target", ids)
        columns, clipped = {"target": lists(flat)}, 0
        if self.store.target == "float16":
            with np.errstate(over="ignore"):
                short = flat.astype("<f2")
            if np.isinf(short).any():
                raise ReflowError(
                    "couplings: store.target float16 holds numbers to 65,504, the largest of the"
                    f" targets is {np.abs(flat).max():.3g}; store float32"
                )
            columns["target"] = packed(short)
        elif self.store.target == "uint8":
            levels, clipped = self._levels(target)
            columns["target"] = packed(levels)
        if source is not None:
            x = finite(source, "source", ids)
            if self.store.source:
                columns["source"] = lists(x)
            elif self.mixed:
                columns["source"] = packed(x.astype("<f4", copy=False), ~drawn)
        if self.whole:
            return columns, {}
        found: dict[str, Any] = {"rows": block, "clipped": clipped}
        if not self.store.source:
            blocks = [slice(a, a + block) for a in range(0, len(ids), block)]
            found["sources"] = {str(ids[b.start]): _digest(x[b][drawn[b]]) for b in blocks}
        return columns, {KEY: json.dumps(found, sort_keys=True)}

    def states(self, trajectory: NDArray[np.float32], ids: NDArray[np.int64]) -> pa.Array:
        """Return the column of the states [N, K - 1, *D] between both ends of the pairs `ids` [N].

        Targets of one byte or two have states of two: states have no range that is known.
        """
        flat = finite(torch.from_numpy(trajectory), "trajectory", ids)
        if self.store.target == "float32":
            return lists(flat)
        with np.errstate(over="ignore"):
            short = flat.astype("<f2")
        if np.isinf(short).any():
            raise ReflowError("couplings: a state is beyond 65,504; store.target float32 holds it")
        return packed(short)

    def trajectory(self, rows: pa.Table) -> NDArray[np.float32] | None:
        """Return the states [N, K - 1, *D] between both ends of some rows; None without any."""
        count = self.store.pieces - 1
        if not count:
            return None
        column = rows["trajectory"]
        listed = self.store.target == "float32"
        found = floats(column) if listed else unpacked(column, "<f2", count * self.size)
        return found.astype(np.float32, copy=False).reshape(-1, count, *self.shape)

    def target(self, rows: pa.Table) -> NDArray[np.float32]:
        """Return the targets [N, *D] of some rows."""
        if self.store.target == "float32":
            found = floats(rows["target"])
        elif self.store.target == "float16":
            found = unpacked(rows["target"], "<f2", self.size).astype(np.float32)
        else:
            levels = unpacked(rows["target"], "u1", self.size).reshape(-1, *self.shape)
            low, high = self._ends()
            own = torch.from_numpy((low + levels * ((high - low) / LEVELS)).astype(np.float32))
            found = self.units.forward(own).numpy()
        return found.reshape(-1, *self.shape)

    def source(self, rows: pa.Table, place: object) -> NDArray[np.float32]:
        """Return the sources [N, *D] of the rows of whole blocks; noise is drawn again.

        Raises ReflowError, with the file or folder `place`, if that is not the noise of which the
        pairs were made.
        """
        if self.store.source:
            return floats(rows["source"]).reshape(-1, *self.shape)
        ids, drawn = rows["pair_id"].to_numpy(), np.ones(rows.num_rows, dtype=bool)
        if self.mixed:
            drawn = rows["source"].is_null().to_numpy()
        noise = gaussian_noise(self.seed, ids[drawn], self.shape).flatten(1).numpy()
        found = noise
        if self.mixed:
            found = unpacked(rows["source"], "<f4", self.size).copy()
            found[drawn] = noise
        hashes = record(rows.schema.metadata).get("sources", {})
        for block in _blocks(ids, hashes):
            if _digest(found[block][drawn[block]]) != hashes[str(ids[block.start])]:
                raise ReflowError(
                    f"{place}: the sources of pairs {ids[block.start]} to {ids[block.stop - 1]},"
                    " drawn again, are not those of the pairs (sha256): another version of numpy,"
                    " or damage; sample the coupling again, with store.source true to keep them"
                )
        return found.reshape(-1, *self.shape)

    def _ends(self) -> tuple[float, float]:
        low, high = self.store.low, self.store.high
        if low is None or high is None:
            raise ValueError("uint8 without its range")
        return low, high

    def _levels(self, target: Tensor) -> tuple[NDArray[np.uint8], int]:
        """Return the levels [N, D] next to targets, and how many are more than half of one off."""
        low, high = self._ends()
        own = self.units.inverse(target.detach().cpu().float()).flatten(1).numpy()
        level = np.rint((own.astype(np.float64) - low) * (LEVELS / (high - low)))
        clipped = int(((level < 0) | (level > LEVELS)).sum())
        return np.clip(level, 0, LEVELS).astype(np.uint8), clipped


def record(metadata: Mapping[bytes, bytes] | None) -> dict[str, Any]:
    """Return what a shard's metadata say of its compact form; nothing for a whole one."""
    found = json.loads((metadata or {}).get(KEY, b"{}"))
    if not isinstance(found, dict):
        raise ValueError("not the metadata of a compact shard")
    return found


def _digest(rows: NDArray[np.float32]) -> str:
    return hashlib.sha256(np.ascontiguousarray(rows, "<f4").tobytes()).hexdigest()


def _blocks(ids: NDArray[np.int64], hashes: Mapping[str, str]) -> Iterator[slice]:
    """Yield the blocks in which rows with these ids [N] were hashed; the first begins them."""
    firsts = np.flatnonzero(np.isin(ids, [int(key) for key in hashes]))
    if len(ids) and (not len(firsts) or firsts[0] != 0):
        raise ValueError("the rows do not begin where a block of sources does")
    yield from (slice(a, b) for a, b in zip(firsts, [*firsts[1:], len(ids)], strict=True))
