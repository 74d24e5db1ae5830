"""The model of a round as another commit has it: fetched by DVC and verified."""

import os
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from flows.dag.lineage import lock_entries
from flows.dag.lock import Entry, read_lock
from flows.dag.outputs import store
from flows.library.fetch import fetch, nearest
from flows.library.history import Commit, lock_at, resolve
from fmcore.coupling.manifest import md5_elsewhere
from fmcore.settings import ReflowError


@dataclass(frozen=True)
class ModelAt:
    """A round's model of a commit in a folder; `data` names the coupling of its prepared data."""

    folder: Path
    commit: Commit
    data: str | None


def model_at(root: Path, rev: str, round_: str, *, into: Path | None = None) -> ModelAt:
    """Copy the model of a round at a revision into .reflow/models, from the cache or a remote.

    `into` is the project that gets it, where that is not `root` itself.

    Raises ReflowError if the revision has no such round, or no place has the model.
    """
    commit = resolve(root, rev)
    entries = list(read_lock(lock_at(root, commit)).values())
    trained = {e.key: e for e in entries if e.runs("train", "out")}
    if round_ not in trained:
        raise ReflowError(f"no round {round_!r} in {rev}; it has: {', '.join(trained) or 'none'}")
    md5 = trained[round_].md5(trained[round_].paths["out"])
    folder = (into or root) / ".reflow" / "models" / f"{round_}-{md5[:12]}"
    if not folder.is_dir() or store.hash_of(root, folder) != md5:
        _bring(root, md5, f"models/{round_} of {commit.short}", folder)
    return ModelAt(folder, commit, _prepared(entries))


def recorded_model(root: Path, round_: str) -> Path:
    """Return the folder of a round's model in the workspace, which is that of dvc.lock.

    Raises ReflowError if dvc.lock has no such round, or the folder is missing or another model: the
    numbers of the comparison are not those of that one.
    """
    trained = {e.key: e for e in lock_entries(root).values() if e.runs("train", "out")}
    if round_ not in trained:
        raise ReflowError(
            f"no round {round_!r} in dvc.lock; it has: {', '.join(trained) or 'none'}"
        )
    return recorded(root, trained[round_], "model")


def recorded(root: Path, entry: Entry, what: str) -> Path:
    """Return the folder that a stage made, a model or a coupling, if it is that of dvc.lock.

    Raises ReflowError if it is missing, or has other bytes.
    """
    path = entry.paths["out"]
    folder = root / path
    if not folder.is_dir():
        raise ReflowError(
            f"{path}: missing; `reflow run` makes it, `dvc checkout` or `dvc pull`"
            " brings what was made"
        )
    if md5_elsewhere(folder):
        raise ReflowError(f"{path}: its shards are in S3; `reflow couplings get` fetches them")
    if store.hash_of(root, folder) != entry.md5(path):
        raise ReflowError(
            f"{path}: not the {what} that dvc.lock records, whose numbers the"
            " comparison has; run `reflow run`, or `dvc checkout` to have that one"
        )
    return folder


def data_at(root: Path, model: ModelAt) -> Path:
    """Copy the prepared data of the same commit into .reflow/couplings; return the folder."""
    return fetch(root, model.commit.ref, name=model.data).folder


def _prepared(entries: Iterable[Entry]) -> str | None:
    outs = (entry.paths["out"] for entry in entries if entry.runs("prepare", "out"))
    return next((out.rsplit("/", 1)[-1] for out in outs), None)


def _bring(root: Path, md5: str, what: str, folder: Path) -> None:
    """Make the folder, in place of what is there; it appears whole or not at all."""
    place = nearest(root, md5, what)
    part = folder.with_name(f".{folder.name}.{os.getpid()}.part")
    try:
        part.mkdir(parents=True)
        store.bring(root, place, md5, part)
        if store.hash_of(root, part) != md5:
            raise ReflowError(f"{what}: the copy in {place} is damaged; `reflow verify` says more")
        shutil.rmtree(folder, ignore_errors=True)
        part.rename(folder)
    except OSError as error:
        raise ReflowError(f"{folder}: cannot be written ({error.strerror})") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
