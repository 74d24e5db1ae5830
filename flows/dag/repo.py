"""DVC's repository: opened by one thread at a time, errors in one line, parameters read once."""

import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from dvc.dependency import ParamsDependency
from dvc.exceptions import CyclicGraphError, DvcException
from dvc.lock import LockError
from dvc.repo import Repo
from dvc.rwlock import rwlock

from flows.project.git import NO_GIT
from fmcore.settings import ReflowError

CHECKING = threading.RLock()
"""Lets one thread at a time check DVC's files: voluptuous compiles its validators in place."""
MISSING = object()


@contextmanager
def open_repo(root: Path, rev: str | None = None) -> Iterator[Any]:
    """Open DVC's repository; several threads may do so at the same time."""
    with CHECKING:
        repo = Repo(str(root), rev=rev)
    with repo:
        yield repo


@contextmanager
def dvc_locked(repo: Any, patience: float = 600.0) -> Iterator[None]:
    """Hold DVC's lock, by which it records one stage at a time; wait for it `patience` seconds."""
    deadline = time.monotonic() + patience
    while True:
        try:
            repo.lock.lock()
            break
        except LockError:  # after 3 seconds; a large output takes longer
            if time.monotonic() > deadline:
                raise
    try:
        yield
    finally:
        repo.lock.unlock()


@contextmanager
def not_being_made(repo: Any, path: str) -> Iterator[None]:
    """Keep DVC from running the stage that writes `path`; raises LockError while one does."""
    linked = repo.config["core"].get("hardlink_lock", False)
    with rwlock(repo.tmp_dir, repo.fs, "reflow verify --heal", [path], [], linked):
        yield


@contextmanager
def in_one_line(root: Path) -> Iterator[None]:
    """Raise DVC's errors as one line each, with paths as seen from the project."""
    try:
        yield
    except CyclicGraphError as error:
        names = str(error).replace(f"{os.path.relpath(root)}/dvc.yaml:", "").rpartition(": ")[2]
        raise ReflowError(f"dvc.yaml: stages depend on each other in a cycle: {names}") from error
    except DvcException as error:
        parts: list[str] = []
        cause: BaseException | None = error
        while cause is not None:
            text = " ".join(str(cause).split()).replace(f"{os.path.relpath(root)}/", "")
            if text and not any(text in part for part in parts):
                parts.append(text)
            cause = cause.__cause__
        mend = f"; {NO_GIT}" if parts and parts[0].endswith(" is not a git repository") else ""
        raise ReflowError(f"DVC: {': '.join(parts)}{mend}") from error
    except sqlite3.Error as error:
        place = os.environ.get("DVC_SITE_CACHE_DIR", "its folder")
        raise ReflowError(
            f"DVC: its data base of hashes in {place}: {error}; make room there, or remove the"
            " folder if it is damaged: DVC makes it again"
        ) from error


def read_each_file_once(deps: Iterable[Any]) -> None:
    """Let these dependencies share one reading of each params file: DVC reads it for each stage."""
    files: dict[str, Any] = {}
    for dep in deps:
        dep.read_params = partial(_read, dep, dep.read_params, files)


def _read(dep: Any, alone: Callable[..., Any], files: dict[str, Any], **how: Any) -> Any:
    """Return what `dep.read_params(**how)` does, called `alone`."""
    if not dep.params or not dep.exists or not how.get("flatten", True):
        return alone(**how)
    if dep.fs_path not in files:
        files[dep.fs_path] = ParamsDependency(dep.stage, dep.def_path, [], dep.repo).read_params()
    found = {}
    for key in dep.params:
        value = files[dep.fs_path]
        for part in key.split("."):
            value = value[part] if isinstance(value, dict) and part in value else MISSING
        if value is MISSING:
            return alone(**how)  # it knows patterns and lists, too
        found[key] = value
    return found
