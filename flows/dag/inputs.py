"""The inputs of a stage and their fingerprint, by DVC's own hashes and its cache of them."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dvc.stage import PipelineStage, create_stage

from flows.dag.lineage import digest
from flows.dag.project import (
    Params,
    command,
    data_deps,
    in_one_line,
    md5,
    open_repo,
    opened,
    params_of,
)


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
    """Hash what the stage depends on, with DVC's own hashes and its cache of them."""
    with opened(root) as project:
        return _inputs(project.stage(name))


def again(root: Path, earlier: Inputs) -> Inputs:
    """Hash the same dependencies and parameters as `earlier` once more.

    dvc.yaml is not read again: DVC does not either when a command ends, and a half-edited
    dvc.yaml must not fail a stage that has been training for hours.
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
        return _inputs(stage)


def fingerprint(root: Path, name: str) -> str:
    """Return the sha256 of the stage's command, the hashes of its dependencies, its parameters."""
    return inputs(root, name).fingerprint


def _inputs(stage: Any) -> Inputs:
    deps = {dep.def_path: md5(dep, stage.name) for dep in data_deps(stage)}
    return Inputs(command(stage.cmd), deps, params_of(stage, strict=True))
