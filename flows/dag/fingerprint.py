"""The inputs of a stage and their fingerprint, from DVC's own hashes and its hash cache."""

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dvc.stage import PipelineStage, create_stage

from flows.dag import inputs as meanings
from flows.dag.errors import in_one_line
from flows.dag.graph import (
    Params,
    command,
    data_deps,
    md5,
    open_repo,
    opened,
    params_of,
)
from flows.dag.lock import digest
from fmcore.settings import ReflowError


@dataclass(frozen=True)
class Inputs:
    """Everything that a stage's result depends on: command, md5 by dependency, parameters."""

    cmd: str
    deps: dict[str, str]
    params: Params

    @property
    def fingerprint(self) -> str:
        """sha256 of the inputs, known before the stage runs."""
        return digest({"cmd": self.cmd, "deps": self.deps, "params": self.params})


def inputs(root: Path, name: str) -> Inputs:
    """Hash what the stage depends on, with DVC's own hashes and its hash cache.

    A file that the stage `inputs` makes is hashed as that stage would write it now, from the
    meaning of the current code and the content of the current files.
    """
    with opened(root) as project:
        return _inputs(project.stage(name), project.inputs)


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
        text = (root / path).read_text() if (root / path).is_file() else None
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
    return Inputs(command(stage.cmd), deps, params_of(stage, strict=True))
