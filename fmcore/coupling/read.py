"""Reading a coupling: open it, read its pairs into memory, verify every byte."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from pydantic import ValidationError
from torch import Tensor

from fmcore.checked import MEND, read_json, sha256
from fmcore.coupling.manifest import MANIFEST
from fmcore.coupling.noise import NOT_REAL, is_held_out
from fmcore.coupling.source import SAMPLES, Source
from fmcore.coupling.write import COLUMNS, SCHEMA_VERSION, About
from fmcore.settings import ReflowError, derive_seed

Split = Literal["train", "held_out", "all"]


@dataclass(frozen=True)
class Pairs:
    """Some pairs in memory: ids [N], target and source [N, *D], label [N] or None.

    `real_id` [N] is the identity of the real sample of each pair, None where no pair has one.
    Training draws the source of `independent` pairs from the real samples `pool` [M, *D]; None is
    noise. `guided` is the guidance in the pairs, their own or one further up the chain; 1 is none.

    Training draws a new source for `independent` pairs at every step; here it is a fixed one.
    """

    pair_id: Tensor
    target: Tensor
    source: Tensor
    label: Tensor | None = None
    independent: bool = False
    real_id: Tensor | None = None
    pool: Tensor | None = None
    guided: float = 1.0

    def __len__(self) -> int:
        return len(self.target)

    @property
    def held_out(self) -> Tensor:
        """Which pairs [N] never train, here or in another coupling."""
        real_id = None if self.real_id is None else self.real_id.numpy()
        return torch.from_numpy(is_held_out(self.pair_id.numpy(), real_id))

    def lengths(self) -> Tensor:
        """Return |target - source| [N]."""
        gap = (self.target - self.source).flatten(1)
        return torch.linalg.vector_norm(gap, dim=1)  # type: ignore[no-any-return]

    def rows(self, index: Tensor) -> "Pairs":
        """Return the pairs at the positions `index` [M]."""
        names = ("pair_id", "target", "source", "label", "real_id")
        taken = {name: value for name in names if (value := getattr(self, name)) is not None}
        return replace(self, **{name: v.index_select(0, index) for name, v in taken.items()})


@dataclass(frozen=True)
class Coupling:
    """An opened coupling: its folder and the content of its manifest."""

    path: Path
    about: About
    shards: list[dict[str, Any]]

    @property
    def independent(self) -> bool:
        """Whether training draws the source: prepared data is a coupling without a source."""
        return self.about.kind == "independent"

    @cached_property
    def source(self) -> Source:
        """The source of which prepared data are the target side; real samples are in memory."""
        shape = tuple(self.about.shape)
        if self.about.source is None:
            return Source(shape)
        pairs = read(open_coupling(self.path / SAMPLES))
        return Source(shape, pairs.target, pairs.real_id)

    @cached_property
    def train_source(self) -> Source:
        """The source that training draws from: no sample of it is held out."""
        return self.source.split(held_out=False)

    @cached_property
    def held_out_source(self) -> Source:
        """The source of held-out pairs."""
        return self.source.split(held_out=True)

    @cached_property
    def groups(self) -> list[tuple[str, int, int]]:
        """(file, row group, rows) of every row group, in order."""
        found = []
        for shard in self.shards:
            with readable(self.path / shard["file"]) as file:
                metadata = pq.read_metadata(file)
            for i in range(metadata.num_row_groups):
                found.append((shard["file"], i, metadata.row_group(i).num_rows))
        return found


@contextmanager
def readable(path: Path) -> Iterator[Path]:
    """Raise whatever Arrow says of a file that it cannot read as a ReflowError of one line."""
    try:
        yield path
    except (OSError, ValueError, pa.ArrowException) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0][:120]
        raise ReflowError(f"{path}: missing or damaged ({reason}); {MEND}") from error


def open_coupling(path: Path | str) -> Coupling:
    """Open the coupling in the folder `path`: its manifest is read, its rows are not."""
    path = Path(path)
    file = path / MANIFEST
    try:
        manifest = read_json(file, required=False)  # earlier versions wrote none; shards have some
        version = manifest["about"].get("schema_version")
        if version != SCHEMA_VERSION:
            raise ReflowError(
                f"{file}: schema version {version}, this program reads {SCHEMA_VERSION};"
                " sample the coupling again or use the version that wrote it"
            )
        for shard in manifest["shards"]:
            if Path(shard["file"]).name != shard["file"]:
                raise ReflowError(
                    f"{file}: the shard {shard['file']!r} is no file of this folder; sample the"
                    " coupling again, or get it from where it came"
                )
        return Coupling(path, About(**manifest["about"]), manifest["shards"])
    except (FileNotFoundError, NotADirectoryError) as error:
        raise ReflowError(
            f"{path}: not a coupling, {MANIFEST} is missing; `reflow run` makes or restores it"
        ) from error
    except (KeyError, TypeError, AttributeError, ValueError, ValidationError) as error:
        reason = str(error).splitlines()[0]
        raise ReflowError(f"{file}: not a manifest of a coupling ({reason}); {MEND}") from error


def _columns(coupling: Coupling) -> set[str]:
    return {"pair_id", "target", "split"} | (set() if coupling.independent else {"source"})


def open_shard(coupling: Coupling, name: str) -> pq.ParquetFile:
    """Open one shard with checksums on; raise ReflowError for a file of another coupling."""
    path = coupling.path / name
    with readable(path):
        file = pq.ParquetFile(path, page_checksum_verification=True)
        schema = file.schema_arrow
    missing = _columns(coupling) - set(schema.names)
    if missing:
        raise ReflowError(
            f"{path}: a Parquet file of another schema: column {sorted(missing)[0]!r} expected,"
            f" found {', '.join(schema.names)}"
        )
    if foreign := set(schema.names) - set(COLUMNS):
        raise ReflowError(
            f"{path}: column {sorted(foreign)[0]!r} is none of a coupling: damaged, or written by a"
            f" later version; {MEND}"
        )
    size = int(np.prod(coupling.about.shape))
    for name in {"target", "source"} & set(schema.names):
        kind = schema.field(name).type
        if not pa.types.is_fixed_size_list(kind) or kind.list_size != size:
            raise ReflowError(f"{path}: column {name!r} is {kind}, expected {size} floats a row")
    with readable(path):
        stated = json.loads((schema.metadata or {}).get(b"fm", b"null"))
    if isinstance(stated, dict) and stated.get("pairs") == coupling.about.pairs:
        del stated["pairs"]  # shards of an earlier version hold it
    if stated != coupling.about.in_shard:
        raise ReflowError(f"{path}: belongs to another coupling than the manifest beside it")
    return file


def decode(coupling: Coupling, rows: pa.Table) -> Pairs:
    """Decode Arrow rows; an independent coupling gets a fixed source, for held-out pairs.

    A held-out pair has a held-out source where sources are real.
    """
    shape = tuple(coupling.about.shape)

    def vectors(name: str) -> Tensor:
        flat = rows[name].combine_chunks()
        flat = flat.flatten() if isinstance(flat, pa.FixedSizeListArray) else flat
        array = flat.to_numpy(zero_copy_only=False).astype(np.float32, copy=True)
        return torch.from_numpy(array).reshape(-1, *shape)

    ids = rows["pair_id"].to_numpy()
    label = torch.tensor(rows["label"].to_numpy()) if "label" in rows.column_names else None
    real_id = None
    if "real_id" in rows.column_names:
        real_id = torch.tensor(rows["real_id"].fill_null(NOT_REAL).to_numpy())
    target = vectors("target")
    pairs = Pairs(torch.tensor(ids), target, target, label, coupling.independent, real_id)
    if not coupling.independent:
        return replace(pairs, source=vectors("source"), guided=coupling.about.guided or 1.0)
    seed = derive_seed(coupling.about.seed, "held_out")
    if coupling.source.samples is None:
        return replace(pairs, source=coupling.source.draw(seed, ids))
    source, held = torch.empty_like(target), pairs.held_out
    source[~held] = coupling.train_source.draw(seed, ids[~held.numpy()])
    if bool(held.any()):
        source[held] = coupling.held_out_source.draw(seed, ids[held.numpy()])
    return replace(pairs, source=source, pool=coupling.train_source.samples)


def table_of(coupling: Coupling, groups: list[tuple[str, int, int]], split: Split) -> pa.Table:
    """Read the rows of a split from some (file, row group, rows)."""
    tables = []
    for name in dict.fromkeys(file for file, _, _ in groups):
        wanted = [i for file, i, _ in groups if file == name]
        with readable(coupling.path / name):
            tables.append(open_shard(coupling, name).read_row_groups(wanted))
    with readable(coupling.path):
        rows = pa.concat_tables(tables)
    return rows if split == "all" else rows.filter(pa.compute.equal(rows["split"], split))


def labels(coupling: Coupling) -> Tensor | None:
    """Read the label of every pair [N] and nothing else; None if the coupling has no labels."""
    files = [open_shard(coupling, shard["file"]) for shard in coupling.shards]
    if any("label" not in file.schema_arrow.names for file in files):
        return None
    return torch.cat([torch.tensor(f.read(columns=["label"])["label"].to_numpy()) for f in files])


def read(coupling: Coupling, *, split: Split = "all", limit: int | None = None) -> Pairs:
    """Read the pairs of a split into memory, the first `limit` of them if it is given.

    The source of an independent coupling is fixed noise here, so that a held-out loss or a
    transport cost is the same number each time. Training uses `batches`, which draws new noise.
    """
    if limit is None:
        return decode(coupling, table_of(coupling, coupling.groups, split))
    tables: list[pa.Table] = []
    for group in coupling.groups:  # one at a time: a limit bounds the memory too
        tables.append(table_of(coupling, [group], split))
        if sum(t.num_rows for t in tables) >= limit:
            break
    with readable(coupling.path):
        return decode(coupling, pa.concat_tables(tables).slice(0, limit))


def verify(path: Path) -> Coupling:
    """Check every byte: hashes, rows, schema, foreign files, ids; a ReflowError names the fault."""
    coupling = open_coupling(path)
    listed = {s["file"] for s in coupling.shards}
    if coupling.independent and coupling.about.source is not None:
        verify(path / SAMPLES)
        listed |= {SAMPLES}
    for file in sorted(path.iterdir()):
        if file.name not in listed | {MANIFEST}:
            raise ReflowError(f"{file}: foreign file, the manifest does not list it; remove it")
    seen: list[NDArray[np.int64]] = []
    for shard in coupling.shards:
        file = path / shard["file"]
        if not file.exists():
            raise ReflowError(f"{file}: shard is missing; {MEND}")
        size = file.stat().st_size
        if size != shard["bytes"]:
            raise ReflowError(
                f"{file}: truncated or altered: {shard['bytes']} bytes expected, {size} found"
            )
        if sha256(file) != shard["sha256"]:
            raise ReflowError(f"{file}: altered: its sha256 is not the one in the manifest")
        with readable(file):
            ids = open_shard(coupling, shard["file"]).read(columns=["pair_id"])["pair_id"]
        seen.append(ids.to_numpy())
    every = np.concatenate(seen) if seen else np.empty(0, np.int64)
    if not np.array_equal(every, np.arange(coupling.about.pairs)):
        raise ReflowError(
            f"{path}: pair_id must run from 0 to {coupling.about.pairs - 1} once each"
        )
    return coupling
