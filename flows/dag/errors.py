"""DVC's errors, each in one line."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dvc.exceptions import CyclicGraphError, DvcException

from fmcore.settings import ReflowError


@contextmanager
def in_one_line(root: Path) -> Iterator[None]:
    """Raise DVC's errors as one line each, with paths as seen from the project."""
    try:
        yield
    except CyclicGraphError as error:
        names = str(error).replace(f"{os.path.relpath(root)}/dvc.yaml:", "").rpartition(": ")[2]
        raise ReflowError(f"dvc.yaml: stages depend on each other in a cycle: {names}") from error
    except DvcException as error:
        parts: list[str] = []
        cause: BaseException | None = error
        while cause is not None:
            text = " ".join(str(cause).split()).replace(f"{os.path.relpath(root)}/", "")
            if text and not any(text in part for part in parts):
                parts.append(text)
            cause = cause.__cause__
        raise ReflowError(f"DVC: {': '.join(parts)}") from error
