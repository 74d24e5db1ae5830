"""The guard around the work of a stage: a correct record, one process at a time, no lost work.

DVC writes the inputs into dvc.lock as they are when a command ends (treeverse/dvc#11058). So if
params.yaml is edited while a model trains, dvc.lock says that it was trained with the new values.
"""

import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from urllib.parse import unquote

from flows.dag import lineage
from flows.project import events
from flows.project.locks import Busy, Damaged, stage_locked
from flows.stage import finished
from fmcore.settings import ReflowError

CHECKPOINTS = ("checkpoint.safetensors", "divided")
CONTINUED = "continued"
"""Names of `fmcore.training.checkpoint` and `divided`, whose import takes as long as torch's."""


@contextmanager
def guarded(root: Path, name: str, *, continues: bool = False) -> Iterator[Path]:
    """Yield the scratch folder of the stage `name`; afterwards check that its inputs are the same.

    The folder `.reflow/scratch/<name>/<fingerprint>/` belongs to exactly these inputs. It stays
    until DVC has recorded the result (`sweep`), with links to the outputs of a finished stage: the
    next process resumes from it or adopts them, whenever this one or DVC is killed. If the stage
    `continues`, the checkpoint of other inputs moves to its folder `CONTINUED`.

    Raises ReflowError if the stage runs already, if a file that it reads is damaged, or if its
    inputs changed meanwhile: the stage then fails and DVC records nothing.
    """
    root = root.resolve()
    with held(root, name) as before:
        scratch = _scratch(root, name, before)
        _keep_only(scratch, continues)
        yield scratch
        check_unchanged(root, name, before)
        finished.keep(root, scratch, before.outs)


@contextmanager
def held(root: Path, name: str) -> Iterator[lineage.Inputs]:
    """Yield the inputs of the stage `name`, all of their bytes read, under its lock.

    Raises ReflowError if the stage runs already, or if a file that it reads is damaged.
    """
    with stage_locked(root, name):
        before = _looked_at(root, name, read=True)
        if stale := lineage.stale(root, before):
            raise ReflowError(
                f"stage {name}: its record of code and files is out of date"
                f" ({'; '.join(stale)}); `reflow run` or `dvc repro` brings it up to date first"
            )
        yield before


def check_unchanged(root: Path, name: str, before: lineage.Inputs) -> None:
    """Raise ReflowError if the inputs of a stage are no longer what they were when it began."""
    changes = _changes(before, lineage.again(root, before))
    if changes:
        raise ReflowError(
            f"stage {name}: its inputs changed while it ran ({'; '.join(changes)}), so nothing"
            " was recorded; leave them alone while it runs, and run it again"
        )


def sweep(root: Path) -> None:
    """Remove the scratch folders of the results that DVC has recorded: no run needs them any more.

    Those of a stage that is running stay.
    """
    root = root.resolve()
    if kept := _kept(root):
        _remove(root, kept, lineage.recorded(root, kept.values()))


def _looked_at(root: Path, name: str, *, read: bool = False) -> lineage.Inputs:
    """Return the inputs of the stage `name`, after a `sweep`. Raises Damaged if they are `read`.

    The stage's own folder goes too, if its result is recorded: then DVC runs it because it was told
    to, and it shall not find that result.
    """
    kept = _kept(root)
    found, recorded = lineage.inputs_and_recorded(root, name, kept.values(), read=read)
    _remove(root, kept, recorded, own=name)
    return _whole(name, found)


def _kept(root: Path) -> dict[Path, str]:
    """Return the scratch folders, each with the name of its stage."""
    folders = (root / ".reflow" / "scratch").glob("*/*")
    return {folder: unquote(folder.parent.name) for folder in folders if folder.is_dir()}


def _remove(
    root: Path, kept: Mapping[Path, str], recorded: Mapping[str, str], own: str = ""
) -> None:
    for folder, name in kept.items():
        if recorded.get(name) != folder.name:
            continue
        with suppress(Busy), nullcontext() if name == own else stage_locked(root, name, patience=0):
            shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def shared(root: Path, name: str) -> Iterator[Path]:
    """Yield the scratch folder of the stage `name` to one of many jobs that fill it side by side.

    The stage itself cannot run meanwhile, because it would remove the folder.
    """
    root = root.resolve()
    with stage_locked(root, name, exclusive=False):
        scratch = _scratch(root, name, _whole(name, lineage.inputs(root, name, read=True)))
        scratch.mkdir(parents=True, exist_ok=True)
        yield scratch


def scratch_of(root: Path, name: str) -> Path:
    """Return the scratch folder that `guarded` yields to the stage `name`, as its inputs are.

    For the processes that train together with the one that holds the guard.
    """
    root = root.resolve()
    return _scratch(root, name, _looked_at(root, name))


def _whole(name: str, found: lineage.Inputs) -> lineage.Inputs:
    """Return the inputs of a stage. Raises Damaged where their bytes are not those recorded."""
    if found.damaged:
        raise Damaged(
            f"stage {name}: {', '.join(found.damaged)}: damaged, not the content that dvc.lock"
            " records; `reflow run` or `reflow verify --heal` mends it"
        )
    return found


def _scratch(root: Path, name: str, inputs: lineage.Inputs) -> Path:
    return events.scratch_of(root, name) / inputs.fingerprint


def _keep_only(scratch: Path, continues: bool) -> None:
    """Make the scratch folder; remove those of other inputs, so that nothing resumes from them."""
    scratch.mkdir(parents=True, exist_ok=True)
    others = [f for f in scratch.parent.iterdir() if f != scratch and f.is_dir()]
    if continues:
        _hand_over(others, scratch)
    for other in others:  # the events of the last process stay
        shutil.rmtree(other, ignore_errors=True)


def has_checkpoint(scratch: Path) -> bool:
    """Say whether a training in this scratch folder has a checkpoint to go on from."""
    return any(_checkpoints(folder) for folder in (scratch, scratch / CONTINUED))


def _checkpoints(folder: Path) -> list[Path]:
    return [folder / name for name in CHECKPOINTS if (folder / name).exists()]


def _hand_over(others: Iterable[Path], scratch: Path) -> None:
    """Move the newest checkpoint of other inputs to the scratch folder, if that has none yet.

    A folder in which nothing was trained yet has the checkpoint that was moved to it.
    """
    found = [c for o in others for f in (o / CONTINUED, o) for c in _checkpoints(f)]
    if found and not _checkpoints(scratch):
        shutil.rmtree(scratch / CONTINUED, ignore_errors=True)
        newest = max(found, key=lambda file: file.stat().st_mtime_ns)
        (scratch / CONTINUED).mkdir()
        newest.replace(scratch / CONTINUED / newest.name)


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
