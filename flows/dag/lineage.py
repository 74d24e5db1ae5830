"""What a stage depends on: the fingerprint of its inputs, the lineage of its whole history."""

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dvc.stage import PipelineStage, create_stage

from flows.dag import inputs as meanings
from flows.dag.graph import (
    Params,
    Project,
    command,
    data_deps,
    known,
    md5,
    opened,
    overlap,
    params_of,
)
from flows.dag.lock import Entry, File, digest
from flows.dag.outputs.content import unlike
from flows.dag.repo import in_one_line, open_repo
from fmcore.settings import ReflowError


@dataclass(frozen=True)
class Inputs:
    """Everything that a stage's result depends on: command, md5 by dependency, parameters.

    `damaged` names files that are not what dvc.lock records, whatever DVC remembers of them. It and
    `outs`, the paths of the outputs, are no part of the fingerprint.
    """

    cmd: str
    deps: dict[str, str]
    params: Params
    damaged: tuple[str, ...] = ()
    outs: tuple[str, ...] = ()

    @property
    def fingerprint(self) -> str:
        """sha256 of the inputs, known before the stage runs."""
        return digest({"cmd": self.cmd, "deps": self.deps, "params": self.params})


def inputs(root: Path, name: str, *, read: bool = False) -> Inputs:
    """Hash what the stage depends on, with DVC's own hashes and its hash cache.

    A file that the stage `inputs` makes is hashed as that stage would write it now, from the
    meaning of the current code and the content of the current files. With `read` every byte of the
    others is read too, to find the damaged ones.
    """
    with opened(root) as project:
        return _read(project, name, read)


def again(root: Path, earlier: Inputs) -> Inputs:
    """Hash the same dependencies and parameters as `earlier` once more.

    dvc.yaml is not read again, because DVC does not read it when a command ends either, and a
    half-edited dvc.yaml must not fail a stage that has trained for hours.
    """
    root = root.resolve()
    with in_one_line(root), open_repo(root) as repo:
        stage = create_stage(
            PipelineStage,
            repo,
            path=str(root / "dvc.yaml"),
            name="again",
            wdir=str(root),
            cmd=earlier.cmd,
            deps=list(earlier.deps),
            params=[{file: list(values)} for file, values in earlier.params.items()],
        )
        return _inputs(stage, _computed(root, earlier.deps))


def stale(root: Path, found: Inputs) -> list[str]:
    """Return in words how the files of the stage `inputs` on the disk differ from the code now."""
    said: list[str] = []
    now = _computed(root, found.deps)
    for path in found.deps:
        if path not in now:
            continue
        text = meanings.text_of(root / path)
        if text != now[path]:
            said += meanings.changes(text, now[path])
    return said


def _computed(root: Path, deps: Iterable[str], seconds: float = 3.0) -> dict[str, str]:
    """Return what the stage `inputs` would write now into those of its files that are in `deps`.

    Try again for some seconds: an editor may be saving params.yaml.
    """
    own = [path for path in deps if path.startswith(f"{meanings.FOLDER}/")]
    deadline = time.monotonic() + seconds
    while own:
        try:
            return meanings.compute(root, own)
        except ReflowError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)
    return {}


def fingerprint(root: Path, name: str) -> str:
    """Return the sha256 of the stage's command, the hashes of its dependencies, its parameters."""
    return inputs(root, name).fingerprint


def _inputs(stage: Any, computed: Mapping[str, str]) -> Inputs:
    deps = {}
    for dep in data_deps(stage):
        text = computed.get(dep.def_path)
        deps[dep.def_path] = md5(dep, stage.name) if text is None else meanings.md5(text)
    outs = tuple(out.def_path for out in stage.outs)
    return Inputs(command(stage.cmd), deps, params_of(stage, strict=True), outs=outs)


def recorded(root: Path, names: Iterable[str]) -> dict[str, str]:
    """Return the fingerprints of those stages whose results DVC keeps: dvc.lock has the entry, and
    the cache has every output that it shall hold.

    Such a result is restored, not made again. Stages without one are left out.
    """
    with opened(root) as project:
        return _recorded(project, names)


def inputs_and_recorded(
    root: Path, name: str, others: Iterable[str], *, read: bool = False
) -> tuple[Inputs, dict[str, str]]:
    """Return what `inputs` and `recorded` do, opening the project once."""
    with opened(root) as project:
        return _read(project, name, read), _recorded(project, others)


def _read(project: Project, name: str, read: bool) -> Inputs:
    stage = project.stage(name)
    found = _inputs(stage, project.inputs)
    if not read:
        return found
    damaged: list[str] = []
    for dep in data_deps(stage):
        if dep.def_path not in project.inputs:
            damaged += unlike(project, dep, found.deps[dep.def_path])
    return replace(found, damaged=tuple(dict.fromkeys(damaged)))


def _recorded(project: Project, names: Iterable[str]) -> dict[str, str]:
    found = {}
    for name in set(names) & project.stages.keys():
        entry = Entry.of(project.locked(name))
        outs = [out for out in project.stages[name].outs if out.use_cache]
        if entry and all(_cached(out, entry.outs.get(out.def_path)) for out in outs):
            deps = {path: file.md5 or "" for path, file in entry.deps.items()}
            found[name] = Inputs(command(entry.cmd), deps, entry.params).fingerprint
    return found


def _cached(out: Any, file: File | None) -> bool:
    """Whether DVC's cache has an output as dvc.lock names it; DVC stores a folder's list last."""
    return bool(file and file.md5 and Path(out.cache.oid_to_path(file.md5)).exists())


def entries(root: Path) -> dict[str, Entry]:
    """Return the stages of the present workspace as dvc.lock would record them.

    Only files that no stage makes are hashed, because they are known before anything runs; `md5`
    of the others is None.
    """
    with opened(root) as project:
        made = [out.def_path for stage in project.stages.values() for out in stage.outs]
        found = {}
        for name, stage in project.stages.items():
            deps: dict[str, File] = {}
            for dep in data_deps(stage):
                path = dep.def_path
                if path in project.inputs:
                    found_md5: str | None = meanings.md5(project.inputs[path])
                else:
                    source = not any(overlap(path, out) for out in made)
                    found_md5 = md5(dep, name) if source else None
                deps[path] = File(found_md5)
            outs = {out.def_path: File() for out in stage.outs}
            params = params_of(stage, strict=True)
            found[name] = Entry(stage.cmd, deps, outs, params, digest([stage.cmd, params]))
        return found


def lock_entries(root: Path, rev: str | None = None) -> dict[str, Entry]:
    """Return the entries of dvc.lock, of a git revision if given, for stages still in dvc.yaml."""
    if rev is None:
        locked = known(root).locked
    else:
        with opened(root, rev) as project:
            locked = {name: project.locked(name) for name in project.stages}
    found = {name: Entry.of(entry) for name, entry in locked.items()}
    return {name: entry for name, entry in found.items() if entry is not None}


def lineage(entries: Mapping[str, Entry]) -> dict[str, str]:
    """Return a key per stage that identifies its whole history (a Merkle tree, leaves first).

    key = sha256(command, parameters, md5 of the files no stage makes, keys of the stages that
    make the others), so that it is known before anything runs and is the same on any machine.
    """
    made = [
        (out, name)
        for name, entry in entries.items()
        for out in entry.outs
        if name
        != meanings.STAGE  # its files are leaves: they record what is outside of DVC's graph
    ]
    keys: dict[str, str] = {}

    def key(name: str, path: tuple[str, ...]) -> str:
        if name in path:
            raise ReflowError(f"stages depend on each other in a circle: {' -> '.join(path)}")
        if name not in keys:
            entry = entries[name]
            leaves: dict[str, object] = {}
            for dep, file in entry.deps.items():
                makers = {maker for out, maker in made if overlap(out, dep)}
                above = sorted(key(maker, (*path, name)) for maker in makers)
                leaves[dep] = above or file.md5
            keys[name] = digest({"cmd": entry.cmd, "params": entry.params, "deps": leaves})
        return keys[name]

    return {name: key(name, ()) for name in entries}
