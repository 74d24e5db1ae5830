"""Files with the hash of their content, checked when they are read: damage is one line, not rot.

A JSON file holds its own sha256 and may hold those of the files beside it. DVC does not notice a
flipped bit: it trusts a file whose time and size are unchanged.
"""

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from fmcore.settings import ReflowError

KEY = "sha256"
"""The key of a JSON file's own hash: of its content without this key."""

FILES = "files"
"""The key with the sha256 of each file beside a JSON file, by its path from there."""

MEND = "`reflow verify --heal` mends an output of the chain"


def digest(content: Mapping[str, Any]) -> str:
    """Return the sha256 of a JSON object, without the key of its own hash.

    >>> digest({"a": 1}) == digest({"a": 1, "sha256": "..."})
    True
    """
    rest = {key: value for key, value in content.items() if key != KEY}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def sealed(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return a JSON object with its own sha256 as its last key."""
    return {**content, KEY: digest(json.loads(json.dumps(content)))}


def opened(
    content: str | bytes, where: Path | str, *, required: bool = True, mend: str = MEND
) -> dict[str, Any]:
    """Return the object in the content of a JSON file that `sealed` made, without its hash.

    Raises ReflowError, with `where` as the file, if it is damaged; if it has no hash, only where
    one is `required`. The message ends with `mend`.
    """
    try:
        found = json.loads(content)
    except (ValueError, RecursionError) as error:
        reason = str(error).splitlines()[0][:120]
        raise ReflowError(f"{where}: damaged, not JSON ({reason}); {mend}") from None
    if not isinstance(found, dict):
        raise ReflowError(f"{where}: damaged, not a JSON object; {mend}")
    stated = found.pop(KEY, None)
    if stated is None and required:
        raise ReflowError(
            f"{where}: has no {KEY}, so its content cannot be checked: it is damaged, or an earlier"
            " version wrote it; make it again (`reflow run`), or read it with that version"
        )
    if stated is not None and stated != digest(found):
        raise ReflowError(f"{where}: damaged, its content is not that of its {KEY}; {mend}")
    return found


def read_json(path: Path, *, required: bool = True) -> dict[str, Any]:
    """Read a JSON file that `sealed` made, without its hash. Raises ReflowError for damage."""
    return opened(path.read_bytes(), path, required=required)


def hashes(folder: Path, besides: str) -> dict[str, str]:
    """Return the sha256 of every file in a folder by its path there, but for the file `besides`."""
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    named = {file.relative_to(folder).as_posix(): file for file in files}
    return {name: sha256(file) for name, file in named.items() if name != besides}


def read_checked(folder: Path, name: str, about: Mapping[str, Any]) -> bytes:
    """Return the content of a file in a folder; `about` is the JSON object that has its hash.

    Raises ReflowError if it is damaged or has no hash, FileNotFoundError if it is missing.
    """
    content = (folder / name).read_bytes()
    stated = about.get(FILES)
    if not isinstance(stated, Mapping) or stated.get(name) != hashlib.sha256(content).hexdigest():
        raise ReflowError(
            f"{folder / name}: damaged, its sha256 is not the one recorded beside it; {MEND}"
        )
    return content


def sha256(path: Path) -> str:
    """Return the sha256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def folder_digest(path: Path, of: Callable[[Path], str] = sha256) -> dict[str, Any]:
    """Return the sha256 of a file or of all files of a folder, with their count and bytes.

    `of` gives the sha256 of one file.
    """
    whole, size, count = hashlib.sha256(), 0, 0
    for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
        if file.is_file():
            name = os.fsencode(file.relative_to(path).as_posix())
            whole.update(name + b"\0" + of(file).encode() + b"\n")
            size, count = size + file.stat().st_size, count + 1
    return {"sha256": whole.hexdigest(), "files": count, "bytes": size}


def files_named(value: object, place: str, root: Path) -> Iterator[tuple[str, Path]]:
    """Yield (place, path) of each text in some settings, however deep, that names what is there.

    Paths are relative to `root`; root itself and the folders above it are none.
    """
    if isinstance(value, str):
        with contextlib.suppress(OSError, ValueError):  # too long for a name, or not one
            path = (root / value).resolve()
            if value.strip() and path.exists() and not root.resolve().is_relative_to(path):
                yield place, path
    inner = value.items() if isinstance(value, Mapping) else ()
    listed = enumerate(value) if isinstance(value, list | tuple) else ()
    for key, one in (*inner, *listed):
        yield from files_named(one, f"{place}.{key}", root)


def commit(temporary: Path, path: Path, write: Callable[[], None]) -> None:
    """Run `write`, which fills `temporary`, and rename it to `path`; remove it on failure.

    Raises ReflowError naming the file when the disk is full or cannot be written.
    """
    try:
        write()
        temporary.replace(path)
        sync(path.parent)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise ReflowError(
            f"{path}: cannot be written ({error.strerror or error}); free some space or fix the"
            " permissions and start again: finished shards are kept"
        ) from error
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def sync(path: Path) -> None:
    """Flush a file or a folder to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
