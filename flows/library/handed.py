"""A folder that is handed on: its kind, and an index of its bytes by which it is checked.

The index, reflow.json, has the sha256 of every file and its own. A coupling lies in the folder
pairs/, so that pandas and pyarrow read that folder by one call, without the card beside it.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal, get_args

from fmcore.checked import FILES, hashes, opened, sealed, sha256
from fmcore.coupling.verify import verify
from fmcore.network.store import CONFIG, read_config
from fmcore.settings import ReflowError

INDEX = "reflow.json"
CARD = "README.md"
PAIRS = "pairs"
PULLED = "pulled.json"
"""The file of a pulled folder that says where it came from; it is handed on to nobody."""

Kind = Literal["coupling", "model", "shipped"]
"""A coupling, the model of a round as this package keeps it, or a folder of `reflow ship --to`."""
KINDS: tuple[Kind, ...] = get_args(Kind)
AGAIN = "fetch or make it again"


@dataclass(frozen=True)
class Index:
    """What a folder holds: its kind, and the sha256 of each file by its path there."""

    kind: Kind
    files: Mapping[str, str]

    @property
    def text(self) -> str:
        """The content of the index's file."""
        return json.dumps(sealed({"kind": self.kind, FILES: self.files}), indent=2) + "\n"

    @classmethod
    def read(cls, content: bytes, where: str) -> "Index":
        """Read an index. Raises ReflowError if it is damaged or names a file of another folder."""
        found = opened(content, where, mend=AGAIN)
        files = found.get(FILES)
        kind = next((kind for kind in KINDS if kind == found.get("kind")), None)
        if kind is None or not isinstance(files, dict):
            raise ReflowError(f"{where}: no index that this version reads; upgrade this program")
        for name in files:
            path = PurePosixPath(name)
            if path.is_absolute() or ".." in path.parts or "\\" in name or name == INDEX:
                raise ReflowError(f"{where}: {name!r} is no file of this folder; do not use it")
        return cls(kind, {str(name): str(digest) for name, digest in files.items()})


@dataclass(frozen=True)
class Handed:
    """What is handed on: its kind, and the content of each file by its path, without the index."""

    kind: Kind
    files: Mapping[str, Path | bytes]

    @property
    def index(self) -> Index:
        """The index of the files as they are now."""
        return Index(self.kind, {name: _sha256(of) for name, of in sorted(self.files.items())})

    @property
    def bytes(self) -> int:
        """The size of all files."""
        sizes = (len(f) if isinstance(f, bytes) else f.stat().st_size for f in self.files.values())
        return sum(sizes)


def _sha256(of: Path | bytes) -> str:
    return hashlib.sha256(of).hexdigest() if isinstance(of, bytes) else sha256(of)


def seal(folder: Path, kind: Kind) -> None:
    """Write the index of a folder."""
    (folder / INDEX).write_text(Index(kind, hashes(folder, besides=INDEX)).text)


def check(folder: Path, index: Index, *, besides: tuple[str, ...] = ()) -> None:
    """Raise ReflowError unless a folder has the files of an index, with its bytes, and no other.

    Files `besides` are not compared. A coupling and a model are checked by their own hashes too.
    """
    now = hashes(folder, besides=INDEX)
    for name in sorted({*now, *index.files} - set(besides)):
        if name not in index.files:
            raise ReflowError(f"{folder / name}: foreign, {INDEX} does not list it; remove it")
        if name not in now:
            raise ReflowError(f"{folder / name}: missing; {AGAIN}")
        if now[name] != index.files[name]:
            raise ReflowError(f"{folder / name}: altered, its sha256 is not that of {INDEX}")
    if index.kind == "coupling":
        verify(folder / PAIRS)
    elif index.kind == "model":
        model_files(folder)


def sealed_folder(folder: Path) -> Handed:
    """Return a folder that has an index, checked byte by byte; its card may have been edited."""
    index = Index.read((folder / INDEX).read_bytes(), str(folder / INDEX))
    if not (folder / CARD).is_file():
        raise ReflowError(f"{folder / CARD}: missing; {AGAIN}")
    check(folder, index, besides=(CARD, PULLED))
    return Handed(index.kind, {name: folder / name for name in {*index.files, CARD}})


def coupling_files(folder: Path) -> dict[str, Path]:
    """Return the files of a coupling by their path when handed on; every byte is checked.

    Raises ReflowError for damage, and for prepared data, which has no pairs.
    """
    if verify(folder).independent:
        raise ReflowError(f"{folder}: prepared data, which has no pairs; name a coupling")
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    return {f"{PAIRS}/{file.relative_to(folder).as_posix()}": file for file in files}


def model_files(folder: Path) -> dict[str, Path]:
    """Return the files of a model by their path there; every byte is checked."""
    try:
        stated = read_config(folder).get(FILES)
    except FileNotFoundError:
        raise ReflowError(f"{folder}: not a model, {CONFIG} is missing; {AGAIN}") from None
    if not isinstance(stated, Mapping):
        raise ReflowError(
            f"{folder / CONFIG}: names no files: an earlier version wrote it; {AGAIN}"
        )
    for name, digest in stated.items():
        file = folder / name
        if not file.is_file() or sha256(file) != digest:
            raise ReflowError(f"{file}: missing or altered: its sha256 is not that of {CONFIG}")
    return {name: folder / name for name in (CONFIG, *sorted(stated))}
