"""A coupling written as others read it, shard by shard, so that it may be larger than memory."""

import io
import json
import os
import shutil
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.lib.format import open_memmap
from safetensors.torch import save_file

from fmcore.checked import sealed
from fmcore.coupling.pairs import Pairs, joined
from fmcore.coupling.read import Coupling, open_coupling, parts
from fmcore.outside.agreement import SAID
from fmcore.outside.kinds import Layout
from fmcore.outside.rows import ORIGIN
from fmcore.outside.states import NAME, TIMES, Times, even
from fmcore.settings import ReflowError

LAYOUTS: tuple[Layout, ...] = get_args(Layout)
MADE_BY = (
    "model", "weights", "solver", "nfe", "guidance", "guidance_within", "guided", "seed", "source",
    "classes", "origin",
)  # fmt: skip
"""What a manifest says of how pairs were made, kept beside exported ones."""
TEXTS = "texts.json"
"""The file beside exported pairs that lists the texts of which a label is the place."""


def export(coupling: Path, out: Path, layout: Layout) -> int:
    """Write the pairs of a coupling into the new folder `out`; return how many there are.

    Targets and sources are float32, in the units of the model, as they are trained on. A file
    beside them says what they are and how they were made, and an import checks it. Raises
    ReflowError if the folder exists, or for prepared data, which has no pairs.
    """
    found = open_coupling(coupling)
    if found.independent:
        raise ReflowError(f"{coupling}: prepared data, which has no pairs; name a coupling")
    if out.exists() or out.is_symlink():
        raise ReflowError(f"{out}: exists; name another folder with --to, or remove it")
    part = out.with_name(f".{out.name}.{os.getpid()}.part")
    try:
        part.mkdir(parents=True)
        WRITERS[layout](part, found)
        (part / ORIGIN).write_text(json.dumps(sealed(_origin(found)), indent=2) + "\n")
        if found.conditions is not None and (texts := found.conditions.texts):
            (part / TEXTS).write_text(json.dumps(texts, ensure_ascii=False, indent=0) + "\n")
        part.rename(out)
    except OSError as error:
        raise ReflowError(f"{out}: cannot be written ({error.strerror or error})") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return found.about.pairs


def _origin(coupling: Coupling) -> dict[str, Any]:
    about = coupling.about.model_dump(exclude_none=True)
    kept = {key: about[key] for key in ("pairs", "shape", "convention", "kind")}
    made = {key: about[key] for key in MADE_BY if key in about}
    same = {key: _sha256(about.get(key)) for key in SAID}  # their paths are of this machine
    units = {"units": "model", "scale": about.get("scale"), "source": None}
    times = list(_times(coupling))
    return {**kept, **units, **same, **made, **({TIMES: times} if times else {})}


def _times(coupling: Coupling) -> Times:
    """Return the times of the states that a coupling keeps, in the order of its column."""
    return even(coupling.about.form.store.pieces)


def _sha256(record: dict[str, Any] | None) -> dict[str, str] | None:
    return None if record is None else {"sha256": record["sha256"]}


def _shards(coupling: Coupling) -> Iterator[tuple[str, Pairs]]:
    """Yield the pairs of each shard, with its number out of how many."""
    for index, shard in enumerate(coupling.shards):
        groups = [group for group in coupling.groups if group[0] == shard["file"]]
        yield (
            f"{index:05d}-of-{len(coupling.shards):05d}",
            joined(parts(coupling, groups, "all"), shard["rows"]),
        )


def _tensors(pairs: Pairs) -> dict[str, torch.Tensor]:
    """Return the arrays that are exported, by name."""
    label = {} if pairs.label is None else {"label": pairs.label}
    states = {} if pairs.trajectory is None else {NAME: pairs.trajectory}
    ends = {"target": pairs.target, "source": pairs.source}
    return {**ends, **label, **states, "pair_id": pairs.pair_id}


def _beside(coupling: Coupling) -> dict[str, torch.Tensor]:
    """Return the array that files of arrays have beside those of the pairs: times of states."""
    times = _times(coupling)
    return {TIMES: torch.tensor(times, dtype=torch.float64)} if times else {}


def _table(pairs: Pairs) -> pa.Table:
    columns: dict[str, pa.Array] = {}
    for name, x in _tensors(pairs).items():
        column = pa.array(x.reshape(-1).numpy())
        for size in reversed(x.shape[1:]):
            column = pa.FixedSizeListArray.from_arrays(column, size)
        columns[name] = column
    return pa.table(columns)


def _parquet(out: Path, coupling: Coupling) -> None:
    for name, pairs in _shards(coupling):
        pq.write_table(_table(pairs), out / f"pairs-{name}.parquet", write_page_checksum=True)


def _npy(out: Path, coupling: Coupling) -> None:
    count, start = coupling.about.pairs, 0
    files: dict[str, Any] = {}
    for _, pairs in _shards(coupling):
        for name, x in _tensors(pairs).items():
            if name not in files:
                shape = (count, *x.shape[1:])
                files[name] = open_memmap(out / f"{name}.npy", "w+", x.numpy().dtype, shape)
            files[name][start : start + len(pairs)] = x.numpy()
        start += len(pairs)
    for file in files.values():
        file.flush()
    for name, x in _beside(coupling).items():
        np.save(out / f"{name}.npy", x.numpy())


def _npz(out: Path, coupling: Coupling) -> None:
    for name, pairs in _shards(coupling):
        tensors = _tensors(pairs) | _beside(coupling)
        arrays: dict[str, Any] = {key: x.numpy() for key, x in tensors.items()}
        np.savez(out / f"pairs-{name}.npz", **arrays)


def _safetensors(out: Path, coupling: Coupling) -> None:
    for name, pairs in _shards(coupling):
        tensors = _tensors(pairs) | _beside(coupling)
        tensors = {key: x.contiguous() for key, x in tensors.items()}
        save_file(tensors, out / f"pairs-{name}.safetensors")


def _pt(out: Path, coupling: Coupling) -> None:
    width = len(str(coupling.about.pairs - 1))
    for _, pairs in _shards(coupling):
        tensors = _tensors(pairs)
        for row, number in enumerate(pairs.pair_id.tolist()):
            own = {key: x[row].clone() for key, x in tensors.items()}
            torch.save(own, out / f"{number:0{width}d}.pt")


def _webdataset(out: Path, coupling: Coupling) -> None:
    for index, (_, pairs) in enumerate(_shards(coupling)):
        with tarfile.open(out / f"pairs-{index:06d}.tar", "w") as archive:
            for row, number in enumerate(pairs.pair_id.tolist()):
                for name, x in _tensors(pairs).items():
                    if name in ("target", "source", NAME):
                        sink = io.BytesIO()
                        np.save(sink, x[row].numpy())
                        _add(archive, f"{number:09d}.{name}.npy", sink.getvalue())
                if pairs.label is not None:
                    label = str(int(pairs.label[row])).encode()
                    _add(archive, f"{number:09d}.label.cls", label)
    sizes = {f"pairs-{i:06d}.tar": shard["rows"] for i, shard in enumerate(coupling.shards)}
    (out / "sizes.json").write_text(json.dumps(sizes, indent=1) + "\n")


def _add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    archive.addfile(member, io.BytesIO(content))


def _datasets(out: Path, coupling: Coupling) -> None:
    """Write Arrow streams and the two json files that `datasets.load_from_disk` reads."""
    names = []
    for name, pairs in _shards(coupling):
        rows = _table(pairs)
        names.append({"filename": f"data-{name}.arrow"})
        file = str(out / f"data-{name}.arrow")
        with pa.OSFile(file, "wb") as sink, pa.ipc.new_stream(sink, rows.schema) as stream:
            stream.write_table(rows, max_chunksize=1000)
    features = {field.name: _feature(field.type) for field in rows.schema}
    state: dict[str, Any] = {
        "_data_files": names,
        "_fingerprint": (coupling.about.model or "reflow")[:16],
        "_format_columns": None,
        "_format_kwargs": {},
        "_format_type": None,
        "_output_all_columns": False,
        "_split": None,
    }
    (out / "state.json").write_text(json.dumps(state, indent=2) + "\n")
    info = {"features": features, "description": "pairs of a rectified flow"}
    (out / "dataset_info.json").write_text(json.dumps(info, indent=2) + "\n")


def _feature(kind: pa.DataType) -> dict[str, Any]:
    if pa.types.is_fixed_size_list(kind):
        inner = _feature(kind.value_type)
        return {"feature": inner, "length": kind.list_size, "_type": "List"}
    return {"dtype": "float32" if kind == pa.float32() else str(kind), "_type": "Value"}


WRITERS: dict[Layout, Callable[[Path, Coupling], None]] = {
    "parquet": _parquet,
    "npy": _npy,
    "npz": _npz,
    "safetensors": _safetensors,
    "pt": _pt,
    "webdataset": _webdataset,
    "datasets": _datasets,
}
