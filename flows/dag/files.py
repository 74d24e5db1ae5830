"""Files of a git revision: from git, DVC's cache or a remote, without touching the workspace."""

from collections.abc import Callable
from pathlib import Path

from dvc.api import DVCFileSystem
from dvc.exceptions import DvcException

from flows.dag.project import in_one_line


def files_at(root: Path, rev: str) -> Callable[[str], bytes | None]:
    """Return a function that reads a file of a revision; None where nothing holds its bytes.

    Raises ReflowError where there is no such revision.
    """
    root = root.resolve()
    with in_one_line(root):
        files = DVCFileSystem(str(root), rev=rev)

    def read(path: str) -> bytes | None:
        try:
            found: bytes = files.read_bytes(path)
        except (OSError, DvcException):
            return None
        return found

    return read
