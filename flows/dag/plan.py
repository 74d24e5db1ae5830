"""Which stages will run, and why, in words.

DVC's own `status` and `repro --dry` stop at the first changed stage. This plan also follows the
stages downstream, and says which results the run cache holds and which must be computed.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from dvc.exceptions import DvcException
from dvc.stage import PipelineStage, create_stage
from dvc.stage.loader import StageLoader
from dvc_data.hashfile.hash_info import HashInfo
from dvc_data.hashfile.meta import Meta

from flows.dag import absent, inputs
from flows.dag.graph import (
    Command,
    Project,
    Stage,
    command,
    data_deps,
    opened,
    overlap,
    param_deps,
    params_of,
    remember,
)
from flows.dag.outputs.earlier import entry_of, moved, other_names

Future = dict[str, tuple[str, Any, bool]]
"""The outputs that will change on the disk: {path: (stage, hash, differs)}.

The stage makes the output; the hash is that after the run, None if only the run can tell; `differs`
says whether it is not the hash in dvc.lock."""

State = Literal["run", "downstream", "cached", "unchanged"]


@dataclass(frozen=True)
class Planned:
    """What will happen to a stage, and why.

    `run`: its own inputs changed. `downstream`: a stage that it depends on will run. `cached`: DVC
    restores the result without running the stage. `unchanged`: nothing happens. `missing` are the
    paths in params.yaml that a stage which runs needs and that are not there, by their places.
    """

    stage: str
    state: State
    reasons: tuple[str, ...]
    missing: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Restored:
    """The hash of each output that a stage gets without running, by path.

    `origin` is the stage that made them, if it was another one; empty if it was the stage itself.
    """

    hashes: dict[str, Any]
    origin: str


def changed(root: Path, name: str) -> list[str]:
    """Return in words why DVC would run the stage now; empty when it is up to date."""
    with opened(root) as project:
        return list(_reasons(project, project.stage(name), {}))


def plan(root: Path) -> list[Planned]:
    """Return what a run of the whole chain will do, in the order of the run."""
    with opened(root) as project:
        return _plan(project)


def read_and_plan(root: Path) -> tuple[dict[str, Stage], list[Planned]]:
    """Return the stages of dvc.yaml and what a run will do; opens the DVC project only once.

    A stage that is `unchanged` stays so during the run, because nothing upstream will change.
    """
    with opened(root) as project:
        return remember(project).stages, _plan(project)


def _plan(project: Project) -> list[Planned]:
    planned = []
    future: Future = {}
    states: dict[str, State] = {}
    nowhere = absent.missing(project)
    for name, stage in project.stages.items():
        above = [
            up
            for up in project.upstream[name]
            if states[up] in ("run", "downstream") and up != inputs.STAGE
        ]
        own = list(_reasons(project, stage, future))
        later = [f"depends on {up}, which will run" for up in above]
        later += _unforeseen(stage, future, above)
        state: State = "run" if own else "downstream" if later else "unchanged"
        restored = _restored(project, stage, future) if own and not later else None
        if restored is not None:
            state = "cached"
            own += [f"{restored.origin} had the same inputs"] if restored.origin else []
        if state != "unchanged" and name != inputs.STAGE:
            for out in stage.outs:
                after = restored.hashes[out.def_path] if restored else None
                future[out.def_path] = (name, after, after != out.hash_info)
        states[name] = state
        needed = absent.needed(stage, nowhere) if state == "run" else {}
        planned.append(Planned(name, state, (*own, *later), needed))
    return planned


def _reasons(project: Project, stage: Any, future: Future) -> Iterator[str]:
    if not project.locked(stage.name):
        yield "never ran"
        return
    if stage.cmd_changed:
        yield "command changed"
    if stage.name == inputs.STAGE:
        if _on_disk(project) != project.inputs:
            yield "code, or a file that params.yaml names, changed"
    elif stage.always_changed or stage.is_callback:
        yield "runs every time (always_changed, or neither dependencies nor outputs)"
    if not stage.frozen:
        for dep in param_deps(stage):
            yield from _param_reasons(dep)
        for dep in data_deps(stage):
            yield from _dep_reasons(project, dep, future)
    for out in stage.outs:
        yield from _out_reasons(out)


def _param_reasons(dep: Any) -> Iterator[str]:
    if not dep.status():
        return
    if not dep.exists:
        yield f"parameters file {dep.def_path} is missing"
        return
    now, before = dep.read_params(), dep.hash_info.value or {}
    for key in dep.params or sorted({*now, *before}):
        for where, change in _difference(now, before, key, key):
            yield f"{dep.def_path}: {where} {change}"


def _difference(now: Any, before: Any, key: str, where: str) -> Iterator[tuple[str, str]]:
    """Yield (dotted path, change in words) for one key of two mappings, down to the leaves."""
    if key not in now:
        yield where, "is missing"
    elif key not in before:
        yield where, f"is new ({_short(now[key])})"
    elif isinstance(now[key], dict) and isinstance(before[key], dict):
        for inner in [*now[key], *(k for k in before[key] if k not in now[key])]:
            yield from _difference(now[key], before[key], inner, f"{where}.{inner}")
    elif now[key] != before[key]:
        yield where, f"changed from {_short(before[key])} to {_short(now[key])}"


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _on_disk(project: Project) -> dict[str, str | None]:
    """Return the content of the files of the stage `inputs` on the disk, by path."""
    files = sorted((project.root / inputs.FOLDER).rglob("*.json"))
    return {file.relative_to(project.root).as_posix(): inputs.text_of(file) for file in files}


def _dep_reasons(project: Project, dep: Any, future: Future) -> Iterator[str]:
    if dep.def_path.startswith(f"{inputs.FOLDER}/") and project.inputs:
        before, after = dep.hash_info.value, project.inputs.get(dep.def_path)
        if after is None or inputs.md5(after) != before:
            yield from inputs.changes(project.cached_text(before), after)
        return
    foretold, hash_info = _foretell(dep.def_path, future)
    if foretold:
        if hash_info is not None and hash_info != dep.hash_info:
            yield f"dependency {dep.def_path} changed"
        return
    status = dep.status()
    for what in status.values():
        words = {"deleted": "is missing", "modified": "changed", "new": "is new"}
        if what == "modified" and not dep.hash_info:
            what = "new"
        yield f"dependency {dep.def_path} {words.get(what, what)}"


def _out_reasons(out: Any) -> Iterator[str]:
    words = {"deleted": "is missing", "modified": "was changed by hand", "new": "is new"}
    for what in out.status().values():
        if not out.exists:
            what = "deleted"
        elif what == "modified" and not out.hash_info:
            what = "new"
        yield f"output {out.def_path} {words.get(what, f'is {what}')}"


def _foretell(path: str, future: Future) -> tuple[bool, Any]:
    """Return whether a path will change before its stage runs, and its hash then, if known."""
    touched = [out for out in future if overlap(out, path)]
    return bool(touched), future[path][1] if touched == [path] else None


def _unforeseen(stage: Any, future: Future, above: list[str]) -> list[str]:
    """Say which restored outputs change a folder that the stage reads; its hash is unknown then."""
    found: list[str] = []
    for dep in [] if stage.frozen else data_deps(stage):
        for out, (maker, _, differs) in future.items():
            inside = out != dep.def_path and overlap(out, dep.def_path)
            if differs and inside and maker not in above:
                found.append(f"depends on {maker}, whose output will change")
    return found


def _restored(project: Project, stage: Any, future: Future) -> Restored | None:
    """Return the outputs of a stage if all of them can be restored without running it."""
    try:
        entry = _cache_entry(project, stage, future)
        if not entry:
            return None
        cached = create_stage(
            PipelineStage,
            project.repo,
            path=stage.path,
            name=stage.name,
            wdir=stage.wdir,
            cmd=entry["cmd"],
            outs=[out["path"] for out in entry["outs"]],
        )
        StageLoader.fill_from_lock(cached, entry)
        if not cached.outs_cached():
            return None
        hashes = {out.def_path: out.hash_info for out in cached.outs}
        whole = {out.def_path for out in stage.outs} <= set(hashes)
        return Restored(hashes, _origin(stage, entry["cmd"])) if whole else None
    except (DvcException, OSError):
        return None


def _cache_entry(project: Project, stage: Any, future: Future) -> Any:
    """Find the lock entry that DVC would restore, in dvc.lock or in the run cache."""
    lost = set(_reasons(project, stage, future)) - {
        reason for out in stage.outs for reason in _out_reasons(out)
    }
    if not lost:
        return project.locked(stage.name)
    if stage.frozen or not _in_run_cache(stage):
        return None
    for dep in param_deps(stage):
        dep.hash_info = dep.get_hash()
    for dep in data_deps(stage):
        if dep.def_path in project.inputs:
            dep.hash_info = HashInfo("md5", inputs.md5(project.inputs[dep.def_path]))
            dep.meta = Meta()
            continue
        foretold, hash_info = _foretell(dep.def_path, future)
        if foretold and hash_info is None:
            return None
        # DVC's key of the run cache reads the hash from both fields; the rest of meta is ignored.
        dep.hash_info = hash_info if foretold else dep.get_hash()
        dep.meta = Meta()
    try:
        return project.repo.stage_cache._load(stage) or _renamed(project, stage)
    except FileNotFoundError:  # DVC's key needs each dependency on the disk, foretold or not
        return _renamed(project, stage)


def _in_run_cache(stage: Any) -> bool:
    """Whether DVC keeps runs of a stage: it has inputs and outputs, all of them in the project."""
    if stage.always_changed or stage.is_callback or not (stage.cmd and stage.deps and stage.outs):
        return False
    here = all(dep.protocol == "local" and dep.def_path for dep in stage.deps)
    return here and all(
        out.protocol == "local" and out.def_path and not out.persist and out.is_in_repo
        for out in stage.outs
    )


def _renamed(project: Project, stage: Any) -> Any:
    """Return the lock entry that the stage will take from a run with other names, if it will."""
    deps = {dep.def_path: str(dep.hash_info.value) for dep in data_deps(stage)}
    now = entry_of(command(stage.cmd), deps, params_of(stage, strict=True))
    cache = Path(project.repo.stage_cache.cache_dir)
    for entry in other_names(project.root, cache, now):
        outs = [{"path": p, "md5": h, "hash": "md5"} for p, h in moved(now, entry).items()]
        return {"cmd": entry.cmd, "outs": outs}
    return None


def _origin(stage: Any, cmd: str | list[str]) -> str:
    """Return the stage that ran a command, if it is not the command of `stage`."""
    parsed = Command.parse(command(cmd))
    return f"{parsed.verb}@{parsed.key}" if parsed and cmd != stage.cmd else ""
