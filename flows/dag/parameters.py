"""Parameters as DVC reads them, with each file parsed once: DVC parses it for each stage."""

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

from dvc.dependency import ParamsDependency

MISSING = object()


def read_each_file_once(deps: Iterable[Any]) -> None:
    """Let these dependencies on parameters share one reading of each of their files."""
    files: dict[str, Any] = {}
    for dep in deps:
        dep.read_params = partial(_read, dep, dep.read_params, files)


def _read(dep: Any, alone: Callable[..., Any], files: dict[str, Any], **how: Any) -> Any:
    """Return what `dep.read_params(**how)` does, called `alone`."""
    if not dep.params or not dep.exists or not how.get("flatten", True):
        return alone(**how)
    if dep.fs_path not in files:
        files[dep.fs_path] = ParamsDependency(dep.stage, dep.def_path, [], dep.repo).read_params()
    found = {}
    for key in dep.params:
        value = files[dep.fs_path]
        for part in key.split("."):
            value = value[part] if isinstance(value, dict) and part in value else MISSING
        if value is MISSING:
            return alone(**how)  # it knows patterns and lists, too
        found[key] = value
    return found
