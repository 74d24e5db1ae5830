"""Live curves: progress lines of running stages go to MLflow, best effort, never in the way."""

import queue
import threading
import time
from collections.abc import Callable
from pathlib import Path

from flows.dag.chain import chain
from flows.dag.lineage import entries
from flows.stage.progress import parse
from flows.tracking.client import Tracker

FLUSH_SECONDS = 5.0
Item = tuple[str, str]


class Live:
    """Feed it the lines of stages; a thread of its own writes to MLflow in batches.

    A server that is slow or gone costs the stage nothing: the thread gives up with one line, and
    `publish` completes the runs later from the receipts.
    """

    def __init__(self, root: Path, warn: Callable[[str], object]) -> None:
        self.root, self.warn = root, warn
        self.items: queue.Queue[Item | None] = queue.Queue()
        self.thread = threading.Thread(target=self._work, name="mlflow-live", daemon=True)
        self.thread.start()

    def line(self, stage: str, text: str) -> None:
        """Take one line of a stage's output; returns at once."""
        if stage.startswith("train@"):
            self.items.put((stage, text))

    def close(self, timeout: float = 30.0) -> None:
        """Flush what is queued, for at most `timeout` seconds."""
        self.items.put(None)
        self.thread.join(timeout)

    def _work(self) -> None:
        try:
            self._record()
        except Exception as error:  # whatever MLflow raises: the work itself must go on
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            self.warn(f"MLflow: live curves stopped ({reason[:160]}); `reflow publish` mends it")

    def _record(self) -> None:
        planned = entries(self.root)
        whole = chain(planned, {})
        by_stage = {f"train@{r.name}": r for r in whole.rounds}
        tracker = Tracker(self.root)
        runs: dict[str, str] = {}
        open_ = True
        while open_:
            points: dict[str, list[tuple[str, float, int]]] = {}
            deadline = time.monotonic() + FLUSH_SECONDS
            while open_ and (left := deadline - time.monotonic()) > 0:
                try:
                    item = self.items.get(timeout=left)
                except queue.Empty:
                    break
                open_ = item is not None
                if item and item[0] in by_stage and (found := parse(item[1])):
                    step, values = found
                    row = [(f"train/{k}", v, step) for k, v in values.items()]
                    points.setdefault(item[0], []).extend(row)
            for stage, new in points.items():
                if stage not in runs:
                    parent = tracker.parent(whole)
                    runs[stage] = tracker.child(whole, parent, by_stage[stage], planned[stage])
                    tracker.client.update_run(parent, status="RUNNING")
                tracker.log(runs[stage], new)
