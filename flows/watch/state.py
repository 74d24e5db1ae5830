"""How far a run is, and what it measured: read from its journal and the events of its stages."""

import csv
import socket
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

from flows.project import events, journal, servers
from flows.project.events import Event, Reader
from flows.project.journal import StageLine, State
from flows.project.process_group import exists

Points = list[tuple[int, float]]
"""A curve: steps and values."""

SILENT = 3600.0
"""Seconds without an event after which a process on another machine, which cannot be asked, counts
as gone."""
RECENT = 20
"""Events from which the speed of a stage is taken."""


@dataclass
class Watched:
    """A stage: its state, its step of `total`, the seconds that it took and has left, its curves.

    `gates` are the state and the message of each gate; `preview` is the file of the samples that a
    training showed last.
    """

    name: str
    state: State
    step: int = 0
    total: int = 0
    seconds: float = 0.0
    left: float | None = None
    error: str = ""
    curves: dict[str, Points] = field(default_factory=dict)
    gates: list[tuple[str, str]] = field(default_factory=list)
    preview: Path | None = None

    @property
    def round_(self) -> str:
        """The round or coupling that the stage is of; empty where it is of none."""
        return self.name.partition("@")[2]

    @property
    def share(self) -> float:
        """The share of its steps that are done."""
        return self.step / self.total if self.total else 0.0


@dataclass
class Seen:
    """A run: `none` if there never was one, `killed` if its process is gone without a word."""

    state: Literal["none", "running", "done", "failed", "stopped", "killed"]
    title: str = ""
    seconds: float = 0.0
    left: float | None = None
    ago: float = 0.0
    stages: list[Watched] = field(default_factory=list)

    def as_dict(self) -> dict[str, object]:
        """Return all of it as JSON holds it."""
        found = asdict(self)
        for stage in found["stages"]:
            stage["preview"] = stage["preview"] and str(stage["preview"])
        return found


@dataclass
class _Told:
    """What the events of the last process of a stage said."""

    events: list[Event] = field(default_factory=list)

    def take(self, new: list[Event]) -> None:
        for event in new:
            self.events = [event] if event.step == 0 and event.pid else [*self.events, event]

    @property
    def began(self) -> float:
        return self.events[0].at if self.events else 0.0


class Eye:
    """Looks at the runs of a project; each look reads only what is new."""

    def __init__(self, root: Path, clock: Callable[[], float] = time.time) -> None:
        self.root, self.clock = root, clock
        self.readers: dict[str, Reader] = {}
        self.told: dict[str, _Told] = {}

    def look(self) -> Seen:
        """Return the run that goes on, or the last one: of `reflow run`, or stages by themselves.

        Stages that `dvc repro` started have no journal, only events.
        """
        for name, path in events.every(self.root).items():
            reader = self.readers.setdefault(name, Reader(path, whole=True))
            self.told.setdefault(name, _Told()).take(reader.read())
        run, now = journal.read(self.root), self.clock()
        newest = max((told.began for told in self.told.values()), default=0.0)
        if run is None or (run.ended and newest > run.ended):
            return self._without_journal(now)
        last = max([run.began, *(t.events[-1].at for t in self.told.values() if t.events)])
        last = max([last, *(line.began + line.seconds for line in run.stages.values())])
        alive = not run.ended and _lives(run.pid, run.born, run.host, now - last)
        stages = [self._stage(line, run.began, alive, now) for line in run.stages.values()]
        ended = run.ended or last
        state = "running" if alive else _end([s.state for s in stages]) if run.ended else "killed"
        until = now if alive else ended
        left = remaining(run.stages, stages) if alive else None
        return Seen(state, run.title, until - run.began, left, now - until, stages)

    def _without_journal(self, now: float) -> Seen:
        """Return the stages that have events, in the order in which they began."""
        found = sorted((told.began, name) for name, told in self.told.items() if told.events)
        if not found:
            return Seen("none")
        stages = []
        for _, name in found:
            told = self.told[name].events
            by = told[0]
            alive = by.pid and _lives(by.pid, by.born, by.host, now - told[-1].at)
            state: State = "running" if alive else "done"
            if state == "done" and told[-1].step < told[-1].total:
                state = "stopped"
            line = StageLine(name, state=state, began=told[0].at, seconds=told[-1].at - told[0].at)
            stages.append(self._stage(line, 0.0, True, now))
        running = [s for s in stages if s.state == "running"]
        last = max(t.events[-1].at for t in self.told.values() if t.events)
        state_ = "running" if running else _end([s.state for s in stages])
        first = min(at for at, name in found if not running or name in {s.name for s in running})
        until = now if running else last
        lefts = [s.left for s in running if s.left is not None]
        return Seen(
            state_, self.root.name, until - first, max(lefts, default=None), now - until, stages
        )

    def _stage(self, line: StageLine, run_began: float, alive: bool, now: float) -> Watched:
        state: State = "stopped" if line.state == "running" and not alive else line.state
        found = Watched(line.name, state, seconds=line.seconds, error=line.error)
        told = self.told.get(line.name, _Told()).events
        fresh = told and told[0].at >= run_began - 1  # else from an earlier run
        if fresh:
            found.step, found.total = told[-1].step, told[-1].total
            for event in told:
                for name, value in event.values.items():
                    found.curves.setdefault(name, []).append((event.step, value))
                found.gates += [(gate.state, gate.says) for gate in event.gates]
            preview = events.preview_of(events.path_of(self.root, line.name))
            found.preview = preview if preview.is_file() else None
        elif line.state in ("done", "cached") and line.curve:
            found.curves = _curves(self.root / line.curve)
        if state == "running":
            found.seconds = now - line.began
            found.left = _left(told if fresh else [], line, now)
        return found


def _lives(pid: int, born: str, host: str, silent: float) -> bool:
    """Say whether a process goes on that was last heard of `silent` seconds ago."""
    if host and host != socket.gethostname():
        return silent < SILENT
    return servers.born(pid) == born if born else exists(pid)


def _end(states: list[State]) -> Literal["done", "failed", "stopped"]:
    if "stopped" in states:
        return "stopped"
    return "done" if {*states} <= {"done", "cached"} else "failed"


def _left(told: list[Event], line: StageLine, now: float) -> float | None:
    """Return the seconds that a running stage has left: by its speed, else by its last run."""
    known = None if line.before is None else max(line.before - (now - line.began), 0.0)
    steps = [event for event in told if event.step][-RECENT:]
    even = line.name.startswith(("train@", "couple@"))  # the samplers of evaluate differ in cost
    if not even or len(steps) < 2 or steps[-1].step == steps[0].step:
        return known
    last = steps[-1]
    each = (last.at - steps[0].at) / (last.step - steps[0].step)
    return max(each * (last.total - last.step) - (now - last.at), 0.0)


def remaining(lines: dict[str, StageLine], stages: list[Watched]) -> float | None:
    """Return the seconds until the last stage ends; None while one of them is not known.

    A stage that waits takes as long as when it ran last, or as long as one of its kind.
    """
    kinds: dict[str, float] = {}
    for stage in stages:
        took = stage.seconds + (stage.left or 0.0)
        if stage.state == "done" or (stage.state == "running" and stage.left is not None):
            kind = stage.name.partition("@")[0]
            kinds[kind] = max(kinds.get(kind, 0.0), took)
    ends: dict[str, float] = {}
    for stage in stages:
        line = lines[stage.name]
        if stage.state in ("running", "waiting"):
            own = stage.left
            if stage.state == "waiting":
                own = line.before or kinds.get(stage.name.partition("@")[0])
            if own is None:
                return None
            ends[stage.name] = own + max((ends.get(up, 0.0) for up in line.upstream), default=0.0)
    return max(ends.values(), default=0.0)


def _curves(path: Path) -> dict[str, Points]:
    """Return the columns of a curve over its steps; none if it cannot be read."""
    found: dict[str, Points] = {}
    try:
        with path.open(newline="") as file:
            for row in csv.DictReader(file):
                for name, value in row.items():
                    if name != "step" and value:
                        found.setdefault(name, []).append((int(row["step"]), float(value)))
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    return found
