"""Paths in params.yaml that are not there: told before a run, not when their stage begins.

A machine that only compares may have none of them, so reading params.yaml does not look. A stage
needs its paths when it runs; one that is unchanged, or that DVC restores, needs none.
"""

from collections.abc import Iterable
from typing import TYPE_CHECKING

from flows.dag import inputs
from flows.dag.graph import Project, data_deps
from fmcore.settings import ReflowError

if TYPE_CHECKING:
    from flows.dag.plan import Planned

SHOWN = 3
"""Stages that a line names."""
MISSING = '"missing": true'
"""How a file of `inputs` says that a path is not there."""


def missing(project: Project) -> dict[str, dict[str, str]]:
    """Return the paths that are not there, by their places, for each file of `inputs`.

    What a stage of dvc.yaml makes is not missing: it will be there.
    """
    if not any(MISSING in text for text in project.inputs.values()):
        return {}  # the usual case, without another look
    made = [out.def_path for stage in project.stages.values() for out in stage.outs]

    def will_be(path: str) -> bool:
        whole = (project.root / path).resolve()
        return any(whole.is_relative_to(project.root / out) for out in made)

    return {
        file: {place: path for place, path in found.items() if not will_be(path)}
        for file, found in inputs.missing_to(project.root).items()
    }


def needed(stage: object, absent: dict[str, dict[str, str]]) -> dict[str, str]:
    """Return those of the paths `absent` that a stage of DVC needs, by their places."""
    found: dict[str, str] = {}
    for dep in data_deps(stage):
        found |= absent.get(dep.def_path, {})
    return found


def lines(planned: "Iterable[Planned]") -> list[str]:
    """Say for each path that is not there which stages need it, and how to mend it."""
    stages: dict[tuple[str, str], list[str]] = {}
    for item in planned:
        for named in item.missing.items():
            stages.setdefault(named, []).append(item.stage)
    return [
        f"{place}: {path} is not there, and {_listed(needing)} it; put it there, or mend the path"
        for (place, path), needing in stages.items()
    ]


def refuse(planned: "Iterable[Planned]") -> None:
    """Raise ReflowError, a line for each path, if a stage that runs needs one that is not there."""
    if said := lines(planned):
        raise ReflowError("\n".join(said))


def _listed(stages: list[str]) -> str:
    """Return stages and the verb that follows.

    >>> _listed(["prepare"]), _listed(["a", "b", "c", "d", "e"])
    ('prepare needs', 'a, b, c and 2 more need')
    """
    more = f" and {len(stages) - SHOWN} more" if len(stages) > SHOWN else ""
    return f"{', '.join(stages[:SHOWN])}{more} need{'s' if len(stages) == 1 else ''}"
