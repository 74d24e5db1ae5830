"""Look up the paths that dvc.yaml gives a stage, for code that is not a stage itself."""

from collections.abc import Mapping
from pathlib import Path

from flows.dag import graph
from fmcore.settings import ReflowError


def paths(root: Path, stage: str) -> dict[str, Path]:
    """Return the paths that dvc.yaml gives a stage, by their names in its command."""
    stages = graph.read(root)
    if stage not in stages:
        kind = stage.split("@")[0]
        known = [s.split("@")[1] for s in stages if s.startswith(f"{kind}@")]
        raise ReflowError(
            f"no {stage.split('@')[-1]!r} among the rounds; params.yaml has: {', '.join(known)}"
        )
    return {name: root / path for name, path in stages[stage].paths.items()}


def prepared(stages: Mapping[str, graph.Stage]) -> str | None:
    """Return the path of the prepared data, from the command of a stage that reads it."""
    return next((s.paths["data"] for s in stages.values() if "data" in s.paths), None)
