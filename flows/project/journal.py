"""The journal of a run: its stages, and how far each is, as JSON lines; `reflow watch` reads it.

The first line is about the run: what it is of, its process, its stages in order. Each line after
it is the state of a stage, `{"stage": "train@rf1", "state": "done", "seconds": 4.2}`; the last one
says that the run has ended. A new run replaces the file.
"""

import contextlib
import json
import os
import socket
import threading
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from flows.project import servers

State = Literal["waiting", "running", "done", "cached", "failed", "blocked", "stopped"]


@dataclass
class StageLine:
    """A stage of a run: its state, the stages before it, and how long it took.

    `curve` is the file of a round's losses that the stage writes, `before` the seconds that it took
    when it ran last, `began` when it began in seconds since 1970.
    """

    name: str
    upstream: list[str] = field(default_factory=list)
    curve: str = ""
    before: float | None = None
    state: State = "waiting"
    began: float = 0.0
    seconds: float = 0.0
    error: str = ""


@dataclass
class Run:
    """A run as its journal has it; `ended` is 0.0 while it runs, or where it was killed.

    `born` is a mark of its process that no later one with its number has.
    """

    title: str
    host: str
    pid: int
    began: float
    stages: dict[str, StageLine]
    ended: float = 0.0
    born: str = ""


def path_of(root: Path) -> Path:
    """Return the file of the journal of the last run."""
    return root / ".reflow" / "run.jsonl"


class Journal:
    """Writes the journal of a run; each call is one line. A full disk stops no run."""

    def __init__(self, path: Path, title: str, stages: list[StageLine]) -> None:
        self.path, self.lock = path, threading.Lock()
        pid = os.getpid()
        run = Run(title, socket.gethostname(), pid, time.time(), {}, born=servers.born(pid))
        new = path.with_name(f".{path.name}.new")
        self.file: Any = None
        with contextlib.suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            self.file = new.open("wb", buffering=0)
            self._append({**asdict(run), "stages": [asdict(stage) for stage in stages]})
            new.replace(path)

    def stage(self, name: str, state: State, **more: float | str) -> None:
        """Write the state of a stage."""
        self._append({"stage": name, "state": state, **more})

    def end(self, stages: Mapping[str, State]) -> None:
        """Write the states of all stages, and that the run has ended."""
        self._append({"ended": time.time(), "states": dict(stages)})
        with self.lock:
            if self.file:
                self.file.close()
            self.file = None

    def _append(self, line: Mapping[str, object]) -> None:
        with self.lock, contextlib.suppress(OSError):
            if self.file:
                self.file.write(json.dumps(line).encode() + b"\n")


def read(root: Path) -> Run | None:
    """Return the last run; None if there was none, or its journal is damaged."""
    try:
        first, *lines = path_of(root).read_bytes().split(b"\n")
        head = json.loads(first)
        run = Run(**{**head, "stages": {row["name"]: StageLine(**row) for row in head["stages"]}})
        for line in filter(None, lines):
            with contextlib.suppress(ValueError, KeyError):
                _take(run, json.loads(line))
        return run
    except (OSError, ValueError, TypeError, KeyError):
        return None


def _take(run: Run, line: dict[str, Any]) -> None:
    """Take over what a line says; raises KeyError for a stage that the run has not."""
    if "ended" in line:
        run.ended = float(line["ended"])
        for name, state in line["states"].items():
            run.stages[name].state = state
        return
    stage = run.stages[line.pop("stage")]
    for name, value in line.items():
        setattr(stage, name, value)
