"""The events of a running stage, as JSON lines in a file; one process writes, others read.

The first line is about the stage and its process: `{"stage": "train@rf1", "total": 500, "pid": 7,
"born": "...", "host": "a", "at": 9.5}`. Each line after it is one event, with only the values
measured at that step: `{"step": 50, "values": {"loss": 0.25}, "at": 10.5}`; `gates` has what gates
say of the stage's metrics. `at` is the time in seconds since 1970. Floats are written by `repr`, so
that they are read back exactly.
"""

import contextlib
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self
from urllib.parse import quote, unquote

from flows.project import servers

POLL_SECONDS = 0.5


@dataclass(frozen=True)
class GateEvent:
    """A gate: its state, the value, the level of that state if it has one, and its message."""

    gate: str
    state: str
    value: float | None
    level: float | None
    says: str


@dataclass(frozen=True)
class Event:
    """A stage is at `step` of `total`, and measured `values` there; step 0 means that it began.

    `gates` are those of its metrics, `at` is when, `pid` which process began: on which `host`, and
    `born` is a mark that no later one with its number has.
    """

    stage: str
    step: int
    total: int
    values: Mapping[str, float] = field(default_factory=dict)
    gates: tuple[GateEvent, ...] = ()
    at: float = field(default=0.0, compare=False)
    pid: int = field(default=0, compare=False)
    born: str = field(default="", compare=False)
    host: str = field(default="", compare=False)


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


def every(root: Path) -> dict[str, Path]:
    """Return the files of events that there are, by stage."""
    files = (root / ".reflow" / "scratch").glob("*/events.jsonl")
    return {unquote(file.parent.name): file for file in files}


def preview_of(events: Path) -> Path:
    """Return the file of the samples that a training showed last, beside its events."""
    return events.with_name("preview.safetensors")


class Writer:
    """Writes a new file of events; the lock of the stage makes sure that there is one writer."""

    def __init__(self, path: Path, stage: str, total: int) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        new = path.with_name(f".{path.name}.new")
        self.file = new.open("wb", buffering=0)
        self.path, self.step = path, 0
        preview_of(path).unlink(missing_ok=True)
        pid, host = os.getpid(), socket.gethostname()
        began = {"pid": pid, "born": servers.born(pid), "host": host}
        self._append({"stage": stage, "total": total, **began})
        # A new file, not the old one emptied, so that a reader can tell the two apart.
        new.replace(path)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Append what was measured at a step."""
        self.step = step
        self._append({"step": step, "values": {name: float(v) for name, v in values.items()}})

    def judged(self, gates: Iterable[GateEvent]) -> None:
        """Append each gate of the stage's metrics."""
        found = [asdict(gate) for gate in gates]
        self._append({"step": self.step, "values": {}, "gates": found})

    def show(self, content: bytes) -> None:
        """Put the samples of a training beside its events; a full disk stops no training."""
        new = preview_of(self.path).with_suffix(".new")
        with contextlib.suppress(OSError):
            new.write_bytes(content)
            new.replace(preview_of(self.path))

    def _append(self, line: Mapping[str, object]) -> None:
        # One write: no reader sees half a line.
        whole = {**line, "at": round(time.time(), 3)}
        self.file.write(json.dumps(whole).encode() + b"\n")

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
    started again repeats no event. With `whole` it is read too.
    """

    def __init__(self, path: Path, *, whole: bool = False) -> None:
        self.path = path
        self.rest = b""
        self.stage, self.total = "", 0
        # Kept open, so that no new file can get its inode number.
        self.old = None if whole else self._open()
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
            at, pid = float(found.get("at", 0.0)), int(found.get("pid", 0))
            if "stage" in found:
                self.stage, self.total = str(found["stage"]), int(found["total"])
                born, host = str(found.get("born", "")), str(found.get("host", ""))
                return Event(self.stage, 0, self.total, at=at, pid=pid, born=born, host=host)
            values = {str(name): float(value) for name, value in found["values"].items()}
            gates = tuple(GateEvent(**gate) for gate in found.get("gates", ()))
            return Event(self.stage, int(found["step"]), self.total, values, gates, at)
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
