"""What a stage does around its work: an honest record, one process at a time, no orphans.

DVC writes into dvc.lock the inputs as they are when a command ends (treeverse/dvc#11058): edit
params.yaml while a model trains, and the record says that it was trained with the new values.
"""

import fcntl
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO
from urllib.parse import quote

from flows import dag
from flows.leash import die_with_parent
from fmcore.settings import ReflowError

BUSY = "is already running"
"""In the message of a stage whose lock is held: the run of the chain may try that one again."""


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
    with locked(root, name):
        before = dag.inputs(root, name)
        scratch = _scratch(root, name, before)
        _keep_only(scratch)
        yield scratch
        changes = _changes(before, dag.again(root, before))
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
    with locked(root, name, exclusive=False):
        scratch = _scratch(root, name, dag.inputs(root, name))
        scratch.mkdir(parents=True, exist_ok=True)
        yield scratch


def scratch_of(root: Path, name: str) -> Path:
    """Return the scratch folder that `guarded` yields to the stage `name`, as its inputs are."""
    root = root.resolve()
    return _scratch(root, name, dag.inputs(root, name))


def _scratch(root: Path, name: str, inputs: dag.Inputs) -> Path:
    return root / ".reflow" / "scratch" / quote(name, safe="@") / inputs.fingerprint


@contextmanager
def locked(
    root: Path, name: str, patience: float = 2.0, *, exclusive: bool = True
) -> Iterator[None]:
    """Hold the stage's lock, alone or with others; the kernel lets go of it however one ends."""
    path = root / ".reflow" / "locks" / f"{quote(name, safe='@')}.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+") as file:
        _acquire(file, name, patience, fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH)
        file.seek(0)
        file.truncate()
        file.write(f"{os.getpid()}\n")
        file.flush()
        yield


def _acquire(file: IO[str], name: str, patience: float, kind: int) -> None:
    deadline = time.monotonic() + patience  # a killed process may need a moment to be gone
    while True:
        try:
            fcntl.flock(file, kind | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() > deadline:
                file.seek(0)
                holder = file.read().strip() or "unknown"
                raise ReflowError(
                    f"stage {name} {BUSY} (process {holder}); wait for it to end, or end it"
                ) from None
            time.sleep(0.05)


def _keep_only(scratch: Path) -> None:
    """Make the scratch folder; remove those of other inputs, so that nothing resumes from them."""
    scratch.mkdir(parents=True, exist_ok=True)
    for other in scratch.parent.iterdir():
        if other != scratch:
            shutil.rmtree(other, ignore_errors=True)


def _changes(before: dag.Inputs, after: dag.Inputs) -> list[str]:
    changes = [
        f"dependency {path}" for path in before.deps if before.deps[path] != after.deps[path]
    ]
    for file, values in before.params.items():
        keys = sorted({*values, *after.params[file]})
        changes += [
            f"{file}: {key}" for key in keys if values.get(key) != after.params[file].get(key)
        ]
    return changes
