"""A note that MLflow holds all of dvc.lock, so that a run with nothing to do does not ask MLflow.

Does not import MLflow. `publish` writes the note and never reads it.
"""

import hashlib
import json
import os
from pathlib import Path

from flows.project.environment import local_path
from fmcore.checked import read_json, sealed
from fmcore.settings import ReflowError

SQLITE = "sqlite:///"


def note(root: Path, lock: str, parent: str) -> None:
    """Record that the chain of a dvc.lock, given by its hash, is fully published as `parent`."""
    path = _file(root)
    temporary = path.with_suffix(".tmp")
    note = sealed({**_where(root), "lock": lock, "parent": parent})
    temporary.write_text(json.dumps(note) + "\n")
    temporary.replace(path)


def published(root: Path) -> str | None:
    """Return the MLflow run of the chain in dvc.lock if the note is about it, else None.

    With None, MLflow must be asked: there is no note, or it is about another dvc.lock, another
    server, or another file of the data base.
    """
    try:
        found = read_json(_file(root))
        parent = str(found.pop("parent"))
        return parent if found == {**_where(root), "lock": lock_hash(root)} else None
    except (OSError, ReflowError, KeyError):
        return None


def lock_hash(root: Path) -> str:
    """Return the sha256 of dvc.lock; "" if there is none."""
    file = root / "dvc.lock"
    return hashlib.sha256(file.read_bytes()).hexdigest() if file.is_file() else ""


def _where(root: Path) -> dict[str, object]:
    """Return what identifies the place of MLflow's records; raises OSError if its file is gone."""
    uri = os.environ["MLFLOW_TRACKING_URI"]
    place: dict[str, object] = {
        "uri": uri,
        "experiment": os.environ.get("MLFLOW_EXPERIMENT_NAME", ""),
    }
    if uri.startswith(SQLITE):
        status = Path(uri.removeprefix(SQLITE)).stat()
        place["file"] = [status.st_dev, status.st_ino]
    return place


def _file(root: Path) -> Path:
    return local_path(root, "mlflow", "published.json")
