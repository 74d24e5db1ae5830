"""An open DVC project: its stages in topological order, its dvc.lock, the paths of a stage."""

import hashlib
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import networkx
from dvc.dependency import ParamsDependency
from dvc.dvcfile import load_file
from dvc.exceptions import DvcException
from dvc.repo.index import Index

from flows.dag import inputs
from flows.dag.repo import CHECKING, in_one_line, open_repo, read_each_file_once
from fmcore.coupling.manifest import md5_elsewhere
from fmcore.settings import ReflowError

Params = dict[str, dict[str, object]]
"""Parameters by file: `{"params.yaml": {"rounds.rf1.train": {...}}}`."""


COMMAND = re.compile(r"python -m flows\.stage (?P<words>.*)", re.DOTALL)


@dataclass(frozen=True)
class Command:
    """A parsed `cmd` of dvc.yaml: a verb, its round or coupling, its paths by name."""

    verb: str
    key: str
    paths: dict[str, str]

    @classmethod
    def parse(cls, cmd: str) -> "Command | None":
        """Parse a command; return None if it is not `python -m flows.stage ...`.

        >>> Command.parse("python -m flows.stage couple rf1 out=couplings/rf1").paths
        {'out': 'couplings/rf1'}
        >>> Command.parse("python prep.py")
        """
        match = COMMAND.fullmatch(cmd.strip())
        words = match["words"].split() if match else []
        names = [word for word in words if "=" not in word]
        if not names:
            return None
        paths = dict(word.split("=", 1) for word in words if "=" in word)
        return cls(names[0], " ".join(names[1:]), paths)


@dataclass(frozen=True)
class Stage:
    """A stage of dvc.yaml. Paths are relative to the project; `upstream` are names of stages.

    `paths` are those in its command, by name; empty if the command is not `python -m flows.stage`.
    """

    name: str
    cmd: str
    paths: dict[str, str]
    deps: tuple[str, ...]
    outs: tuple[str, ...]
    params: Params
    upstream: tuple[str, ...]


class Project:
    """An open DVC project: the stages of its dvc.yaml by name, in topological order."""

    def __init__(self, repo: Any, root: Path) -> None:
        self.repo = repo
        names = ("dvc.yaml", "dvc.lock", "params.yaml")
        self.files = {root / name: _hash(root / name) for name in names}  # before they are read
        file = load_file(repo, str(root / "dvc.yaml"))
        self.lock = file.lockfile_contents
        index = Index(repo, stages=list(file.stages.values()))
        deps = [dep for stage in index.stages for dep in param_deps(stage)]
        read_each_file_once(deps)
        for path in map(Path, {*(d.fs_path for d in deps), *file.resolver.context.imports}):
            self.files.setdefault(root / path, _hash(root / path))
        graph = index.graph.reverse(copy=True)
        order = list(networkx.lexicographical_topological_sort(graph, key=lambda s: s.name))
        self.stages: dict[str, Any] = {stage.name: stage for stage in order}
        self.upstream: dict[str, tuple[str, ...]] = {
            stage.name: tuple(sorted(up.name for up in graph.predecessors(stage)))
            for stage in order
        }
        self.root = root
        self.repro_order = [stage.name for stage in networkx.dfs_postorder_nodes(index.graph)]
        for stage in order:
            if Path(stage.wdir) != root:
                wdir = os.path.relpath(stage.wdir, root)
                raise ReflowError(
                    f"dvc.yaml: stage {stage.name} has wdir {wdir}, expected none:"
                    " write its paths relative to dvc.yaml and remove wdir"
                )

    def stage(self, name: str) -> Any:
        """Return DVC's stage. Raises ReflowError, with the known names, if there is none."""
        if name not in self.stages:
            known = ", ".join(self.stages) or "none"
            raise ReflowError(f"dvc.yaml has no stage {name!r}; its stages: {known}")
        return self.stages[name]

    @cached_property
    def inputs(self) -> dict[str, str]:
        """What the stage `inputs` would write now, by path; empty without that stage."""
        return inputs.compute(self.root) if inputs.STAGE in self.stages else {}

    def cached_text(self, md5: str | None) -> str | None:
        """Return the text of a small file from DVC's cache by its hash; None if it is not there."""
        try:
            return Path(self.repo.cache.local.oid_to_path(md5)).read_text() if md5 else None
        except (OSError, ValueError):
            return None

    def locked(self, name: str) -> dict[str, Any]:
        """Return what dvc.lock records about a stage; empty if it never ran."""
        entries: dict[str, Any] = self.lock.get("stages") or {}
        return entries.get(name) or {}


@contextmanager
def opened(root: Path, rev: str | None = None) -> Iterator[Project]:
    """Open the project in the folder `root`; DVC's errors become one line each."""
    root = root.resolve()
    with in_one_line(root), open_repo(root, rev) as repo:
        with CHECKING:
            project = _patiently(lambda: Project(repo, Path(repo.root_dir)))
        yield project


@dataclass(frozen=True)
class Known:
    """What was read of a project, and the hashes of the files that it was read from."""

    stages: dict[str, Stage]
    locked: dict[str, dict[str, Any]]
    files: dict[Path, str]

    @property
    def holds(self) -> bool:
        """Whether the files are as they were."""
        return all(_hash(file) == hash_ for file, hash_ in self.files.items())


_KNOWN: dict[Path, Known] = {}
"""By project: DVC takes a second to open one, a minute at 200 rounds; many questions come twice."""


def known(root: Path) -> Known:
    """Return the stages of dvc.yaml and entries of dvc.lock; read again only if they changed."""
    root = root.resolve()
    found = _KNOWN.get(root)
    if found is None or not found.holds:
        with opened(root) as project:
            found = remember(project)
    return found


def remember(project: Project) -> Known:
    """Keep what an open project says, for `known`."""
    stages = {name: _describe(project, name) for name in project.stages}
    entries = {name: project.locked(name) for name in stages if project.locked(name)}
    found = _KNOWN[project.root] = Known(stages, entries, project.files)
    return found


def read(root: Path) -> dict[str, Stage]:
    """Return the stages of dvc.yaml by name, each after those that it depends on."""
    stages = known(root).stages
    if not stages:
        raise ReflowError(
            "dvc.yaml has no stages, expected at least one; note that DVC drops the items of"
            " a foreach whose keys are integers: write rf1, not 1"
        )
    return dict(stages)


def paths(root: Path, stage: str) -> dict[str, Path]:
    """Return the paths that dvc.yaml gives a stage, by their names in its command."""
    stages = read(root)
    if stage not in stages:
        kind = stage.split("@")[0]
        known = [s.split("@")[1] for s in stages if s.startswith(f"{kind}@")]
        raise ReflowError(
            f"no {stage.split('@')[-1]!r} among the rounds; params.yaml has: {', '.join(known)}"
        )
    return {name: root / path for name, path in stages[stage].paths.items()}


def prepared(stages: Mapping[str, Stage]) -> str | None:
    """Return the path of the prepared data, from the command of a stage that reads it."""
    return next((s.paths["data"] for s in stages.values() if "data" in s.paths), None)


def sort_lock(root: Path) -> None:
    """Sort the stages in dvc.lock as `dvc repro` writes them, whichever stage ended first."""
    with opened(root) as project, project.repo.lock:
        file = project.root / "dvc.lock"
        if not file.exists():
            return
        before, found, after = _stages_of_lock(file.read_text())
        head, *blocks = re.split(r"^(?=  \S)", found, flags=re.MULTILINE)
        place = {name: i for i, name in enumerate(project.repro_order)}
        last = len(place)
        blocks.sort(key=lambda block: place.get(block.strip().partition(":")[0], last))
        text = before + head + "".join(blocks) + after
        if text != file.read_text():
            temporary = file.with_suffix(".lock.part")
            temporary.write_text(text)
            temporary.replace(file)


def _stages_of_lock(text: str) -> tuple[str, str, str]:
    """Cut the section `stages:` out of dvc.lock: what is before it, the section, what is after."""
    match = re.search(r"^stages:\n(?:[ ].*\n)*", text, flags=re.MULTILINE)
    start, end = match.span() if match else (len(text), len(text))
    return text[:start], text[start:end], text[end:]


def overlap(one: str, other: str) -> bool:
    """Say whether two paths are the same or one lies inside the other."""
    return one == other or one.startswith(f"{other}/") or other.startswith(f"{one}/")


def data_deps(stage: Any) -> list[Any]:
    """Return DVC's dependencies of a stage that are files or folders."""
    return [dep for dep in stage.deps if not isinstance(dep, ParamsDependency)]


def param_deps(stage: Any) -> list[Any]:
    """Return DVC's dependencies of a stage that are parameters, one per file."""
    return [dep for dep in stage.deps if isinstance(dep, ParamsDependency)]


def _describe(project: Project, name: str) -> Stage:
    stage = project.stages[name]
    cmd = command(stage.cmd)
    parsed = Command.parse(cmd)
    return Stage(
        name=name,
        cmd=cmd,
        paths=parsed.paths if parsed else {},
        deps=tuple(dep.def_path for dep in data_deps(stage)),
        outs=tuple(out.def_path for out in stage.outs),
        params=params_of(stage, strict=False),
        upstream=project.upstream[name],
    )


def command(cmd: str | list[str]) -> str:
    """Return a stage's command as one text; DVC also allows a list of lines."""
    return cmd if isinstance(cmd, str) else "\n".join(cmd)


def params_of(stage: Any, *, strict: bool) -> Params:
    """Read the parameters of a stage; if `strict`, a missing one raises DVC's error."""
    return {
        dep.def_path: dict(dep.get_hash().value if strict else dep.read_params())
        for dep in param_deps(stage)
    }


def md5(dep: Any, name: str) -> str:
    """Hash a dependency of the stage `name`, also shards elsewhere; a folder's ends in `.dir`."""
    if not dep.exists:
        raise ReflowError(
            f"stage {name}: dependency {dep.def_path} does not exist;"
            " restore it or run the stage that makes it"
        )
    return md5_elsewhere(Path(dep.fs_path)) or str(dep.get_hash().value)


def _hash(file: Path) -> str:
    """Return the hash of a small file; "" if it cannot be read."""
    try:
        return hashlib.md5(file.read_bytes(), usedforsecurity=False).hexdigest()
    except OSError:
        return ""


def _patiently(load: Callable[[], Project], seconds: float = 3.0) -> Project:
    """Try again while dvc.lock cannot be parsed, because another stage is writing it in place."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            return load()
        except DvcException as error:
            if "dvc.lock" not in str(error) or time.monotonic() > deadline:
                raise
            time.sleep(0.05)
