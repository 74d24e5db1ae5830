"""The outputs of a stage that finished, kept in its scratch folder until DVC has recorded them.

DVC hashes and stores the outputs of a stage after its command ended, which takes minutes for a
large coupling; if it is killed there, it deletes them and runs the stage again. The copies are hard
links: they take no room.
"""

import json
import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from fmcore import checked
from fmcore.checked import sha256
from fmcore.settings import ReflowError

FOLDER = "finished"
LIST = "files.json"


def keep(root: Path, scratch: Path, outs: Iterable[str]) -> None:
    """Link every file of the outputs `outs` into the scratch folder, then write their list.

    Without hard links (some network file systems), or on a full disk, nothing is kept: the stage
    has succeeded all the same.
    """
    folder = scratch / FOLDER
    if (folder / LIST).exists():
        return
    try:
        shutil.rmtree(folder, ignore_errors=True)
        files: dict[str, Any] = {}
        for path in _files(root, outs):
            name = path.relative_to(root).as_posix()
            copy = folder / "outs" / name
            copy.parent.mkdir(parents=True, exist_ok=True)
            os.link(path, copy)
            files[name] = sha256(copy)
        folder.mkdir(parents=True, exist_ok=True)
        part = folder / f"{LIST}.part"
        told = checked.sealed({"outs": list(outs), "files": files})
        part.write_text(json.dumps(told, indent=1) + "\n")
        part.replace(folder / LIST)
    except OSError:
        shutil.rmtree(folder, ignore_errors=True)


def adopted(root: Path, scratch: Path, name: str) -> bool:
    """Put the outputs that a finished run of these inputs left in place; False if there are none.

    A file that is missing or has other bytes than it had counts as none, and the stage runs.
    """
    folder = scratch / FOLDER
    try:
        told = checked.read_json(folder / LIST)
        copies = {root / file: folder / "outs" / file for file in told["files"]}
        if any(sha256(folder / "outs" / f) != digest for f, digest in told["files"].items()):
            return False
    except (OSError, ReflowError):
        return False
    for out in told["outs"]:
        _remove(root / out)
    for path, copy in copies.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        os.link(copy, path)
    print(f"{name}: finished before DVC was stopped; its outputs are taken as they are", flush=True)
    return True


def _files(root: Path, outs: Iterable[str]) -> list[Path]:
    found: list[Path] = []
    for out in outs:
        path = root / out
        found += [f for f in sorted(path.rglob("*")) if f.is_file()] if path.is_dir() else [path]
    return found


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
