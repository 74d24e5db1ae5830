"""Find and copy the folders that stages made: in the workspace, DVC's cache and its remotes.

A folder is identified by its hash in dvc.lock (`md5`, ending in `.dir`). DVC sends the object of a
folder to a remote after all of its files, so a remote that has the object has the files too.
"""

import hashlib
import json
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dvc.api import DVCFileSystem
from dvc.exceptions import DvcException
from dvc_data.hashfile.build import build
from dvc_data.hashfile.db import HashFileDB
from dvc_data.hashfile.hash_info import HashInfo
from dvc_data.hashfile.tree import Tree
from dvc_objects.errors import ObjectFormatError

from flows.dag.graph import opened
from flows.dag.repo import in_one_line, open_repo
from fmcore.checked import sealed
from fmcore.coupling.manifest import MANIFEST, POINTER
from fmcore.settings import ReflowError

CACHE, WORKSPACE = "cache", "workspace"
"""The two places that every project has; any other place is the name of a remote."""

TIMEOUT = 10
"""Seconds that a remote may take to answer, unless its settings say otherwise."""


def remotes(root: Path) -> dict[str, str]:
    """Return the address of each remote by name, the default one first."""
    with _repo(root) as repo:
        default = repo.config["core"].get("remote")
        found = {name: str(remote["url"]) for name, remote in repo.config["remote"].items()}
        return dict(sorted(found.items(), key=lambda item: item[0] != default))


def default_remote(root: Path) -> str:
    """Return the name of the default remote. Raises ReflowError if there is none."""
    with _repo(root) as repo:
        name = repo.config["core"].get("remote")
    if not name:
        raise ReflowError("no default remote; `dvc remote add -d NAME URL` makes one")
    return str(name)


def in_workspace(root: Path, paths: Iterable[str]) -> dict[str, str]:
    """Return the hashes of those outputs `paths` that the workspace has; DVC caches the hashes."""
    with opened(root) as project:
        outs = {out.def_path: out for stage in project.stages.values() for out in stage.outs}
        there = {path: outs[path] for path in paths if path in outs and outs[path].exists}
        return {path: str(out.get_hash().value) for path, out in there.items()}


def held(root: Path, place: str, md5s: Iterable[str]) -> set[str]:
    """Return those of the folders `md5s` that the cache or a remote has completely.

    Raises ReflowError if the remote does not answer or refuses the credentials.
    """
    with _repo(root) as repo, answers(repo, place):
        odb = odb_of(repo, place)
        found = {md5 for md5 in md5s if exists(odb, md5)}
        return {md5 for md5 in found if place != CACHE or _whole(odb, md5)}


def bring(root: Path, place: str, md5: str, folder: Path) -> None:
    """Copy the folder `md5` from the cache or a remote to `folder`, which must not exist.

    Raises ReflowError if the place does not answer or lacks a part of the folder.
    """
    with _repo(root) as repo, answers(repo, place):
        odb = odb_of(repo, place)
        for parts, _, info in _tree(odb, md5):
            file = folder.joinpath(*parts)
            if not file.resolve().is_relative_to(folder.resolve()):
                raise ReflowError(f"{place}: {'/'.join(parts)} would lie outside of the folder")
            file.parent.mkdir(parents=True, exist_ok=True)
            odb.fs.get_file(odb.oid_to_path(info.value), str(file))


def point_to(root: Path, place: str, md5: str, folder: Path) -> None:
    """Write to a new folder the manifest of the coupling `md5`, and where in S3 its shards are.

    Raises ReflowError if the remote is no S3 bucket, does not answer, or lacks the manifest.
    """
    with _repo(root) as repo, answers(repo, place):
        odb = odb_of(repo, place)
        if "s3" not in odb.fs.protocol:
            raise ReflowError(f"remote {place}: shards are read in place from S3 alone")
        found = {"/".join(parts): str(info.value) for parts, _, info in _tree(odb, md5)}
        places = {name: f"{oid[:2]}/{oid[2:]}" for name, oid in found.items()}
        said = {
            "url": f"s3://{odb.path}",
            "endpoint": repo.config["remote"][place].get("endpointurl"),
            "files": places,
            "md5": md5,
            "manifest": found[MANIFEST],
        }
        folder.mkdir(parents=True)
        odb.fs.get_file(odb.oid_to_path(found[MANIFEST]), str(folder / MANIFEST))
        (folder / POINTER).write_text(json.dumps(sealed(said), indent=2) + "\n")


def push_runs(root: Path, place: str) -> tuple[int, int]:
    """Send the run cache and the outputs of its runs to a remote, so that nobody runs them again.

    `dvc push --run-cache` leaves out metrics and curves, which git keeps; without them no stage
    can be restored. Returns how many objects were sent, and how many runs the cache has.
    """
    with _repo(root) as repo, answers(repo, place):
        runs = repo.stage_cache.push(place)
        sent = 0
        for objects in repo.stage_cache.get_used_objs(runs).values():
            here = {obj for obj in objects if exists(repo.cache.local, obj.value)}
            done = repo.cloud.push(here, remote=place)
            if done.failed:
                raise OSError(f"{len(done.failed)} objects were not sent")
            sent += len(done.transferred)
        return sent, len(runs)


def hash_of(root: Path, folder: Path) -> str:
    """Hash a folder as DVC does, without writing to the cache."""
    with _repo(root) as repo:
        odb = HashFileDB(odb_of(repo, CACHE).fs, str(folder))  # knows no hash, so all are computed
        _, _, tree = build(odb, str(folder), odb.fs, "md5", dry_run=True)
        return str(tree.hash_info.value)


def cached_file(root: Path, md5: str, name: str) -> bytes | None:
    """Return a small file of the folder `md5` from the cache; None if it is not there."""
    with _repo(root) as repo:
        odb = odb_of(repo, CACHE)
        try:
            inside = {parts: info.value for parts, _, info in _tree(odb, md5)}
            return Path(odb.oid_to_path(inside[(name,)])).read_bytes()
        except (OSError, KeyError):
            return None


def cached_object(root: Path, md5: str) -> bytes | None:
    """Return a small file from the cache by its hash; None if it is not there."""
    with _repo(root) as repo:
        try:
            return Path(odb_of(repo, CACHE).oid_to_path(md5)).read_bytes()
        except OSError:
            return None


def cached_files(root: Path, md5: str) -> dict[str, Path]:
    """Return where the cache has the files of the folder `md5`, by name; those that it has."""
    with _repo(root) as repo:
        odb = odb_of(repo, CACHE)
        try:
            found = {"/".join(k): Path(odb.oid_to_path(i.value)) for k, _, i in _tree(odb, md5)}
        except (OSError, DvcException, ObjectFormatError):
            return {}
        return {name: path for name, path in found.items() if path.is_file()}


def held_files(root: Path, md5s: Iterable[str]) -> bool:
    """Whether the cache has all of these files and folders completely."""
    with _repo(root) as repo, answers(repo, CACHE):
        odb = odb_of(repo, CACHE)
        return all(
            exists(odb, md5) and (not md5.endswith(".dir") or _whole(odb, md5)) for md5 in md5s
        )


def put(root: Path, md5: str, path: Path) -> None:
    """Copy a file or a folder from the cache to `path`, in place of what is there."""
    part = path.with_name(f".{path.name}.part")
    for old in (part, path):
        if old.is_dir() and not old.is_symlink():
            shutil.rmtree(old)
        else:
            old.unlink(missing_ok=True)
    part.parent.mkdir(parents=True, exist_ok=True)
    if md5.endswith(".dir"):
        bring(root, CACHE, md5, part)
    else:
        with _repo(root) as repo:
            shutil.copyfile(odb_of(repo, CACHE).oid_to_path(md5), part)
    part.replace(path)


def run_cache(root: Path) -> Path:
    """Return the folder where DVC's cache records every stage that ran, one small file for each."""
    with _repo(root) as repo:
        return Path(repo.stage_cache.cache_dir)


def files_at(root: Path, rev: str) -> Callable[[str], bytes | None]:
    """Return a function that reads a file of a revision, or returns None if nothing stores it.

    Raises ReflowError if there is no such revision.
    """
    root = root.resolve()
    with in_one_line(root):
        files = DVCFileSystem(str(root), rev=rev)

    def read(path: str) -> bytes | None:
        try:
            found: bytes = files.read_bytes(path)
            stated = files.info(path).get("md5")
        except (OSError, DvcException):
            return None
        if stated and hashlib.md5(found, usedforsecurity=False).hexdigest() != stated:
            raise ReflowError(
                f"{rev[:12]}: {path}: damaged in DVC's cache; `reflow verify --heal` removes that"
                " object, then `dvc fetch --all-commits` brings a good one"
            )
        return found

    return read


@contextmanager
def _repo(root: Path) -> Iterator[Any]:
    with in_one_line(root.resolve()), open_repo(root.resolve()) as repo:
        for remote in repo.config["remote"].values():
            if str(remote["url"]).startswith("s3:"):  # DVC's own limit there is over a minute
                remote.setdefault("connect_timeout", TIMEOUT)
                remote.setdefault("read_timeout", TIMEOUT)
        yield repo


@contextmanager
def answers(repo: Any, place: str) -> Iterator[None]:
    """Turn any error of a remote or of the cache into a ReflowError of one line."""
    try:
        yield
    except ReflowError:
        raise
    except Exception as error:  # each kind of remote raises its own errors; DVC wraps none
        if place == CACHE:
            raise ReflowError(f"DVC's cache: {_reason(error)}; `dvc fetch` mends it") from error
        url = repo.config["remote"].get(place, {}).get("url")
        if url is None:
            known = ", ".join(repo.config["remote"]) or "none"
            raise ReflowError(f"no remote {place!r}; `dvc remote list` has: {known}") from error
        raise ReflowError(f"remote {place} ({url}): {_reason(error)}; {_mend(error)}") from error


def _reason(error: BaseException) -> str:
    text = str(error).splitlines()[0] if str(error) else ""
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _mend(error: BaseException) -> str:
    text = _reason(error).lower()
    if any(word in text for word in ("permission", "denied", "forbidden", "credential", "token")):
        return "check its credentials (`dvc remote modify --local`, or AWS_* in the environment)"
    if "missing dependencies" in text or "missingdeps" in text:
        return "install what it needs (`pip install dvc-s3` for S3)"
    if isinstance(error, FileNotFoundError):
        return "it lacks that object; `dvc push` from a machine that has it"
    return "check that it is up and its url and endpointurl are right (`dvc remote list`)"


def odb_of(repo: Any, place: str) -> Any:
    """Return DVC's data base of objects in the cache or in a remote."""
    return repo.cache.local if place == CACHE else repo.cloud.get_remote_odb(place)


def _tree(odb: Any, md5: str) -> Any:
    return Tree.load(odb, HashInfo("md5", md5))


def exists(odb: Any, md5: str) -> bool:
    """Ask for one object; `odb.exists` would return False if a remote does not answer."""
    try:
        return bool(odb.fs.info(odb.oid_to_path(md5))["type"] == "file")
    except FileNotFoundError as error:
        if "bucket" in str(error):
            raise
        return False


def _whole(odb: Any, md5: str) -> bool:
    return all(exists(odb, info.value) for _, _, info in _tree(odb, md5))
