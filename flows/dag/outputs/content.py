"""The content of outputs against dvc.lock: every byte is hashed anew.

DVC trusts a file whose time, inode and size are those that it knows, and an object of its cache
that is read-only. A flipped bit changes none of them, so DVC reports such a file as up to date.
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dvc_data.hashfile.build import build
from dvc_data.hashfile.db import HashFileDB

from flows.dag.graph import Project, known, overlap
from flows.dag.outputs.store import WORKSPACE
from flows.dag.repo import in_one_line, open_repo
from fmcore.coupling.manifest import md5_elsewhere
from fmcore.settings import ReflowError

TEXT = "not the content that dvc.lock records"


@dataclass(frozen=True)
class Fault:
    """A damaged file: its place (workspace, cache, a remote), its output, its object's hash.

    `out` is the path of the output in dvc.lock, "" where no output of the present dvc.lock has it.
    """

    place: str
    file: str
    out: str
    says: str
    oid: str = ""

    def __str__(self) -> str:
        of = f" (of {self.out})" if self.place != WORKSPACE and self.out else ""
        return f"{self.place}: {self.file}{of}: {self.says}"


@dataclass(frozen=True)
class Content:
    """The content of a file or folder now: its hash as DVC has it, its files by path inside."""

    md5: str
    files: dict[str, str]
    listing: bytes = b""
    bytes: int = 0

    @classmethod
    def of(cls, item: Any) -> "Content":
        """Hash an output or dependency of DVC, with none of the hashes that DVC remembers."""
        nothing_known = HashFileDB(item.fs, item.repo.cache.local.path)
        found: tuple[Any, Any, Any] = build(
            nothing_known, item.fs_path, item.fs, "md5", ignore=item.dvcignore, dry_run=True
        )
        _, meta, obj = found
        size, md5 = int(meta.size or 0), str(obj.hash_info.value)
        if not md5.endswith(".dir"):
            return cls(md5, {"": md5}, bytes=size)
        files = {"/".join(parts): str(info.value) for parts, _, info in obj}
        return cls(md5, files, obj.as_bytes(), size)


def md5_of(file: Path | str) -> str:
    """Return the md5 of a file, read now."""
    with Path(file).open("rb") as content:
        return hashlib.file_digest(content, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def recorded(project: Project) -> dict[str, tuple[str, str]]:
    """Return the stage and the hash that dvc.lock records for each output, by path."""
    found = {}
    for name, stage in project.stages.items():
        for out in project.locked(name).get("outs", []):
            if out.get("path") in {o.def_path for o in stage.outs} and out.get("md5"):
                found[str(out["path"])] = (name, str(out["md5"]))
    return found


def listing(repo: Any, md5: str) -> dict[str, str]:
    """Return the hashes of the files of a folder by path, from the cache; empty if it has none."""
    if not md5.endswith(".dir"):
        return {"": md5}
    try:
        content = object_path(repo, md5).read_bytes()
        if hashlib.md5(content, usedforsecurity=False).hexdigest() != md5.removesuffix(".dir"):
            return {}
        return {str(row["relpath"]): str(row["md5"]) for row in json.loads(content)}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def object_path(repo: Any, oid: str) -> Path:
    """Return the path of an object of the local cache."""
    return Path(repo.cache.local.oid_to_path(oid))


def is_good(file: Path, oid: str) -> bool:
    """Whether an object of a cache is there and has the content that its name says."""
    try:
        return md5_of(file) == oid.removesuffix(".dir")
    except OSError:
        return False


def outs_of(project: Project) -> dict[str, Any]:
    """Return DVC's outputs of all stages by path."""
    return {out.def_path: out for stage in project.stages.values() for out in stage.outs}


def differences(path: str, known: Mapping[str, str], now: Content) -> list[Fault]:
    """Name the files of an output that are not as recorded; the output itself if none is known."""
    if not known:
        return [Fault(WORKSPACE, path, path, TEXT)]
    found = []
    for name in sorted({*known, *now.files}):
        if known.get(name) == now.files.get(name):
            continue
        says = TEXT
        if name not in now.files:
            says = "missing"
        elif name not in known:
            says = "foreign, dvc.lock does not record it"
        file = f"{path}/{name}" if name else path
        found.append(Fault(WORKSPACE, file, path, says, known.get(name, "")))
    return found


def unlike(project: Project, dep: Any, claimed: str) -> list[str]:
    """Return the files of a dependency whose content is not what dvc.lock records of their stage.

    Where no stage makes it, or none has run, the content has to be that of the hash `claimed` by
    DVC, which it would record for a stage that read other bytes.
    """
    if not dep.exists or md5_elsewhere(Path(dep.fs_path)):
        return []  # shards that are read in place are checked when they arrive
    outs, named = outs_of(project), list[str]()
    made = {p: md5 for p, (_, md5) in recorded(project).items() if overlap(p, dep.def_path)}
    for path, md5 in made.items():
        content = Content.of(outs[path]) if outs[path].exists else None
        if content and content.md5 != md5:
            found = differences(path, listing(project.repo, md5), content)
            named += [fault.file for fault in found]
    if not made and Content.of(dep).md5 != claimed:
        return [str(dep.def_path)]
    return named


def reader(root: Path) -> Callable[[str], bytes | None]:
    """Return a function that reads a file of the workspace, checked against dvc.lock.

    It returns None for a missing file, and raises ReflowError for one that dvc.lock does not
    record as it is.
    """
    root, now = root.resolve(), known(root)
    files: dict[str, str] = {}
    with in_one_line(root), open_repo(root) as repo:
        for entry in now.locked.values():
            for out in entry.get("outs", []):
                path, md5 = str(out.get("path")), str(out.get("md5", ""))
                for name, oid in listing(repo, md5).items() if md5 else ():
                    files[f"{path}/{name}" if name else path] = oid

    def read(path: str) -> bytes | None:
        file = root / path
        if not file.is_file():
            return None
        content = file.read_bytes()
        found = hashlib.md5(content, usedforsecurity=False).hexdigest()
        if files.get(path, found) != found:
            raise ReflowError(f"{path}: {TEXT}; `reflow run` or `reflow verify --heal` mends it")
        return content

    return read
