"""What a stage does around its work: an honest record, one process at a time, no orphans.

DVC writes into dvc.lock the inputs as they are when a command ends (treeverse/dvc#11058): edit
params.yaml while a model trains, and the record says that it was trained with the new values.
"""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from flows.dag import fingerprint
from flows.project import events
from flows.project.locks import stage_locked
from flows.project.process_group import die_with_parent
from fmcore.settings import ReflowError


@contextmanager
def guarded(root: Path, name: str) -> Iterator[Path]:
    """Yield the scratch folder of the stage `name`, to work in while its inputs are watched.

    The folder `.reflow/scratch/<name>/<fingerprint>/` outlives a killed process, so that the next
    one resumes from it; it belongs to these very inputs, and goes when the stage succeeds. Raises
    ReflowError when the stage runs already, or when its inputs changed meanwhile: the stage
    then fails and DVC records nothing.
    """
    root = root.resolve()
    die_with_parent()
    with stage_locked(root, name):
        before = fingerprint.inputs(root, name)
        if stale := fingerprint.stale(root, before):
            raise ReflowError(
                f"stage {name}: its record of code and files is of another state"
                f" ({'; '.join(stale)}); `reflow run` or `dvc repro` brings it up to date first"
            )
        scratch = _scratch(root, name, before)
        _keep_only(scratch)
        yield scratch
        changes = _changes(before, fingerprint.again(root, before))
        if changes:
            raise ReflowError(
                f"stage {name}: its inputs changed while it ran ({'; '.join(changes)}), so nothing"
                " was recorded; leave them alone while it runs, and run it again"
            )
        shutil.rmtree(scratch, ignore_errors=True)


@contextmanager
def shared(root: Path, name: str) -> Iterator[Path]:
    """Yield the scratch folder of the stage `name` to one of many jobs that fill it side by side.

    The stage itself does not run meanwhile: it would take the folder away from under them.
    """
    root = root.resolve()
    with stage_locked(root, name, exclusive=False):
        scratch = _scratch(root, name, fingerprint.inputs(root, name))
        scratch.mkdir(parents=True, exist_ok=True)
        yield scratch


def scratch_of(root: Path, name: str) -> Path:
    """Return the scratch folder that `guarded` yields to the stage `name`, as its inputs are."""
    root = root.resolve()
    return _scratch(root, name, fingerprint.inputs(root, name))


def _scratch(root: Path, name: str, inputs: fingerprint.Inputs) -> Path:
    return events.scratch_of(root, name) / inputs.fingerprint


def _keep_only(scratch: Path) -> None:
    """Make the scratch folder; remove those of other inputs, so that nothing resumes from them."""
    scratch.mkdir(parents=True, exist_ok=True)
    for other in scratch.parent.iterdir():
        if other != scratch and other.is_dir():  # the events of the last process stay
            shutil.rmtree(other, ignore_errors=True)


def _changes(before: fingerprint.Inputs, after: fingerprint.Inputs) -> list[str]:
    changes = [
        f"dependency {path}" for path in before.deps if before.deps[path] != after.deps[path]
    ]
    for file, values in before.params.items():
        keys = sorted({*values, *after.params[file]})
        changes += [
            f"{file}: {key}" for key in keys if values.get(key) != after.params[file].get(key)
        ]
    return changes
