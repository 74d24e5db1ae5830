"""Store what was read from files, so that an unchanged file is not read again."""

import contextlib
import os
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

from flows.project.environment import local_path

RECENT = 2 * 10**9
"""Nanoseconds. Two changes that are closer may bear the same time, so an answer about a file that
changed so recently is not kept."""

TABLE = (
    "CREATE TABLE IF NOT EXISTS seen"
    " (path BLOB, asked TEXT, stamp TEXT, answer TEXT, PRIMARY KEY (path, asked))"
)


class Seen:
    """A small data base in `.reflow/`: the answer for each file and each question about it.

    An answer holds while the file's number, size and times of change stay the same. Nobody can set
    the time of the last change of status, so a file that was replaced by one of the same size and
    age is read again. Without the data base everything is read: it only saves time.
    """

    def __init__(self, root: Path) -> None:
        self.base = _opened(root)
        self.known: dict[tuple[bytes, str], tuple[str, str]] = {}
        with contextlib.suppress(sqlite3.Error):  # one query: a folder may have 50,000 files
            rows = self.base.execute("SELECT path, asked, stamp, answer FROM seen")
            self.known = {(path, asked): (stamp, answer) for path, asked, stamp, answer in rows}
        self.new: list[tuple[bytes, str, str, str]] = []
        self.told: dict[tuple[Path, str], str] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        with contextlib.suppress(sqlite3.Error):
            if self.new:
                self.base.execute("BEGIN IMMEDIATE")
                self.base.executemany("INSERT OR REPLACE INTO seen VALUES (?, ?, ?, ?)", self.new)
                self.base.execute("COMMIT")
        self.base.close()

    def text(self, file: Path, asked: str, read: Callable[[Path], str]) -> str:
        """Return `read(file)`, or what it returned when the file was last read."""
        if (file, asked) not in self.told:
            self.told[file, asked] = self._text(file, asked, read)
        return self.told[file, asked]

    def _text(self, file: Path, asked: str, read: Callable[[Path], str]) -> str:
        status = file.stat()
        numbers = (status.st_dev, status.st_ino, status.st_size)
        stamp = " ".join(map(str, (*numbers, status.st_mtime_ns, status.st_ctime_ns)))
        path = os.fsencode(file.absolute())  # a name need not be UTF-8
        if self.known.get((path, asked), ("", ""))[0] == stamp:
            return self.known[path, asked][1]
        began = time.time_ns()
        answer = read(file)
        if began - status.st_ctime_ns > RECENT:
            self.new.append((path, asked, stamp, answer))
        return answer


def _opened(root: Path) -> sqlite3.Connection:
    """Open the data base; one that is damaged is made anew, one that cannot be is in memory."""
    with contextlib.suppress(OSError, sqlite3.Error):
        file = local_path(root, "seen.db")
        try:
            return _connect(str(file))
        except sqlite3.DatabaseError as error:
            if "not a database" not in str(error) and "malformed" not in str(error):
                raise
            file.unlink()
            return _connect(str(file))
    return _connect(":memory:")


def _connect(file: str) -> sqlite3.Connection:
    base = sqlite3.connect(file, timeout=30, isolation_level=None)
    base.execute("PRAGMA synchronous=OFF")
    base.execute(TABLE)
    return base
