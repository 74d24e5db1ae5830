"""Check every output of dvc.lock: in the workspace, in DVC's cache and in its remotes."""

import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flows.dag.graph import Project, opened, overlap
from flows.dag.outputs.content import (
    Content,
    Fault,
    differences,
    is_good,
    listing,
    outs_of,
    recorded,
)
from flows.dag.outputs.store import CACHE, WORKSPACE, answers, exists, odb_of

OBJECT = re.compile(r"[0-9a-f]{2}/[0-9a-f]{30}(\.dir)?")
Tell = Callable[[str, int, int], object]
"""Called as (what is checked now, bytes done, bytes in all)."""


@dataclass
class Report:
    """What a check found: faults, outputs that are absent, notes, and how much was read."""

    faults: list[Fault] = field(default_factory=list)
    absent: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    files: int = 0
    bytes: int = 0


def check(
    root: Path, *, cache: bool = True, remotes: Iterable[str] = (), tell: Tell = lambda *_: None
) -> Report:
    """Check the outputs of dvc.lock in the workspace, the whole cache, and some remotes.

    Of the outputs of the present dvc.lock, a remote that is a folder is read; of any other it is
    asked what it has. Raises ReflowError for a remote that does not answer.
    """
    report = Report()
    with opened(root) as project:
        names = _names(project)
        objects = _objects(project) if cache else {}
        total = sum(file.stat().st_size for file in objects.values())
        total += sum(int(o.get("size") or 0) for s in project.stages for o in _locked(project, s))
        done = 0
        tell(WORKSPACE, 0, total)
        for path, faults in workspace_faults(project, report=report):
            report.faults += faults
            tell(path, report.bytes, total)
        done = report.bytes
        for oid, file in objects.items():
            done += file.stat().st_size
            if not is_good(file, oid):
                shown = os.path.relpath(file, root)
                report.faults.append(Fault(CACHE, shown, names.get(oid, ""), BROKEN, oid))
            tell(CACHE, done, total)
        report.files, report.bytes = report.files + len(objects), done
        for remote in remotes:
            tell(f"remote {remote}", done, total)
            _check_remote(project, remote, names, report)
    return report


def workspace_faults(
    project: Project, paths: Iterable[str] | None = None, report: Report | None = None
) -> Iterator[tuple[str, list[Fault]]]:
    """Yield (output, its faults) for the outputs of dvc.lock, or those that overlap `paths`."""
    report = report or Report()
    outs, wanted = outs_of(project), None if paths is None else list(paths)
    for path, (_, md5) in recorded(project).items():
        if wanted is not None and not any(overlap(path, p) for p in wanted):
            continue
        if not outs[path].exists:
            report.absent.append(path)
            yield path, []
            continue
        now = Content.of(outs[path])
        report.files, report.bytes = report.files + len(now.files), report.bytes + now.bytes
        same = now.md5 == md5
        yield path, [] if same else differences(path, listing(project.repo, md5), now)


BROKEN = "not the content that its name says"


def _locked(project: Project, name: str) -> list[Mapping[str, Any]]:
    found: list[Mapping[str, Any]] = project.locked(name).get("outs", [])
    return found


def _names(project: Project) -> dict[str, str]:
    """Return the output to which each object of the present dvc.lock belongs, by hash."""
    found: dict[str, str] = {}
    for path, (_, md5) in recorded(project).items():
        for oid in (md5, *listing(project.repo, md5).values()):
            found.setdefault(oid, path)
    return found


def _objects(project: Project) -> dict[str, Path]:
    """Return the objects of the local cache by hash: those of every version that it has."""
    top = Path(project.repo.cache.local.path)
    files = sorted(top.glob("[0-9a-f][0-9a-f]/*"))
    named = {file.relative_to(top).as_posix(): file for file in files}
    return {n.replace("/", ""): f for n, f in named.items() if OBJECT.fullmatch(n) and f.is_file()}


def _check_remote(project: Project, remote: str, names: Mapping[str, str], report: Report) -> None:
    with answers(project.repo, remote):
        odb = odb_of(project.repo, remote)
        there = [oid for oid in names if exists(odb, oid)]
    cached = {path for path, out in outs_of(project).items() if out.use_cache}
    lacking = {names[oid] for oid in names if oid not in there} & cached
    if lacking:
        report.notes.append(
            f"remote {remote}: lacks {', '.join(sorted(lacking))}, or a part of it; `dvc push -r"
            f" {remote}` sends it"
        )
    if odb.fs.protocol != "local":
        report.notes.append(
            f"remote {remote}: {len(there)} objects are there; whether their content is good can"
            " only be known where they are fetched to"
        )
        return
    for oid in there:
        file = Path(odb.oid_to_path(oid))
        report.files, report.bytes = report.files + 1, report.bytes + file.stat().st_size
        if not is_good(file, oid):
            report.faults.append(Fault(remote, str(file), names[oid], BROKEN, oid))
