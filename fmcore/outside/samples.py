"""Pairs in a file each: a folder of .pt files, or the members of tar shards (WebDataset)."""

import hashlib
import io
import pickle
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fmcore.dataset.rows import parsing
from fmcore.outside.rows import Arrays, Piece
from fmcore.settings import ReflowError

BLOCK = tarfile.BLOCKSIZE
TEXT = ("cls", "id", "index")
"""Endings of members that hold one number as text."""
CAPTION = "txt"
"""The ending of a member that holds a text, or a class as text."""


class TorchPiece(Piece):
    """A folder of .pt files, a mapping of tensors each: one pair a file."""

    def __init__(self, place: Path, files: Sequence[Path]) -> None:
        self.place, self.files, self.count = place, files, len(files)

    @cached_property
    def names(self) -> tuple[str, ...]:
        """The keys of the first file."""
        return tuple(_tensors(self.files[0]))

    def read(self, names: Sequence[str], first: int, last: int) -> Arrays:
        """Return the pairs `first` to `last` - 1."""
        rows = [_chosen(_tensors(file), names, file) for file in self.files[first:last]]
        return _stacked(rows, names, self.files[first:last])

    def ids(self) -> NDArray[Any]:
        """Return the names of the files, 7.pt and 007.pt being one."""
        return np.array([f.stem.lstrip("0") or "0" for f in self.files])


class TarPiece(Piece):
    """A tar shard: consecutive members of one name up to the first dot are a pair."""

    def __init__(self, place: Path) -> None:
        self.place = place
        keys: list[int] = []
        at: list[list[tuple[int, int]]] = []
        self._names: tuple[str, ...] = ()
        with parsing(place, "not a tar file that can be read"):
            for key, members in _groups(_members(place)):
                self._names = self._names or tuple(members)
                if missing := [name for name in self._names if name not in members]:
                    raise ReflowError(
                        f"{place}: {key} has no .{missing[0]}, those before have one; each pair"
                        " needs all of its members, one behind the other"
                    )
                digest = hashlib.blake2b(key.encode(), digest_size=8).digest()
                keys.append(int.from_bytes(digest, "little"))
                at.append([members[name] for name in self._names])
        self.count, self.keys = len(keys), np.array(keys, np.uint64)
        self.at = np.array(at, np.int64).reshape(len(keys), -1, 2)

    @property
    def names(self) -> tuple[str, ...]:
        """The endings of the members of a pair."""
        return self._names

    def read(self, names: Sequence[str], first: int, last: int) -> Arrays:
        """Return the pairs `first` to `last` - 1."""
        rows = []
        with self.place.open("rb") as opened:
            for own in self.at[first:last]:
                row = {}
                for name in names:
                    offset, size = own[self._names.index(name)].tolist()
                    opened.seek(offset)
                    row[name] = _member(name, opened.read(size))
                rows.append(row)
        return _stacked(rows, names, [self.place] * len(rows))

    def ids(self) -> NDArray[Any]:
        """Return a hash of the name of each pair."""
        return self.keys


def _members(place: Path) -> Iterator[tuple[str, int, int]]:
    """Yield name, offset and size of each file in a tar archive, whose end must be there."""
    size, end = place.stat().st_size, 0
    with tarfile.open(place, "r:") as archive:
        for member in archive:
            end = member.offset_data + -(-member.size // BLOCK) * BLOCK
            if end > size:
                raise ValueError(f"truncated: {member.name} goes beyond its end")
            if member.isfile():
                yield member.name, member.offset_data, member.size
    if end + BLOCK > size:
        raise ValueError("truncated: the mark at its end is missing")


def _groups(
    members: Iterator[tuple[str, int, int]],
) -> Iterator[tuple[str, dict[str, tuple[int, int]]]]:
    """Yield the members of each pair, by their endings."""
    current, found = "", dict[str, tuple[int, int]]()
    for name, offset, size in members:
        folder, slash, last = name.rpartition("/")
        stem, _, ending = last.partition(".")
        key = f"{folder}{slash}{stem}"
        if found and key != current:
            yield current, found
            found = {}
        current = key
        found[ending] = (offset, size)
    if found:
        yield current, found


def _member(name: str, content: bytes) -> Any:
    ending = name.rpartition(".")[2]
    if ending == "npy":
        return np.load(io.BytesIO(content), allow_pickle=False)
    if ending in ("pt", "pth"):
        return _array(_loaded(io.BytesIO(content), name))
    if ending in TEXT:
        return np.int64(content.decode())
    if ending == CAPTION:
        return np.array(content.decode().strip(), object)
    raise ReflowError(
        f".{name}: its numbers cannot be read; members are .npy, .pt, .pth, .cls for a class or"
        " .txt for a text"
    )


def _tensors(file: Path) -> Mapping[str, Any]:
    """Return the tensors and numbers of a .pt file by their keys."""
    with parsing(file, "not a .pt file that can be read, truncated or damaged"):
        found = _loaded(file, str(file))
    if isinstance(found, list | tuple):
        found = {str(index): value for index, value in enumerate(found)}
    if not isinstance(found, Mapping):
        raise ReflowError(f"{file}: holds {type(found).__name__}, expected a mapping of tensors")
    return found


def _loaded(file: Any, name: str) -> Any:
    try:
        return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise ReflowError(
            f"{name}: holds Python objects, which may run code, so it is not loaded; save a"
            " mapping of plain tensors with torch.save"
        ) from None


def _array(value: Any) -> NDArray[Any]:
    if isinstance(value, Tensor):
        value = value.detach()
        value = (value.float() if value.is_floating_point() else value).numpy()
    return np.asarray(value)


def _chosen(found: Mapping[str, Any], names: Sequence[str], file: Path) -> dict[str, Any]:
    for name in names:
        if name not in found:
            raise ReflowError(f"{file}: has no {name!r}; it has: {', '.join(map(str, found))}")
    return {name: _array(found[name]) for name in names}


def _stacked(rows: Sequence[Mapping[str, Any]], names: Sequence[str], at: Sequence[Path]) -> Arrays:
    for name in names:
        shapes = [np.shape(row[name]) for row in rows]
        odd = next((i for i, shape in enumerate(shapes) if shape != shapes[0]), None)
        if odd is not None:
            raise ReflowError(
                f"{at[odd]}: {name} has the shape {list(shapes[odd])}, before it was"
                f" {list(shapes[0])}; give pairs of one shape"
            )
    return {name: np.stack([row[name] for row in rows]) for name in names}
