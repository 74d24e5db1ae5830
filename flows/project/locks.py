"""The file locks of a project; the kernel releases them however a process ends."""

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import IO
from urllib.parse import quote

from fmcore.settings import ReflowError

EX_TEMPFAIL = 75
"""The exit status of a process that found a lock held (sysexits.h): a later try may succeed."""


EX_DATAERR = 65
"""The exit status of a stage that found a damaged input: it can run when that is mended."""


class Damaged(ReflowError):
    """A file that a stage reads is damaged; the stage may succeed when it is mended."""


class Busy(ReflowError):
    """Another process holds the lock; a new try may succeed when that process has ended."""


@contextmanager
def locked(
    root: Path,
    name: str,
    held: str,
    mend: str,
    *,
    patience: float = 2.0,
    exclusive: bool = True,
) -> Iterator[None]:
    """Hold the lock `name` of the project, exclusively or shared with others.

    Raises Busy when another process still holds it after `patience` seconds: `held` says what that
    process does, `mend` what to do about it.
    """
    path = root / ".reflow" / "locks" / f"{quote(name, safe='@')}.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+") as file:
        if not _acquired(file, patience, fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH):
            file.seek(0)
            holder = file.read().strip() or "unknown"
            raise Busy(f"{held} (process {holder}); {mend}")
        file.seek(0)
        file.truncate()
        file.write(f"{os.getpid()}\n")
        file.flush()
        yield


def stage_locked(
    root: Path, stage: str, *, exclusive: bool = True, patience: float = 2.0
) -> AbstractContextManager[None]:
    """Hold the lock of a stage; no other lock of the project can have its name."""
    held = f"stage {stage} is already running"
    mend = "wait for it to end, or end it"
    return locked(root, f"stage.{stage}", held, mend, exclusive=exclusive, patience=patience)


def _acquired(file: IO[str], patience: float, kind: int) -> bool:
    deadline = time.monotonic() + patience  # a killed process may need a moment to end
    while True:
        try:
            fcntl.flock(file, kind | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() > deadline:
                return False
            time.sleep(0.05)
