"""The guard around the work of a stage: a correct record, one process at a time, no orphans.

DVC writes the inputs into dvc.lock as they are when a command ends (treeverse/dvc#11058). So if
params.yaml is edited while a model trains, dvc.lock says that it was trained with the new values.
"""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from flows.dag import lineage
from flows.project import events
from flows.project.locks import Damaged, stage_locked
from flows.project.process_group import die_with_parent
from fmcore.settings import ReflowError


@contextmanager
def guarded(root: Path, name: str) -> Iterator[Path]:
    """Yield the scratch folder of the stage `name`; afterwards check that its inputs are the same.

    The folder `.reflow/scratch/<name>/<fingerprint>/` stays if the process is killed, so that the
    next one resumes from it; it belongs to exactly these inputs, and is removed when the stage
    succeeds. Raises ReflowError if the stage runs already, if a file that it reads is damaged, or
    if its inputs changed meanwhile: the stage then fails and DVC records nothing.
    """
    root = root.resolve()
    die_with_parent()
    with held(root, name) as before:
        scratch = _scratch(root, name, before)
        _keep_only(scratch)
        yield scratch
    shutil.rmtree(scratch, ignore_errors=True)


@contextmanager
def held(root: Path, name: str) -> Iterator[lineage.Inputs]:
    """Yield the inputs of the stage `name` under its lock; afterwards check that they are the same.

    Raises ReflowError as `guarded` does.
    """
    with stage_locked(root, name):
        before = _whole(root, name)
        if stale := lineage.stale(root, before):
            raise ReflowError(
                f"stage {name}: its record of code and files is out of date"
                f" ({'; '.join(stale)}); `reflow run` or `dvc repro` brings it up to date first"
            )
        yield before
        changes = _changes(before, lineage.again(root, before))
        if changes:
            raise ReflowError(
                f"stage {name}: its inputs changed while it ran ({'; '.join(changes)}), so nothing"
                " was recorded; leave them alone while it runs, and run it again"
            )


@contextmanager
def shared(root: Path, name: str) -> Iterator[Path]:
    """Yield the scratch folder of the stage `name` to one of many jobs that fill it side by side.

    The stage itself cannot run meanwhile, because it would remove the folder.
    """
    root = root.resolve()
    with stage_locked(root, name, exclusive=False):
        scratch = _scratch(root, name, _whole(root, name))
        scratch.mkdir(parents=True, exist_ok=True)
        yield scratch


def scratch_of(root: Path, name: str) -> Path:
    """Return the scratch folder that `guarded` yields to the stage `name`, as its inputs are."""
    root = root.resolve()
    return _scratch(root, name, lineage.inputs(root, name))


def _whole(root: Path, name: str) -> lineage.Inputs:
    """Return the inputs of a stage, all of their bytes read. Raises Damaged where they differ."""
    found = lineage.inputs(root, name, read=True)
    if found.damaged:
        raise Damaged(
            f"stage {name}: {', '.join(found.damaged)}: damaged, not the content that dvc.lock"
            " records; `reflow run` or `reflow verify --heal` mends it"
        )
    return found


def _scratch(root: Path, name: str, inputs: lineage.Inputs) -> Path:
    return events.scratch_of(root, name) / inputs.fingerprint


def _keep_only(scratch: Path) -> None:
    """Make the scratch folder; remove those of other inputs, so that nothing resumes from them."""
    scratch.mkdir(parents=True, exist_ok=True)
    for other in scratch.parent.iterdir():
        if other != scratch and other.is_dir():  # the events of the last process stay
            shutil.rmtree(other, ignore_errors=True)


def _changes(before: lineage.Inputs, after: lineage.Inputs) -> list[str]:
    changes = [
        f"dependency {path}" for path in before.deps if before.deps[path] != after.deps[path]
    ]
    for file, values in before.params.items():
        keys = sorted({*values, *after.params[file]})
        changes += [
            f"{file}: {key}" for key in keys if values.get(key) != after.params[file].get(key)
        ]
    return changes
