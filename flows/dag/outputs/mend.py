"""Mend damaged outputs: from a good object of the cache, a remote or git; else they are remade.

Damaged objects leave the cache first: DVC trusts a read-only object without reading it, and would
check out the damage again.
"""

import contextlib
import os
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dvc.lock import LockError

from flows.dag.graph import Project, opened
from flows.dag.outputs.content import Content, is_good, listing, object_path, outs_of, recorded
from flows.dag.outputs.store import CACHE, answers, exists, odb_of, remotes
from flows.dag.outputs.verify import Report, workspace_faults
from flows.dag.repo import dvc_locked, not_being_made
from flows.project.git import file_at
from flows.project.locks import locked
from fmcore.settings import ReflowError

Say = Callable[[str], object]


@dataclass
class Mended:
    """What was mended: outputs `restored`, and stages that have to make theirs again."""

    restored: list[str] = field(default_factory=list)
    remake: list[str] = field(default_factory=list)


def mend(root: Path, paths: Iterable[str] | None, say: Say) -> Mended:
    """Restore the damaged outputs among `paths` (None: all); tell what is done line by line.

    A damaged output that nothing has a good copy of gets a new time, so that DVC sees that it
    changed and runs its stage again. One that a stage is making now is left alone: it is not yet
    what dvc.lock records.
    """
    root, done = root.resolve(), Mended()
    busy = locked(root, "mend", "outputs are being mended", "wait for that to end", patience=600.0)
    # Under DVC's lock no stage that has ended waits to be recorded, so dvc.lock is read after it.
    with busy, opened(root) as before, dvc_locked(before.repo), opened(root) as project:
        for path, faults in list(workspace_faults(project, paths)):
            if not faults:
                continue
            stage, md5 = recorded(project)[path]
            try:
                with not_being_made(project.repo, outs_of(project)[path].fs_path):
                    _mend(project, root, path, stage, md5, done, say)
            except LockError:
                say(f"{path}: {stage} is making it now, so it is left as it is")
    return done


def _mend(
    project: Project, root: Path, path: str, stage: str, md5: str, done: Mended, say: Say
) -> None:
    found = _gather(project, root, path, md5, say)
    if found and _restore(project, root, path, md5):
        done.restored.append(path)
        say(f"{path}: restored from {found}")
        return
    done.remake.append(stage)
    for file in [root / path, *(root / path).rglob("*")]:
        with contextlib.suppress(OSError):
            os.utime(file)
    say(f"{path}: no good copy is left; the stage {stage} makes it again")


def mend_cache(root: Path, report: Report, say: Say) -> None:
    """Remove the damaged objects of the cache; replace those of the present outputs."""
    with opened(root.resolve()) as project:
        for fault in report.faults:
            if fault.place != CACHE:
                continue
            object_path(project.repo, fault.oid).unlink(missing_ok=True)
            say(f"{fault.file}: removed from DVC's cache")
        gone = {f.out for f in report.faults if f.place == CACHE and f.out}
        for path in sorted(gone):
            _, md5 = recorded(project)[path]
            found = _gather(project, root.resolve(), path, md5, say)
            if found:
                say(f"{path}: whole in DVC's cache again, from {found}")
            else:
                say(f"{path}: its cached copy is gone; `reflow run` makes it again when needed")


def mend_remote(root: Path, remote: str, report: Report, say: Say) -> None:
    """Replace the damaged objects of a remote that is a folder by good ones of the cache."""
    with opened(root.resolve()) as project:
        for fault in report.faults:
            if fault.place != remote:
                continue
            good, bad = object_path(project.repo, fault.oid), Path(fault.file)
            if not is_good(good, fault.oid):
                say(f"{bad}: no good copy is here; remove it and `dvc push` from another machine")
                continue
            _put(good, bad)
            say(f"{bad}: replaced by the good copy of DVC's cache")


def _gather(project: Project, root: Path, path: str, md5: str, say: Say) -> str:
    """Let the cache have every object of an output, each checked; "" where one cannot be had."""
    sources = {"the cache"}
    now = Content.of(outs_of(project)[path]) if outs_of(project)[path].exists else None
    if now and now.md5 == md5 and md5.endswith(".dir"):
        _write(object_path(project.repo, md5), now.listing, md5)
    if not (source := _have(project, root, path, md5, None)):
        return ""
    sources.add(source)
    here = {oid: name for name, oid in (now.files if now else {}).items()}
    for oid in {*listing(project.repo, md5).values()} - {md5}:
        own = root / path / here[oid] if oid in here else None
        if not (source := _have(project, root, path, oid, own)):
            return ""
        sources.add(source)
    return " and ".join(sorted(sources - {"the cache"})) or "the cache"


def _have(project: Project, root: Path, path: str, oid: str, own: Path | None) -> str:
    """Let the cache have one object; return where it is from, "" if nothing has a good one."""
    there = object_path(project.repo, oid)
    if is_good(there, oid):
        return "the cache"
    there.unlink(missing_ok=True)
    own = own or (root / path if (root / path).is_file() else None)
    if own and is_good(own, oid):
        _put(own, there)
        return "the workspace"
    if not oid.endswith(".dir"):
        with contextlib.suppress(ReflowError, UnicodeDecodeError):
            _write(there, file_at(root, "HEAD", f"./{path}").encode(), oid)
        if is_good(there, oid):
            return "git"
    for remote in remotes(root):
        with contextlib.suppress(ReflowError), answers(project.repo, remote):
            odb: Any = odb_of(project.repo, remote)
            if not exists(odb, oid):
                continue
            part = _part(there)
            odb.fs.get_file(odb.oid_to_path(oid), str(part))
            _adopt(part, there, oid)
        if is_good(there, oid):
            return f"remote {remote}"
    return ""


def _part(file: Path) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    return file.with_name(f"{file.name}.{os.getpid()}.part")


def _put(good: Path, there: Path) -> None:
    """Put a copy of a file in place of another, as a read-only object of the cache."""
    part = _part(there)
    shutil.copyfile(good, part)
    part.chmod(0o444)
    part.replace(there)


def _write(there: Path, content: bytes, oid: str) -> None:
    part = _part(there)
    part.write_bytes(content)
    _adopt(part, there, oid)


def _adopt(part: Path, there: Path, oid: str) -> None:
    """Make a file a read-only object of the cache if it is the one wanted, else remove it."""
    if is_good(part, oid):
        part.chmod(0o444)
        part.replace(there)
    part.unlink(missing_ok=True)


def _restore(project: Project, root: Path, path: str, md5: str) -> bool:
    """Replace an output of the workspace by the good copy in the cache."""
    out, file = outs_of(project)[path], root / path
    if file.is_dir() and not file.is_symlink():
        shutil.rmtree(file)
    else:
        file.unlink(missing_ok=True)
    if out.use_cache:
        out.checkout(force=True)
    else:
        file.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(object_path(project.repo, md5), file)
    return bool(out.exists and Content.of(out).md5 == md5)
