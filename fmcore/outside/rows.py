"""Rows of named arrays in files: counted, named, and read in blocks by their numbers."""

import json
import re
from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fmcore.checked import read_json
from fmcore.dataset.rows import parsing
from fmcore.outside.names import Ends
from fmcore.outside.states import Times, apart
from fmcore.settings import CONVENTION, ReflowError

Arrays = dict[str, NDArray[Any]]
ORIGIN = "_origin.json"
"""The file that `export` writes beside the pairs: what they are and how they were made."""
STATEMENTS = (ORIGIN, "metadata.json", "dataset_info.json", "sizes.json")
"""Files beside the pairs that may say how many there are, and how they were made."""
COUNTS = ("pairs", "count", "num_pairs", "num_samples", "num_examples")
"""Keys of such a file that hold the number of all pairs."""
MOST_STATED = 1 << 20
"""Bytes of a file that is read as a statement."""
PART = re.compile(r"(?P<number>\d+)-of-(?P<all>\d+)(?!\d)")
ID = "pair_id"
"""The name under which pairs have a number each; no two have the same."""


@dataclass(frozen=True)
class Block:
    """Some pairs as they are in files: target and source [N, ...], label [N] or None.

    `states` [N, S, ...] are those at the times of the rows, None if they were not asked for.
    The rest only another chain of reflow knows: error of the solver [N], identity of the real
    sample [N], and how each pair was made [N].
    """

    target: NDArray[Any]
    source: NDArray[Any]
    label: NDArray[Any] | None = None
    gap: NDArray[np.float32] | None = None
    real_id: NDArray[np.int64] | None = None
    kind: NDArray[Any] | None = None
    states: NDArray[Any] | None = None


class Rows(ABC):
    """Pairs from outside: how many there are, and any block of them."""

    @property
    @abstractmethod
    def count(self) -> int | None:
        """The number of pairs; None where as many can be made as are asked for."""

    @abstractmethod
    def read(self, first: int, last: int, *, states: bool = False) -> Block:
        """Return the pairs `first` to `last` - 1, with the `states` of their paths or without."""

    @property
    def times(self) -> Times:
        """The times of the states of each path; none where there are no states."""
        return ()

    @property
    def origin(self) -> dict[str, Any]:
        """What identifies the pairs besides their content: for the manifest."""
        return {}

    @property
    def stated(self) -> dict[str, Any]:
        """What a file beside the pairs says of them."""
        return {}

    @property
    def digest(self) -> str | None:
        """The hash of the content, where it is known without reading all of it."""
        return None


class Piece(ABC):
    """One file or folder of rows."""

    place: Path
    count: int
    times: object = None
    """What it says of the times of its states, if it does."""

    @property
    @abstractmethod
    def names(self) -> tuple[str, ...]:
        """The names of its arrays."""

    @abstractmethod
    def read(self, names: Sequence[str], first: int, last: int) -> Arrays:
        """Return the rows `first` to `last` - 1 of some arrays."""

    def ids(self) -> NDArray[Any] | None:
        """Return something [count] that no two rows share; None where rows have no such thing."""
        return self.read([ID], 0, self.count)[ID] if ID in self.names else None


@dataclass(frozen=True)
class FileRows(Rows):
    """The rows of some pieces, one after another."""

    pieces: Sequence[Piece]
    ends: Ends
    statement: Mapping[str, Any] = field(default_factory=dict)

    @cached_property
    def _ends(self) -> list[int]:
        return list(accumulate(piece.count for piece in self.pieces))

    @property
    def count(self) -> int:
        """The number of pairs."""
        return self._ends[-1]

    @property
    def origin(self) -> dict[str, Any]:
        """The names of the arrays."""
        ends = self.ends
        of_ends = {"target": ends.target, "source": ends.source, "label": ends.label}
        return {**of_ends, "states": ends.states}

    @property
    def times(self) -> Times:
        """The times of the states."""
        return self.ends.times

    @property
    def stated(self) -> dict[str, Any]:
        """What a file beside the pairs says of them."""
        return dict(self.statement)

    def read(self, first: int, last: int, *, states: bool = False) -> Block:
        """Return the pairs `first` to `last` - 1, from the pieces that hold them alone."""
        parts: list[Arrays] = []
        ends, names = self.ends, self.ends.names(states=states)
        at = bisect_right(self._ends, first)
        while first < last:
            piece, end = self.pieces[at], min(last, self._ends[at])
            start = self._ends[at] - piece.count
            with parsing(piece.place, "cannot be read, truncated or damaged"):
                parts.append(piece.read(names, first - start, end - start))
            first, at = end, at + 1
        place = self.pieces[at - 1].place
        try:
            whole = {name: np.concatenate([p[name] for p in parts]) for name in names}
        except ValueError:
            raise ReflowError(
                f"{place}: its rows have another shape than those of the file before; give pairs of"
                " one shape"
            ) from None
        path = apart(whole[ends.states], ends.times, place) if ends.states in whole else None
        target, source = (
            whole[name] if name else path[:, ends.times.index(t)]  # type: ignore[index]
            for name, t in ((ends.target, 0.0), (ends.source, 1.0))
        )
        label = whole[ends.label] if ends.label else None
        return Block(target, source, label, states=path if states else None)


def check(pieces: Sequence[Piece], path: Path, statement: Mapping[str, Any]) -> None:
    """Raise ReflowError where files hold another number of pairs than is said, or one twice."""
    count = sum(piece.count for piece in pieces)
    if not count:
        raise ReflowError(f"{path}: holds no pairs; name the file or folder that has them")
    for key in COUNTS:
        said = statement.get(key)
        if isinstance(said, int) and said != count:
            raise ReflowError(
                f"{path}: {count} pairs found, but the file beside them says {key} {said}: some are"
                " missing or foreign; copy all of them again, or correct that number"
            )
    sizes = statement.get("files")
    for piece in pieces:
        said = sizes.get(piece.place.name) if isinstance(sizes, Mapping) else None
        if isinstance(said, int) and said != piece.count:
            raise ReflowError(
                f"{piece.place}: {piece.count} pairs found, {said} stated; copy it again"
            )
    ids = [own for piece in pieces if piece.count and (own := piece.ids()) is not None]
    if not ids:
        return
    found, times = np.unique(np.concatenate(ids), return_counts=True)
    if len(found) < count:
        twice = found[times > 1][0]
        raise ReflowError(
            f"{path}: pair {twice} is there twice; give each pair a number of its own"
        )


def files_of(path: Path, endings: Sequence[str]) -> list[Path]:
    """Return the files of a path: itself, or those of the folder in the order of their numbers.

    Raises ReflowError if there is none, or if their names count parts that are not there.
    """
    if not path.exists():
        raise ReflowError(f"{path}: no such file or folder; correct the path of the import")
    if path.is_file():
        return [path]
    found = [f for f in path.iterdir() if f.name.endswith(tuple(endings)) and f.is_file()]
    found = sorted((f for f in found if not f.name.startswith((".", "_"))), key=natural)
    if not found:
        raise ReflowError(f"{path}: no file ending in {' or '.join(endings)}; check the kind")
    parts = [match for file in found if (match := PART.search(file.name))]
    for whole in {int(match["all"]) for match in parts}:
        have = {int(match["number"]) for match in parts if int(match["all"]) == whole}
        if len(have) != whole:
            raise ReflowError(
                f"{path}: its names say {whole} files, {len(have)} are there; copy the others too"
            )
    return found


def natural(file: Path) -> list[tuple[int, str]]:
    """Return a key that sorts names by the numbers in them: 2.pt before 10.pt."""
    words = re.split(r"(\d+)", file.name)
    return [(int(word), "") if word.isdecimal() else (-1, word) for word in words]


def statement_of(path: Path) -> dict[str, Any]:
    """Return what the files beside some pairs say of them; raise ReflowError if t runs back."""
    found: dict[str, Any] = {}
    folder = path if path.is_dir() else path.parent
    for name in STATEMENTS if path.is_dir() else (ORIGIN,):
        file = folder / name
        if not file.is_file() or file.stat().st_size > MOST_STATED:
            continue
        with parsing(file, "not JSON, damaged"):
            said = read_json(file) if name == ORIGIN else json.loads(file.read_bytes())
        if isinstance(said, Mapping):
            found |= {"files": dict(said)} if name == "sizes.json" else said
    if not path.is_dir():  # how many there are is said of all files of the folder
        found = {key: value for key, value in found.items() if key not in COUNTS}
    said = found.get("convention")
    if said is not None and said != CONVENTION:
        raise ReflowError(
            f"{folder}: says {said!r}, here it is {CONVENTION!r}; name the ends by import.target"
            " and import.source, and remove `convention` from that file"
        )
    return found
