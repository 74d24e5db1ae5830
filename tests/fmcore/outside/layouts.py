"""Pairs as others lay them out, written with the tools that they use."""

import io
from pathlib import Path

import numpy as np
import torch
from pydantic import TypeAdapter

from fmcore.couple import couple
from fmcore.coupling.read import open_coupling, read
from fmcore.coupling.verify import verify
from fmcore.outside.imported import Imported
from fmcore.outside.kinds import Import
from fmcore.work.work import Work
from tests.chains import gaussian_data

READ = TypeAdapter(Import)


def data(folder: Path) -> Path:
    """Write prepared data N((2, -1), I) of two dimensions."""
    return gaussian_data(folder / "data", mu=[2.0, -1.0], s=[1.0, 1.0], pairs=60)


def pairs(count: int = 120, seed: int = 0) -> dict[str, np.ndarray]:
    """Return target and source of pairs for that data."""
    source = np.random.default_rng(seed).standard_normal((count, 2), dtype=np.float32)
    return {"target": source + np.array([2, -1], np.float32), "source": source}


def taken(root: Path, *, name: str = "out", shard: int = 50, work=None, **how):
    """Import pairs, check every byte, and return them."""
    extra = {k: how.pop(k) for k in ("pairs", "store", "guidance") if k in how}
    settings = Imported(of=READ.validate_python(how), shard=shard, **extra).settled()
    out = root / name
    work = work or Work(scratch=root / f"{name}-scratch")
    couple(root / "no-model", root / "data", out, root / f"{name}.json", settings, work)
    verify(out)
    return read(open_coupling(out))


def write(kind: str, root: Path, own: dict[str, np.ndarray], names=("target", "source")) -> Path:
    """Write pairs as `kind` says into a new folder, their ends under `names`."""
    folder = root / kind
    arrays = dict(zip(names, (own["target"], own["source"]), strict=True))
    if kind == "datasets":
        import datasets

        features = {
            name: datasets.Sequence(datasets.Value("float32"), length=x.shape[1])
            for name, x in arrays.items()
        }
        rows = {name: list(x) for name, x in arrays.items()}
        datasets.Dataset.from_dict(rows, datasets.Features(features)).save_to_disk(folder)
        return folder
    folder.mkdir()
    half = len(own["target"]) // 2
    if kind == "npy":
        for name, x in arrays.items():
            np.save(folder / f"{name}.npy", x)
    elif kind == "pt":
        for i in range(len(own["target"])):
            row = {n: torch.from_numpy(x[i]) for n, x in arrays.items()}
            torch.save(row, folder / f"pair_{i}.pt")
    else:
        for number, part in enumerate((slice(0, half), slice(half, None))):
            some = {n: x[part] for n, x in arrays.items()}
            _write_file(kind, folder / f"{number}-of-2", some, number * half)
    return folder


def _write_file(kind: str, file: Path, own: dict[str, np.ndarray], first: int) -> None:
    if kind == "npz":
        np.savez(f"{file}.npz", **own)
    elif kind == "safetensors":
        from safetensors.numpy import save_file

        save_file(own, f"{file}.safetensors")
    elif kind == "parquet":
        import pandas as pd

        pd.DataFrame({n: list(x) for n, x in own.items()}).to_parquet(f"{file}.parquet")
    elif kind == "webdataset":
        import webdataset

        with webdataset.TarWriter(f"{file}.tar") as sink:
            count = len(next(iter(own.values())))
            for i in range(count):
                members = {f"{n}.npy": x[i] for n, x in own.items()}
                sink.write({"__key__": f"{first + i:06d}", **members})


def as_bytes(array: np.ndarray) -> bytes:
    """Return an array as the content of a .npy file."""
    sink = io.BytesIO()
    np.save(sink, array)
    return sink.getvalue()
