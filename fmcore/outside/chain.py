"""The pairs of a coupling of another reflow chain: exact, with all that is known of them."""

import hashlib
import json
from bisect import bisect_right
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from fmcore.checked import sha256
from fmcore.coupling.noise import NOT_REAL
from fmcore.coupling.read import Coupling, decode, open_coupling, tables
from fmcore.coupling.write import About
from fmcore.outside.rows import Block, Rows
from fmcore.outside.states import Times, even
from fmcore.settings import ReflowError


class ChainRows(Rows):
    """The pairs of the coupling in a folder, or in S3."""

    def __init__(self, place: str) -> None:
        self.place = place if place.startswith("s3://") else str(Path(place).absolute())
        about = self.coupling.about
        if self.coupling.independent:
            raise ReflowError(f"{place}: prepared data, which has no pairs; name a coupling")
        self.about: About = about
        self.checked: set[str] = set()

    @cached_property
    def coupling(self) -> Coupling:
        """The other coupling, opened."""
        return open_coupling(self.place)

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in vars(self).items() if k not in ("coupling", "_firsts")}

    @property
    def count(self) -> int:
        """The number of pairs."""
        return self.about.pairs

    @property
    def origin(self) -> dict[str, Any]:
        """What the other coupling says of itself."""
        return {"about": self.about.in_shard}

    @property
    def digest(self) -> str:
        """The hash of what the manifest says of all shards; they are checked when they are read."""
        said = [[shard["file"], shard["sha256"]] for shard in self.coupling.shards]
        return hashlib.sha256(json.dumps(said).encode()).hexdigest()

    @cached_property
    def _firsts(self) -> list[int]:
        """The number of the first pair of each row group, then that of all pairs."""
        return [0, *accumulate(rows for _, _, rows in self.coupling.groups)]

    @property
    def times(self) -> Times:
        """The times of the states that the other coupling keeps."""
        return even(self.about.form.store.pieces)

    def read(self, first: int, last: int, *, states: bool = False) -> Block:
        """Return the pairs `first` to `last` - 1; raise ReflowError if a shard is damaged."""
        low = bisect_right(self._firsts, first) - 1
        high = bisect_right(self._firsts, last - 1)
        groups = self.coupling.groups[low:high]
        self._check({name for name, _, _ in groups})
        parts, others = [], []
        for rows in tables(self.coupling, groups):
            parts.append(decode(self.coupling, rows, "all", sources=True))
            others.append(rows)
        cut = slice(first - self._firsts[low], last - self._firsts[low])

        def joined(side: str) -> Any:
            found = [getattr(part, side) for part in parts]
            return None if found[0] is None else np.concatenate([x.numpy() for x in found])[cut]

        table = pa.concat_tables([t.select(self._others(t)) for t in others])
        gap = table["solver_gap"].to_numpy() if "solver_gap" in table.column_names else None
        kind = (
            table["kind"].to_numpy(zero_copy_only=False) if "kind" in table.column_names else None
        )
        if kind is None and self.about.kind not in ("generated", "imported"):
            kind = np.full(table.num_rows, self.about.kind)
        real = joined("real_id")
        return Block(
            joined("target"),
            joined("source"),
            joined("label"),
            None if gap is None else gap.astype(np.float32)[cut],
            real if real is not None and bool((real != NOT_REAL).any()) else None,
            None if kind is None else kind[cut],
            joined("trajectory") if states else None,
        )

    def _others(self, table: pa.Table) -> list[str]:
        return [name for name in ("pair_id", "solver_gap", "kind") if name in table.column_names]

    def _check(self, names: set[str]) -> None:
        """Compare shards with their sha256 in the manifest, each once; S3 is checked on arrival."""
        for name in names - self.checked if self.coupling.remote is None else ():
            file = self.coupling.path / name
            if not file.is_file() or sha256(file) != self.coupling.shard(name)["sha256"]:
                raise ReflowError(f"{file}: missing or altered; fetch that coupling again")
            self.checked.add(name)
