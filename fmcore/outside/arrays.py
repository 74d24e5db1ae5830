"""Pairs in arrays: .npy files side by side, .npz and .safetensors files of named arrays."""

import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format as npy_format
from numpy.typing import NDArray
from safetensors import safe_open

from fmcore.dataset.rows import parsing
from fmcore.outside.rows import Arrays, Piece
from fmcore.outside.states import TIMES
from fmcore.settings import ReflowError

LOCAL = 30
"""Bytes of the fixed part of a member's header in a zip archive."""


class NpyPiece(Piece):
    """A folder of .npy files with one row a pair each, mapped into memory."""

    def __init__(self, place: Path, files: Sequence[Path]) -> None:
        self.place = place
        self.files = {file.stem: file for file in files}
        self.count = _one_count(place, {n: len(_mapped(f)) for n, f in self.files.items()})
        if TIMES in self.files:
            self.times = np.array(_mapped(self.files[TIMES]))

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the files, without .npy."""
        return tuple(self.files)

    def read(self, names: Sequence[str], first: int, last: int) -> Arrays:
        """Return the rows `first` to `last` - 1 of some arrays."""
        return {name: np.array(_mapped(self.files[name])[first:last]) for name in names}


class NpzPiece(Piece):
    """A .npz file whose arrays are stored as they are, so that each is mapped where it lies."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.at: dict[str, tuple[int, tuple[int, ...], np.dtype[Any]]] = {}
        with parsing(place, "not a .npz file that can be read"), zipfile.ZipFile(place) as archive:
            for info in archive.infolist():
                if info.filename.endswith(".npy"):
                    self.at[info.filename.removesuffix(".npy")] = _place(place, archive, info)
        self.count = _one_count(place, {n: s[0] for n, (_, s, _) in self.at.items() if s})
        if TIMES in self.at:
            self.times = np.array(self._mapped(TIMES))

    @property
    def names(self) -> tuple[str, ...]:
        """The names of its arrays."""
        return tuple(self.at)

    def read(self, names: Sequence[str], first: int, last: int) -> Arrays:
        """Return the rows `first` to `last` - 1 of some arrays."""
        return {name: np.array(self._mapped(name)[first:last]) for name in names}

    def _mapped(self, name: str) -> NDArray[Any]:
        offset, shape, dtype = self.at[name]
        return np.memmap(self.place, dtype, "r", offset, shape)


class SafetensorsPiece(Piece):
    """A .safetensors file: slices of its tensors are read, nothing else."""

    def __init__(self, place: Path) -> None:
        self.place = place
        what = "not a .safetensors file that can be read"
        with parsing(place, what), safe_open(place, "pt") as opened:
            names = list(opened.keys())
            shapes = {name: opened.get_slice(name).get_shape() for name in names}
            if TIMES in shapes:
                self.times = opened.get_tensor(TIMES).double().numpy()
        self.count = _one_count(place, {name: s[0] for name, s in shapes.items() if s})
        self._names = tuple(shapes)

    @property
    def names(self) -> tuple[str, ...]:
        """The names of its tensors."""
        return self._names

    def read(self, names: Sequence[str], first: int, last: int) -> Arrays:
        """Return the rows `first` to `last` - 1 of some tensors; half precision becomes float32."""
        with safe_open(self.place, "pt") as opened:
            parts = {name: opened.get_slice(name)[first:last] for name in names}
        return {n: (x.float() if x.is_floating_point() else x).numpy() for n, x in parts.items()}


def _one_count(place: Path, lengths: Mapping[str, int]) -> int:
    """Return the length that all arrays have; times of states have a length of their own."""
    counts = {name: length for name, length in lengths.items() if name != TIMES}
    if len(set(counts.values())) > 1:
        said = ", ".join(f"{name} {count}" for name, count in counts.items())
        raise ReflowError(f"{place}: arrays of different length ({said}); a pair has a row in each")
    return next(iter(counts.values()), 0)


def _mapped(file: Path) -> NDArray[Any]:
    with parsing(file, "not a plain .npy array; write it with numpy.save, without pickled objects"):
        found = np.load(file, mmap_mode="r", allow_pickle=False)
        if not found.ndim:
            raise ValueError("one number, expected an array [N, ...]")
        return np.asarray(found)


def _place(
    path: Path, archive: zipfile.ZipFile, info: zipfile.ZipInfo
) -> tuple[int, tuple[int, ...], np.dtype[Any]]:
    """Return where in the file an array begins, its shape and its type."""
    if info.compress_type != zipfile.ZIP_STORED:
        raise ReflowError(
            f"{path}: {info.filename} is compressed, so that its rows cannot be read by their"
            " numbers; write it with numpy.savez instead of savez_compressed"
        )
    with archive.open(info) as opened:
        read = (npy_format.read_array_header_1_0, npy_format.read_array_header_2_0)
        shape, fortran, dtype = read[npy_format.read_magic(opened) != (1, 0)](opened)
        header = opened.tell()
    if dtype.hasobject or (fortran and len(shape) > 1):
        what = "pickled objects" if dtype.hasobject else "columns first"
        raise ReflowError(
            f"{path}: {info.filename} holds {what}; write plain numbers, rows first"
            " (numpy.ascontiguousarray), with numpy.savez"
        )
    with path.open("rb") as raw:
        raw.seek(info.header_offset)
        fixed = raw.read(LOCAL)
    name, extra = (int.from_bytes(fixed[at : at + 2], "little") for at in (26, 28))
    return info.header_offset + LOCAL + name + extra + header, shape, dtype
