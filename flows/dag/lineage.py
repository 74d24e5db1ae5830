"""The lineage of a stage: a key for its whole history, the same before and after a run."""

from collections.abc import Mapping
from pathlib import Path

from flows.dag import inputs
from flows.dag.graph import data_deps, known, md5, opened, overlap, params_of
from flows.dag.lock import Entry, File, digest
from fmcore.settings import ReflowError


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
                    known: str | None = inputs.md5(project.inputs[path])
                else:
                    source = not any(overlap(path, out) for out in made)
                    known = md5(dep, name) if source else None
                deps[path] = File(known)
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
        if name != inputs.STAGE  # its files are leaves: they record what is outside of DVC's graph
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
