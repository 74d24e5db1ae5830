"""Correct the places of artifacts in a project's MLflow data base after the project was moved.

MLflow stores absolute paths. A moved project would not find its models; a copied one would write
into the original. Uses only the standard library.
"""

import contextlib
import json
import sqlite3
from pathlib import Path
from urllib.parse import unquote, urlparse

from fmcore.settings import ReflowError

SQLITE = "sqlite:///"
DATA_BASE = (".reflow", "mlflow", "mlflow.db")
PLACES = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "source"),
    ("model_versions", "storage_location"),
)
"""Columns that hold the path or the URI of a folder of artifacts."""


def own_root(uri: str) -> Path | None:
    """Return the project whose own data base a URI of MLflow names; None if it is no project's.

    >>> own_root("sqlite:////home/me/chain/.reflow/mlflow/mlflow.db")
    PosixPath('/home/me/chain')
    >>> own_root("sqlite:////home/me/mlflow.db"), own_root("http://127.0.0.1:5000")
    (None, None)
    """
    file = Path(uri.removeprefix(SQLITE))
    return file.parents[2] if uri.startswith(SQLITE) and file.parts[-3:] == DATA_BASE else None


def artifacts(root: Path) -> Path:
    """Return the folder of a project's artifacts."""
    return root.resolve().joinpath(*DATA_BASE).with_name("artifacts")


def correct(root: Path) -> str:
    """Let the data base of a project name the folder where the project is now.

    Only places in the folder that the project recorded when it last used the data base are changed.
    Returns that folder, "" if the project is there still. Raises ReflowError.
    """
    root = root.resolve()
    file = root.joinpath(*DATA_BASE)
    record = file.with_name("root")
    known = record.read_text().strip() if record.is_file() else ""
    if known == str(root) or not file.is_file():
        return ""
    try:
        with contextlib.closing(sqlite3.connect(file, timeout=30)) as base, base:
            old = known or _unrecorded(base, root)
            if old not in ("", str(root)):
                _rewrite(base, Path(old), root)
    except sqlite3.Error as error:
        raise ReflowError(
            f"{file}: MLflow's data base cannot be changed ({error}); move the folder"
            f" {file.parent.name} away, then `reflow publish`"
        ) from None
    note(root)
    return old if old != str(root) else ""


def note(root: Path) -> None:
    """Record where the project is that uses its data base now."""
    record = root.resolve().joinpath(*DATA_BASE).with_name("root")
    temporary = record.with_suffix(".tmp")
    temporary.write_text(f"{root.resolve()}\n")
    temporary.replace(record)


def _rewrite(base: sqlite3.Connection, old: Path, new: Path) -> None:
    pairs = [(str(old), str(new)), (old.as_uri(), new.as_uri())]
    for table, column in PLACES:
        if not _has(base, table, column):
            continue  # another version of MLflow
        for before, after in pairs:
            base.execute(
                f"UPDATE {table} SET {column} = ? || substr({column}, ?)"
                f" WHERE substr({column}, 1, ?) = ?",
                (f"{after}/", len(before) + 2, len(before) + 1, f"{before}/"),
            )
    if _has(base, "datasets", "dataset_source"):  # JSON that says where a coupling is
        quoted = [json.dumps(f"{place}/")[:-1] for place in (old, new)]
        change = "UPDATE datasets SET dataset_source = replace(dataset_source, ?, ?)"
        base.execute(change, quoted)


def _unrecorded(base: sqlite3.Connection, root: Path) -> str:
    """Return where a project without a record was: where its runs say, whose artifacts are here."""
    if not _has(base, "runs", "artifact_uri"):
        return ""
    middle = "/.reflow/mlflow/artifacts/"
    for (place,) in base.execute("SELECT artifact_uri FROM runs"):
        path = unquote(urlparse(place).path) if str(place).startswith("file:") else str(place)
        before, found, run = path.rpartition(middle)
        if found and (artifacts(root) / run).is_dir():
            return before
    return ""


def _has(base: sqlite3.Connection, table: str, column: str) -> bool:
    return any(row[1] == column for row in base.execute(f"PRAGMA table_info({table})"))
