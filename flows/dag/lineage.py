"""The lineage of a stage: a key for its whole history, the same before and after a run."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flows.dag import inputs
from flows.dag.graph import data_deps, known, md5, opened, overlap, params_of
from fmcore.settings import ReflowError


def entries(root: Path) -> dict[str, dict[str, Any]]:
    """Return the stages of the present workspace in the shape of dvc.lock.

    Only files that no stage makes are hashed (`md5` of the others is None): those are known
    before anything runs.
    """
    with opened(root) as project:
        made = [out.def_path for stage in project.stages.values() for out in stage.outs]
        found = {}
        for name, stage in project.stages.items():
            deps = []
            for dep in data_deps(stage):
                path = dep.def_path
                if path in project.inputs:
                    known: str | None = inputs.md5(project.inputs[path])
                else:
                    source = not any(overlap(path, out) for out in made)
                    known = md5(dep, name) if source else None
                deps.append({"path": path, "md5": known})
            outs = [{"path": out.def_path} for out in stage.outs]
            found[name] = {
                "cmd": stage.cmd,
                "deps": deps,
                "params": params_of(stage, strict=True),
                "outs": outs,
            }
        return found


def lock_entries(root: Path, rev: str | None = None) -> dict[str, dict[str, Any]]:
    """Return the entries of dvc.lock, of a git revision if given, for stages still in dvc.yaml."""
    if rev is None:
        return dict(known(root).locked)
    with opened(root, rev) as project:
        return {name: project.locked(name) for name in project.stages if project.locked(name)}


def lineage(entries: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """Return a key per stage that names its whole history (a Merkle tree, leaves first).

    key = sha256(command, parameters, md5 of the files no stage makes, keys of the stages that
    make the others), so that it is known before anything runs and is the same on any machine.
    """
    made = [
        (out["path"], name)
        for name, entry in entries.items()
        for out in entry.get("outs", [])
        if name != inputs.STAGE  # its files are leaves: they hold what lies outside of the graph
    ]
    keys: dict[str, str] = {}

    def key(name: str, path: tuple[str, ...]) -> str:
        if name in path:
            raise ReflowError(f"stages depend on each other in a circle: {' -> '.join(path)}")
        if name not in keys:
            entry = entries[name]
            leaves: dict[str, object] = {}
            for dep in entry.get("deps", []):
                makers = {maker for out, maker in made if overlap(out, dep["path"])}
                above = sorted(key(maker, (*path, name)) for maker in makers)
                leaves[dep["path"]] = above or dep["md5"]
            cmd, params = entry["cmd"], entry.get("params", {})
            keys[name] = digest({"cmd": cmd, "params": params, "deps": leaves})
        return keys[name]

    return {name: key(name, ()) for name in entries}


def digest(value: object) -> str:
    """Return the sha256 of a value written as JSON with sorted keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()
