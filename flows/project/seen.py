"""Store what was read from files, so that an unchanged file is not read again."""

import sqlite3
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

from flows.project.environment import local_path


class Seen:
    """A small data base in `.reflow/`: the answer for each file and each question about it.

    An answer is valid while the file's inode number, size and times of change stay the same.
    """

    def __init__(self, root: Path) -> None:
        self.base = sqlite3.connect(local_path(root, "seen.db"), timeout=30, isolation_level=None)
        self.base.execute("PRAGMA synchronous=OFF")
        self.base.execute(
            "CREATE TABLE IF NOT EXISTS seen (path TEXT, asked TEXT, stamp TEXT, answer TEXT,"
            " PRIMARY KEY (path, asked))"
        )
        self.new: list[tuple[str, str, str, str]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        if self.new:
            self.base.execute("BEGIN IMMEDIATE")
            self.base.executemany("INSERT OR REPLACE INTO seen VALUES (?, ?, ?, ?)", self.new)
            self.base.execute("COMMIT")
        self.base.close()

    def text(self, file: Path, asked: str, read: Callable[[Path], str]) -> str:
        """Return `read(file)`, or what it returned when the file was last read."""
        status = file.stat()
        stamp = f"{status.st_ino} {status.st_size} {status.st_mtime_ns} {status.st_ctime_ns}"
        path = str(file.absolute())
        known = self.base.execute(
            "SELECT answer FROM seen WHERE path = ? AND asked = ? AND stamp = ?",
            (path, asked, stamp),
        ).fetchone()
        if known:
            return str(known[0])
        answer = read(file)
        self.new.append((path, asked, stamp, answer))
        return answer
