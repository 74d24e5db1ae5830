"""Live curves: send events of running trainings to MLflow; a failure there never stops a run."""

import queue
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from flows.dag.chain import Chain
from flows.dag.identity import whole_chain
from flows.dag.lineage import entries
from flows.dag.lock import Entry
from flows.project import servers
from flows.project.events import Event

if TYPE_CHECKING:
    from flows.tracking.client import Tracker
    from flows.tracking.shown import Point

FLUSH_SECONDS = 5.0


class Live:
    """Takes the events of stages; a separate thread writes them to MLflow in batches.

    A point is logged once, at full precision: if a killed training logged it, the resumed training
    does not log it again. A slow or stopped server does not delay the stage: the thread gives up
    with one line, and `publish` completes the runs later from the receipts. A run without a
    training starts no thread and does not import MLflow.
    """

    def __init__(self, root: Path, warn: Callable[[str], object]) -> None:
        self.root, self.warn = root, warn
        self.items: queue.Queue[Event | None] = queue.Queue()
        self.thread: threading.Thread | None = None
        self.stopped = False
        self._start = threading.Lock()  # each stage reports its events in its own thread

    def event(self, event: Event) -> None:
        """Take one event of a stage; returns at once."""
        if not event.stage.startswith("train@"):
            return
        with self._start:
            if self.thread is None:
                self.thread = threading.Thread(target=self._work, name="mlflow-live", daemon=True)
                self.thread.start()
        self.items.put(event)

    def close(self, timeout: float = 30.0) -> None:
        """Flush what is queued, for at most `timeout` seconds; nothing is logged afterwards."""
        if self.thread is None:
            return
        self.items.put(None)
        self.thread.join(timeout)
        self.stopped = True

    def _work(self) -> None:
        try:
            self._record()
        except Exception as error:  # whatever MLflow raises: the work itself must go on
            why = servers.reason(error)
            self.warn(f"MLflow: live curves stopped ({why}); `reflow publish` adds the rest")

    def _record(self) -> None:
        tracker: Tracker | None = None
        curves: dict[str, _Curve] = {}
        open_ = True
        while open_:
            found, open_ = self._collected()
            for event in found:
                if event.step == 0:  # it begins, with its parameters as they are now
                    curves[event.stage] = _Curve.of(self.root, event.stage)
                elif event.stage in curves:
                    curves[event.stage].add(event)
            for curve in curves.values():
                if not curve.new or self.stopped:
                    continue
                if tracker is None:
                    tracker = _tracker(self.root)
                    for line in tracker.notes:
                        self.warn(line)
                curve.log(tracker)
        for curve in curves.values():
            if tracker is not None and not self.stopped:
                curve.end(tracker)

    def _collected(self) -> tuple[list[Event], bool]:
        """Return the events of a few seconds, and whether there may be more."""
        found: list[Event] = []
        deadline = time.monotonic() + FLUSH_SECONDS
        while (left := deadline - time.monotonic()) > 0:
            try:
                event = self.items.get(timeout=left)
            except queue.Empty:
                break
            if event is None:
                return found, False
            found.append(event)
        return found, True


def _tracker(root: Path) -> "Tracker":
    from flows.tracking.client import Tracker  # imports MLflow: slow

    return Tracker(root)


class _Curve:
    """The curve of one training: its place in the chain, points logged, points to log."""

    def __init__(self, stage: str, whole: Chain, planned: Entry) -> None:
        self.whole, self.planned = whole, planned
        self.round = next(r for r in whole.rounds if f"train@{r.name}" == stage)
        self.parent = self.run = ""
        self.there: set[tuple[str, int]] = set()
        self.new: list[Point] = []

    @classmethod
    def of(cls, root: Path, stage: str) -> "_Curve":
        planned = entries(root)
        return cls(stage, whole_chain(root, planned, {}), planned[stage])

    def add(self, event: Event) -> None:
        self.new += [(f"train/{name}", value, event.step) for name, value in event.values.items()]

    def log(self, tracker: "Tracker") -> None:
        if not self.run:
            self.parent = tracker.parent(self.whole)
            self.run = tracker.child(self.whole, self.parent, self.round, self.planned)
            self.there = {(name, step) for name, _, step in tracker.points(self.run, "train/")}
            for run in (self.parent, self.run):
                tracker.client.update_run(run, status="RUNNING")
        tracker.log(self.run, [p for p in self.new if (p[0], p[2]) not in self.there])
        self.there |= {(name, step) for name, _, step in self.new}
        self.new = []

    def end(self, tracker: "Tracker") -> None:
        """Let its runs run no more; those that are whole `publish` then calls finished."""
        for run in filter(None, (self.parent, self.run)):
            tracker.client.set_terminated(run, "KILLED")
