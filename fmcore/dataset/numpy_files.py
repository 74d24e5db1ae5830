"""Arrays in numpy's files, .npy and .npz: mapped or streamed, never unpickled."""

import math
import zipfile
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa
from numpy.lib import format as npy_format

from fmcore.dataset.rows import BLOCK_BYTES, Rows, parsing
from fmcore.dataset.tables import Raw
from fmcore.settings import ReflowError


def npy(path: Path) -> Raw:
    """Map the array of a .npy file into memory, without reading it."""
    what = "not a plain .npy array; write it with numpy.save, without pickled objects"
    with parsing(path, what), path.open("rb") as opened:
        shape, fortran, dtype = _header(opened)
        _numbers(path, dtype)
        if not math.prod(shape):
            return np.empty(shape, dtype), None
        start = opened.tell()
        mapped = np.memmap(path, dtype, "r", start, shape, "F" if fortran else "C")
        return np.asarray(mapped), None


def npz(path: Path, key: str | None, label: str | None, beside: str | None = None) -> Raw:
    """Read an array of a .npz file: `key`, else `target`, else the only one that is no label.

    `beside` is the array of conditions, which are no samples either.
    """
    with parsing(path, "not a .npz file that can be read"), zipfile.ZipFile(path) as archive:
        has = [n.removesuffix(".npy") for n in archive.namelist() if n.endswith(".npy")]
        if label is None and "label" in has and key != "label":
            label = "label"
        others = [name for name in has if name not in (label, beside)]
        if key is None:
            key = "target" if "target" in has else others[0] if len(others) == 1 else ""
        for name, setting in ((key, "key"), (label, "label")):
            if name is not None and name not in has:
                raise ReflowError(
                    f"{path}: no array {name!r}; it has: {', '.join(has) or 'none'}; name the"
                    f" right one in data.{setting}"
                )
        target = _member(path, archive, key)
        return target, None if label is None else _label(path, label, _member(path, archive, label))


def _label(path: Path, name: str, found: np.ndarray) -> pa.Array:
    """Return labels [N] or [N, 1] of any byte order."""
    if found.ndim != 1 and found.shape[1:] != (1,):
        raise ReflowError(
            f"{path}: {name!r} has the shape {list(found.shape)}, expected one class for each"
            " sample: number the classes, by argmax where they are one-hot"
        )
    return pa.array(found.reshape(-1).astype(found.dtype.newbyteorder("=")))


def _member(path: Path, archive: zipfile.ZipFile, name: str) -> np.ndarray:
    """Stream one array of a .npz file into a mapped file; zip's checksum is checked on the way."""
    with archive.open(f"{name}.npy") as opened:
        shape, fortran, dtype = _header(opened)
        _numbers(path, dtype, text=True)
        if not shape:
            raise ReflowError(f"{path}: {name!r} is one number, expected an array [N, ...]")
        if fortran:
            shape = shape[::-1]
        width = math.prod(shape[1:]) * dtype.itemsize
        step = max(1, BLOCK_BYTES // max(1, width))
        rows = Rows(dtype)
        for start in range(0, shape[0], step):
            count = min(step, shape[0] - start)
            data = opened.read(count * width)
            rows.append(np.frombuffer(data, dtype).reshape(count, *shape[1:]))
        if opened.read(1):
            raise ValueError("more bytes than its header says")
        found = rows.mapped() if shape[0] else np.empty(shape, dtype)
        return found.T if fortran else found


def _header(opened: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Read the header of an array: its shape, whether columns come first, its type."""
    version = npy_format.read_magic(opened)
    if version == (1, 0):
        return npy_format.read_array_header_1_0(opened)
    return npy_format.read_array_header_2_0(opened)


def _numbers(path: Path, dtype: np.dtype[Any], *, text: bool = False) -> None:
    """Raise ReflowError for what is no number; pickled objects are never loaded."""
    if dtype.hasobject:
        raise ReflowError(
            f"{path}: pickled objects, which may run code, are not loaded; write plain numbers with"
            " numpy.save"
        )
    if dtype.kind not in ("fiubU" if text else "fiub"):
        raise ReflowError(f"{path}: holds {dtype}, expected one array of numbers")
