"""Create the MLflow data base of a project whole, or not at all."""

import contextlib
import os
from pathlib import Path

from flows.tracking.moved import DATA_BASE, SQLITE


def create(root: Path) -> None:
    """Make the data base of a project if it has none: in another file, which then gets its name.

    MLflow makes its tables one by one. If it is killed in between, it cannot use them later.
    """
    file = root.resolve().joinpath(*DATA_BASE)
    if file.exists():
        return
    from mlflow import MlflowClient

    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_name(f".{file.name}.{os.getpid()}")
    part.unlink(missing_ok=True)
    MlflowClient(f"{SQLITE}{part}", f"{SQLITE}{part}").search_experiments()
    try:
        with contextlib.suppress(FileExistsError):  # another process was faster: its file stays
            os.link(part, file)
        part.unlink()
    except OSError:  # a file system without links
        part.replace(file)
