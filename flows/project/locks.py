"""Locks of a project: a file each, which the kernel lets go of however a process ends."""

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO
from urllib.parse import quote

from fmcore.settings import ReflowError

BUSY = "is already running"
"""In the message of a stage whose lock is held: the run of the chain may try that one again."""


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
