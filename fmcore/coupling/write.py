"""Writing a coupling: each shard atomically, then the manifest."""

import json
import math
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from fmcore.checked import commit, sealed, sha256, sync
from fmcore.conditions.table import FILE as CONDITIONS
from fmcore.coupling.compact import Form, Store, record
from fmcore.coupling.manifest import MANIFEST, SCHEMA_VERSION
from fmcore.coupling.noise import NOT_REAL, identities, is_held_out
from fmcore.scale import Scale
from fmcore.settings import CONVENTION, ReflowError, Settings

ROW_GROUP_BYTES = 4 << 20
COLUMNS = (
    "pair_id", "target", "source", "trajectory", "label", "solver_gap", "kind", "nfe", "real_id",
    "split",
)  # fmt: skip
"""Every column that a coupling may have; a name with a flipped bit is another."""


class About(Settings):
    """Description of a coupling, kept in the manifest and, but for its size, in every shard.

    `probe` says how the solver was chosen, if it was. `guidance` is the strength with which its
    pairs were made. `guided` is the strength that is in them, for a flow that learns them: that of
    this coupling, or of one further up the chain.
    """

    kind: str
    shape: list[int]
    image: bool = False
    pairs: int = Field(gt=0)
    seed: int
    convention: str = CONVENTION
    schema_version: int = SCHEMA_VERSION
    model: str | None = None
    weights: str | None = None
    solver: dict[str, Any] | None = None
    probe: dict[str, Any] | None = None
    nfe: int | None = None
    audit_every: int | None = None
    guidance: float | None = None
    guided: float | None = None
    mix: dict[str, float] | None = None
    numerics: dict[str, Any] | None = None
    data: dict[str, Any] | None = None
    classes: list[str] | None = None
    scale: dict[str, list[float]] | None = None
    source: dict[str, Any] | None = None
    """The data set of the source; None for N(0, I)."""
    store: dict[str, Any] | None = None
    """What of a pair is on disk, as `Store`; None where both sides are whole."""
    origin: dict[str, Any] | None = None
    """Of pairs from outside: kind, hash of the content, names, and what is stated of them."""
    conditions: dict[str, Any] | None = None
    """The table of conditions by id: its hash, sizes and text encoder; None for plain labels."""
    guidance_within: list[float] | None = None
    """The times between which there was guidance; None for all."""
    codec: dict[str, Any] | None = None
    """What encoded the samples: settings, digest, and what is known of latents; None for none."""

    @property
    def units(self) -> Scale:
        """The scale between the data's own units and those of the pairs."""
        return Scale.of(self.scale)

    @property
    def form(self) -> Form:
        """The form of the pairs on disk."""
        store, shape = Store(**(self.store or {})), tuple(self.shape)
        return Form(store, self.units, self.seed, shape, self.kind == "mixed")

    def carried(self) -> dict[str, Any]:
        """Return what a model made from this one keeps of it."""
        kept = {"classes", "image", "scale", "guided", "source", "conditions", "codec"}
        return self.model_dump(include=kept, exclude_none=True)

    @property
    def in_shard(self) -> dict[str, Any]:
        """What a shard holds: not the number of pairs, so that a larger coupling can keep it."""
        return self.model_dump(exclude_none=True, exclude={"pairs"})


def shard_name(index: int) -> str:
    """Return the file name of shard `index`."""
    return f"part-{index:05d}.parquet"


def table(
    about: About,
    pair_ids: NDArray[np.int64],
    target: Tensor,
    source: Tensor | None = None,
    label: Tensor | None = None,
    solver_gap: NDArray[np.float32] | None = None,
    real_id: NDArray[np.int64] | None = None,
    extra: Mapping[str, NDArray[Any]] | None = None,
) -> pa.Table:
    """Build the Arrow table of some pairs; a `solver_gap` [N] of NaN means not audited.

    `real_id` [N] is the identity of each pair's real sample, `NOT_REAL` where it has none; it
    decides the split. For prepared data it is that of the targets, unless it is given. `extra`
    holds other columns: the `kind` [N] of each pair of a mixture, the `nfe` [N] of an adaptive
    solver, the `trajectory` [N, K - 1, *D] of stored states between both ends.

    Raises ReflowError for a value that is not finite, so that no coupling holds NaN.
    """
    columns: dict[str, pa.Array] = {"pair_id": pa.array(pair_ids, pa.int64())}
    drawn = np.full(len(pair_ids), about.kind == "generated")
    if extra is not None and "kind" in extra:
        drawn = extra["kind"] == "generated"
    size = math.prod(about.shape)
    block = max(1, ROW_GROUP_BYTES // (8 * size + 64))
    vectors, stored = about.form.columns(pair_ids, target, source, drawn, block)
    columns |= vectors
    if label is not None:
        columns["label"] = pa.array(label.numpy(), pa.int64())
    if solver_gap is not None:
        columns["solver_gap"] = pa.array(solver_gap, pa.float32(), mask=np.isnan(solver_gap))
    if real_id is None and about.kind == "independent":
        real_id = identities(target)
    for name, values in (extra or {}).items():
        states = name == "trajectory"
        columns[name] = about.form.states(values, pair_ids) if states else pa.array(values)
    if real_id is not None:
        columns["real_id"] = pa.array(real_id, pa.int64(), mask=real_id == NOT_REAL)
    split = np.where(is_held_out(pair_ids, real_id), "held_out", "train")
    columns["split"] = pa.array(split, pa.string())
    nulls = {"solver_gap", "real_id"} | (set() if about.form.store.source else {"source"})
    fields = [pa.field(name, array.type, nullable=name in nulls) for name, array in columns.items()]
    metadata = {b"fm": json.dumps(about.in_shard, sort_keys=True), **stored}
    return pa.Table.from_arrays(list(columns.values()), schema=pa.schema(fields, metadata))


def packed(rows: pa.Table) -> pa.Buffer:
    """Return the rows of a shard as an Arrow stream: pickle loses that a list holds no nulls."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, rows.schema) as stream:
        stream.write_table(rows)
    return sink.getvalue()


def write_shard(folder: Path, index: int, rows: pa.Table) -> Path:
    """Write shard `index` atomically: temporary name, sync, rename. Returns its path.

    Compression, dictionaries and statistics are off: noise does not compress, and the bytes stay
    a function of the rows. Page checksums are on: without them Parquet detects no flipped bit. They
    do not cover the footer, so the file's sha256 is written beside it, before it, until `finish`.
    """
    width = max(1, rows.nbytes // max(1, rows.num_rows))
    group = record(rows.schema.metadata).get("rows", max(1, ROW_GROUP_BYTES // width))

    def fill(file: Path) -> None:
        pq.write_table(
            rows,
            file,
            compression="none",
            use_dictionary=False,
            write_statistics=False,
            write_page_checksum=True,
            row_group_size=group,
        )

    return _put(folder, index, fill)


def adopt(folder: Path, index: int, shard: Path) -> None:
    """Copy a shard of another coupling into `folder` as shard `index`, as `write_shard` writes."""
    # Not its mode: files of DVC's cache are read-only.
    _put(folder, index, lambda file: shutil.copyfile(shard, file))


def _put(folder: Path, index: int, fill: Callable[[Path], object]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / shard_name(index)
    temporary = folder / f".{path.name}.{os.getpid()}.tmp"

    def write() -> None:
        fill(temporary)
        sync(temporary)
        _record(path).write_text(sha256(temporary))

    commit(temporary, path, write)
    return path


def _record(shard: Path) -> Path:
    """Return the file with the sha256 that a shard had when it was written."""
    return shard.with_name(f".{shard.name}.sha256")


def _as_written(shard: Path) -> bool:
    """Whether the shard has the bytes with which it was written."""
    try:
        return _record(shard).read_bytes() == sha256(shard).encode()
    except OSError:
        return False


def is_whole(path: Path, about: About, ids: range) -> bool:
    """Whether `path` is a complete and undamaged shard of this coupling with the pairs `ids`."""
    return _as_written(path) and holds(path, about, ids)


def holds(path: Path, about: About, ids: range) -> bool:
    """Whether a file is a shard that states this origin and can be read with the pairs `ids`."""
    try:
        rows = pq.read_table(path, page_checksum_verification=True)
        metadata = rows.schema.metadata or {}
        stated = json.loads(metadata.get(b"fm", b"null"))
    except (OSError, ValueError, pa.ArrowInvalid):
        return False
    if stated != about.in_shard or "pair_id" not in rows.column_names:
        return False
    if not about.form.store.source and not _drawn_again(path, about, rows):
        return False
    return np.array_equal(rows["pair_id"].to_numpy(), np.arange(ids.start, ids.stop))


def _drawn_again(path: Path, about: About, rows: pa.Table) -> bool:
    """Whether the sources that a shard does not hold are those of its pairs."""
    try:
        about.form.source(rows, path)
    except (ReflowError, ValueError, KeyError):
        return False
    return True


def finish(folder: Path, about: About, shards: int, *, keep_hashes: bool = False) -> dict[str, Any]:
    """Check that all shards exist, delete all other files, write the manifest last.

    With `keep_hashes` the hashes beside the shards stay, so that a later run may start from them.
    """
    files = []
    for index in range(shards):
        path = folder / shard_name(index)
        if not path.exists():
            raise ReflowError(f"{path}: shard is missing; run the stage again, it continues there")
        if not _as_written(path):
            raise ReflowError(f"{path}: damaged since it was written; run the stage again")
        files.append(
            {
                "file": path.name,
                "rows": pq.read_metadata(path).num_rows,
                "bytes": path.stat().st_size,
                "sha256": sha256(path),
            }
        )
    wanted = {str(f["file"]) for f in files} | ({CONDITIONS} if about.conditions else set())
    if keep_hashes:
        wanted |= {_record(folder / name).name for name in wanted}
    for path in folder.iterdir():
        if path.name not in wanted and not path.is_dir():
            path.unlink()
    rows = sum(int(str(f["rows"])) for f in files)
    if rows != about.pairs:
        raise ReflowError(f"{folder}: {about.pairs} pairs expected, {rows} written; run it again")
    manifest = {"about": about.model_dump(exclude_none=True), "shards": files}
    temporary = folder / f".{MANIFEST}.tmp"

    def write() -> None:
        temporary.write_text(json.dumps(sealed(manifest), indent=2, sort_keys=True) + "\n")
        sync(temporary)

    commit(temporary, folder / MANIFEST, write)
    return manifest
