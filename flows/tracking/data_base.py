"""Create the MLflow data base of a project whole, or not at all."""

import contextlib
import logging
import os
from pathlib import Path

from flows.tracking.moved import DATA_BASE, SQLITE
from fmcore.settings import ReflowError


def create(root: Path) -> None:
    """Make the data base of a project if it has none: in another file, which then gets its name.

    MLflow makes its tables one by one. If it is killed in between, it cannot use them later. Raises
    ReflowError if the disk is full or fails.
    """
    file = root.resolve().joinpath(*DATA_BASE)
    if file.exists():
        return
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)  # the error below is all
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_name(f".{file.name}.{os.getpid()}")
    part.unlink(missing_ok=True)
    try:
        MlflowClient(f"{SQLITE}{part}", f"{SQLITE}{part}").search_experiments()
    except (SQLAlchemyError, MlflowException, OSError) as error:
        part.unlink(missing_ok=True)
        why = str(error).splitlines()[0][:150]
        raise ReflowError(
            f"MLflow: its data base could not be made in {file.parent} ({why}); make room there,"
            " then `reflow publish`"
        ) from error
    try:
        with contextlib.suppress(FileExistsError):  # another process was faster: its file stays
            os.link(part, file)
        part.unlink()
    except OSError:  # a file system without links
        part.replace(file)
