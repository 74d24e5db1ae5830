"""The events of a running stage, as JSON lines in a file; one process writes, others read.

The first line is about the stage: `{"stage": "train@rf1", "total": 500, "pid": 7}`. Each line after
it is one event: `{"step": 50, "values": {"loss": 0.25}}`, with only the values measured at that
step. A gate that warns or fails has a line, `{"step": 500, "values": {}, "judged": {...}}`. Floats
are written by `repr`, so that they are read back exactly.
"""

import contextlib
import json
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self
from urllib.parse import quote

POLL_SECONDS = 0.5


@dataclass(frozen=True)
class Judged:
    """A gate that warns or fails: the value, the level that it exceeds, and its message."""

    gate: str
    state: str
    value: float
    level: float | None
    says: str


@dataclass(frozen=True)
class Event:
    """A stage is at `step` of `total`, and measured `values` there; step 0 means that it began."""

    stage: str
    step: int
    total: int
    values: Mapping[str, float] = field(default_factory=dict)
    judged: Judged | None = None


OnEvent = Callable[[Event], object]


def scratch_of(root: Path, stage: str) -> Path:
    """Return the folder for the files of a stage that is running or was interrupted."""
    return root / ".reflow" / "scratch" / quote(stage, safe="@")


def path_of(root: Path, stage: str) -> Path:
    """Return the file of a stage's events.

    It lies beside the folder that is named by the fingerprint, not in it: that folder is removed
    when the stage succeeds, and a reader would then miss the last lines.
    """
    return beside(scratch_of(root, stage) / "fingerprint")


def beside(scratch: Path) -> Path:
    """Return the file of events that belongs to the scratch folder of a running stage."""
    return scratch.with_name("events.jsonl")


class Writer:
    """Writes a new file of events; the lock of the stage makes sure that there is one writer."""

    def __init__(self, path: Path, stage: str, total: int) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        new = path.with_name(f".{path.name}.new")
        self.file = new.open("wb", buffering=0)
        self._append({"stage": stage, "total": total, "pid": os.getpid()})
        # A new file, not the old one emptied, so that a reader can tell the two apart.
        new.replace(path)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Append what was measured at a step."""
        self._append({"step": step, "values": {name: float(v) for name, v in values.items()}})

    def judge(self, step: int, judged: Judged) -> None:
        """Append what a gate says of the stage at a step."""
        self._append({"step": step, "values": {}, "judged": asdict(judged)})

    def _append(self, line: Mapping[str, object]) -> None:
        self.file.write(json.dumps(line).encode() + b"\n")  # one write: no reader sees half a line

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self.file.close()


class Reader:
    """Follows the events of a stage that is about to start.

    A file that already exists is from an earlier process, so it is not read: a stage that is
    started again repeats no event.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rest = b""
        self.stage, self.total = "", 0
        # Kept open, so that no new file can get its inode number.
        self.old = self._open()
        self.file: BinaryIO | None = None

    def read(self) -> list[Event]:
        """Return the events since the last call; an unfinished line waits for its end."""
        found = self._lines()
        if self._replaced() and (new := self._open()):
            self.close()
            self.file, self.rest = new, b""
            found += self._lines()
        return found

    def close(self) -> None:
        """Close the file."""
        for file in (self.old, self.file):
            if file:
                file.close()
        self.old = self.file = None

    def _open(self) -> BinaryIO | None:
        with contextlib.suppress(OSError):
            return self.path.open("rb")
        return None

    def _replaced(self) -> bool:
        present = self.file or self.old
        try:
            return not present or not os.path.samestat(self.path.stat(), os.fstat(present.fileno()))
        except OSError:
            return False  # removed; what is open can still be read

    def _lines(self) -> list[Event]:
        if not self.file:
            return []
        if os.fstat(self.file.fileno()).st_size < self.file.tell():  # it was truncated
            self.file.seek(0)
            self.rest = b""
        *lines, self.rest = (self.rest + self.file.read()).split(b"\n")
        return [event for line in lines if (event := self._event(line))]

    def _event(self, line: bytes) -> Event | None:
        """Return the event in a line; None where the line holds none."""
        try:
            found = json.loads(line)
            if "stage" in found:
                self.stage, self.total = str(found["stage"]), int(found["total"])
                return Event(self.stage, 0, self.total)
            values = {str(name): float(value) for name, value in found["values"].items()}
            judged = Judged(**found["judged"]) if "judged" in found else None
            return Event(self.stage, int(found["step"]), self.total, values, judged)
        except (ValueError, TypeError, KeyError, AttributeError):
            return None


@contextmanager
def followed(path: Path, tell: OnEvent | None) -> Iterator[None]:
    """Call `tell` with each event of the stage that starts in the block, before the block ends."""
    if tell is None:
        yield
        return
    reader = Reader(path)
    ended = threading.Event()

    def work() -> None:
        last = False
        while not last:
            last = ended.wait(POLL_SECONDS)
            for event in reader.read():
                tell(event)

    thread = threading.Thread(target=work, name=f"events of {path.parent.name}", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        reader.close()
