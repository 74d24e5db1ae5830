"""Reading a coupling: open it, read its pairs into memory, verify every byte."""

import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import groupby, pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet as pq
import torch
from pydantic import ValidationError
from torch import Tensor

from fmcore.checked import MEND, opened
from fmcore.conditions import table as conditions
from fmcore.conditions.table import Table
from fmcore.coupling.manifest import MANIFEST, check
from fmcore.coupling.noise import NOT_REAL
from fmcore.coupling.pairs import Pairs, joined
from fmcore.coupling.remote import SCHEME, Remote
from fmcore.coupling.source import ORIGINALS, SAMPLES, Source
from fmcore.coupling.write import COLUMNS, About
from fmcore.settings import ReflowError, derive_seed

Split = Literal["train", "held_out", "all"]
Group = tuple[str, int, int]
"""A row group: its file, its number there and its rows."""


@dataclass(frozen=True)
class Coupling:
    """An opened coupling: its folder, its manifest's content, and S3 where its shards are there."""

    path: Path
    about: About
    shards: list[dict[str, Any]]
    remote: Remote | None = None

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
        samples = _opened(self.path / SAMPLES, self.remote and self.remote.below(SAMPLES))
        pairs = read(samples, sources=False)
        return Source(shape, pairs.target, pairs.real_id)

    @cached_property
    def originals(self) -> "Coupling":
        """The prepared samples as they were before a codec encoded them; itself without one."""
        if self.about.codec is None:
            return self
        return _opened(self.path / ORIGINALS, self.remote and self.remote.below(ORIGINALS))

    @cached_property
    def conditions(self) -> Table | None:
        """The table of conditions, of which a label is a row; None for plain labels."""
        about, file = self.about.conditions, self.path / conditions.FILE
        if about is None:
            return None
        if self.remote is not None and not file.exists():
            return conditions.parse(self.remote.read(conditions.FILE), about, file)
        return conditions.read(self.path, about)

    @cached_property
    def train_source(self) -> Source:
        """The source that training draws from: no sample of it is held out."""
        return self.source.split(held_out=False)

    @cached_property
    def held_out_source(self) -> Source:
        """The source of held-out pairs."""
        return self.source.split(held_out=True)

    @cached_property
    def groups(self) -> list[Group]:
        """Every row group, in order."""
        found = []
        for shard in self.shards:
            with readable(self.path / shard["file"]):
                metadata = pq.read_metadata(self.file(shard["file"], peek=True))
            for i in range(metadata.num_row_groups):
                found.append((shard["file"], i, metadata.row_group(i).num_rows))
        return found

    def file(self, name: str, *, peek: bool = False) -> Path | pa.NativeFile:
        """Return a shard for Arrow to read: fetched and checked, unless it is only to `peek` in."""
        if self.remote is None:
            return self.path / name
        if peek:
            return self.remote.peek(name)
        return self.remote.open(self.shard(name))

    def shard(self, name: str) -> dict[str, Any]:
        """Return what the manifest says of the shard in the file `name`."""
        return next(shard for shard in self.shards if shard["file"] == name)


@contextmanager
def readable(path: Path) -> Iterator[Path]:
    """Raise whatever Arrow says of a file that it cannot read as a ReflowError of one line."""
    try:
        yield path
    except (OSError, ValueError, pa.ArrowException) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0][:120]
        raise ReflowError(f"{path}: missing or damaged ({reason}); {MEND}") from error


def open_coupling(path: Path | str) -> Coupling:
    """Open the coupling in the folder `path`: its manifest is read, its rows are not.

    `path` may be a URL, `s3://bucket/folder`, or a folder that says where in S3 the shards are.
    """
    if str(path).startswith(SCHEME):
        return _opened(Path(str(path)), Remote(str(path).rstrip("/")))
    return _opened(Path(path), Remote.of(Path(path)))


def _opened(path: Path, remote: Remote | None) -> Coupling:
    file = path / MANIFEST
    try:
        content = remote.read(MANIFEST) if remote and not file.exists() else file.read_bytes()
        manifest = opened(content, file, required=False)  # earlier versions wrote no hash
        check(manifest, file)
        return Coupling(path, About(**manifest["about"]), manifest["shards"], remote)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise ReflowError(
            f"{path}: not a coupling, {MANIFEST} is missing; `reflow run` makes or restores it"
        ) from error
    except (KeyError, TypeError, AttributeError, ValueError, ValidationError) as error:
        reason = str(error).splitlines()[0]
        raise ReflowError(f"{file}: not a manifest of a coupling ({reason}); {MEND}") from error


def _columns(coupling: Coupling) -> set[str]:
    stored = not coupling.independent and coupling.about.form.has_source
    states = not coupling.independent and coupling.about.form.store.pieces > 1
    kept = ({"source"} if stored else set()) | ({"trajectory"} if states else set())
    return {"pair_id", "target", "split"} | kept


def open_shard(coupling: Coupling, name: str, *, peek: bool = False) -> pq.ParquetFile:
    """Open one shard with checksums on; raise ReflowError for a file of another coupling.

    With `peek`, a column or two will be read: a shard elsewhere is not fetched whole.
    """
    path = coupling.path / name
    with readable(path):
        content = coupling.file(name, peek=peek)
        file = pq.ParquetFile(content, page_checksum_verification=True)
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
    for name in {"target", "source", "trajectory"} & set(schema.names):
        kind = schema.field(name).type
        if expected := coupling.about.form.wrong(name, kind):
            raise ReflowError(f"{path}: column {name!r} is {kind}, expected {expected}")
    with readable(path):
        stated = json.loads((schema.metadata or {}).get(b"fm", b"null"))
    if isinstance(stated, dict) and stated.get("pairs") == coupling.about.pairs:
        del stated["pairs"]  # shards of an earlier version hold it
    if stated != coupling.about.in_shard:
        raise ReflowError(f"{path}: belongs to another coupling than the manifest beside it")
    return file


def tables(coupling: Coupling, groups: Iterable[Group]) -> Iterator[pa.Table]:
    """Read some row groups, one at a time; a shard is opened once, the next one fetched ahead."""
    listed = list(groups)
    names = list(dict.fromkeys(name for name, _, _ in listed))
    following = dict(pairwise(names))
    for name, of_shard in groupby(listed, key=lambda group: group[0]):
        file = open_shard(coupling, name)
        if coupling.remote and name in following:
            coupling.remote.fetch_ahead(coupling.shard(following[name]))
        for _, index, _ in of_shard:
            with readable(coupling.path / name):
                rows = file.read_row_group(index)
            yield rows


def decode(coupling: Coupling, rows: pa.Table, split: Split, *, sources: bool) -> Pairs:
    """Decode the Arrow rows of a split; an independent coupling gets a fixed source if `sources`.

    A held-out pair has a held-out source where sources are real.
    """
    form = coupling.about.form
    kept = np.arange(rows.num_rows)
    if split != "all":
        kept = np.flatnonzero(pa.compute.equal(rows["split"], split).to_numpy())

    def column(values: pa.ChunkedArray) -> Tensor:
        return torch.from_numpy(values.to_numpy()[kept])

    label = column(rows["label"]) if "label" in rows.column_names else None
    real_id = None
    if "real_id" in rows.column_names:
        real_id = column(rows["real_id"].fill_null(NOT_REAL))
    target, ids = torch.from_numpy(form.target(rows)[kept]), column(rows["pair_id"])
    pairs = Pairs(ids, target, target, label, coupling.independent, real_id)
    if not coupling.independent:
        source = torch.from_numpy(form.source(rows, coupling.path)[kept])
        states = form.trajectory(rows)
        trajectory = None if states is None else torch.from_numpy(states[kept])
        guided = coupling.about.guided or 1.0
        return replace(pairs, source=source, guided=guided, trajectory=trajectory)
    if coupling.source.samples is not None:
        pairs = replace(pairs, pool=coupling.train_source.samples)
    return replace(pairs, source=_fixed_source(coupling, pairs)) if sources else pairs


def _fixed_source(coupling: Coupling, pairs: Pairs) -> Tensor:
    seed, ids = derive_seed(coupling.about.seed, "held_out"), pairs.pair_id.numpy()
    if coupling.source.samples is None:
        return coupling.source.draw(seed, ids)
    source, held = torch.empty_like(pairs.target), pairs.held_out
    source[~held] = coupling.train_source.draw(seed, ids[~held.numpy()])
    if bool(held.any()):
        source[held] = coupling.held_out_source.draw(seed, ids[held.numpy()])
    return source


def parts(
    coupling: Coupling, groups: Iterable[Group], split: Split, *, sources: bool = True
) -> Iterator[Pairs]:
    """Read the pairs of a split from some row groups, one after another.

    Without `sources`, the source of an independent coupling is not drawn: it is the target.
    """
    for rows in tables(coupling, groups):
        yield decode(coupling, rows, split, sources=sources)


def labels(coupling: Coupling) -> Tensor | None:
    """Read the label of every pair [N] and nothing else; None if the coupling has no labels."""
    files = [open_shard(coupling, shard["file"], peek=True) for shard in coupling.shards]
    if any("label" not in file.schema_arrow.names for file in files):
        return None
    return torch.cat([torch.tensor(f.read(columns=["label"])["label"].to_numpy()) for f in files])


def read(
    coupling: Coupling, *, split: Split = "all", limit: int | None = None, sources: bool = True
) -> Pairs:
    """Read the pairs of a split into memory, the first `limit` of them if it is given.

    The source of an independent coupling is fixed noise here, so that a held-out loss or a
    transport cost is the same number each time. Training uses `batches`, which draws new noise.
    Without `sources` it is not drawn: targets and labels take half the memory. One row group at a
    time is decoded beside the pairs.
    """
    rows = sum(group[2] for group in coupling.groups)
    rows = rows if limit is None else min(limit, rows)
    with readable(coupling.path):
        found = joined(parts(coupling, coupling.groups, split, sources=sources), rows)
    pa.default_memory_pool().release_unused()  # Arrow would keep what it read with
    return found
