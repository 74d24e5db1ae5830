"""Cores of this machine, shared by the stages that run at the same time.

Two stages with two threads each on two cores are not twice but five times as slow: the threads of
one spin while those of the other work. So a stage waits until its threads have cores.
"""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from flows.dag.graph import Stage


class Cores:
    """A counted resource: `take(n)` waits until n cores are free."""

    def __init__(self, total: int | None = None) -> None:
        self.total = total or os.cpu_count() or 1
        self.free = self.total
        self._changed = threading.Condition()

    @contextmanager
    def take(self, count: int) -> Iterator[None]:
        """Hold `count` cores, or all of them if there are fewer."""
        count = min(count, self.total)
        with self._changed:
            self._changed.wait_for(lambda: self.free >= count)
            self.free -= count
        try:
            yield
        finally:
            with self._changed:
                self.free += count
                self._changed.notify_all()


def wanted(stage: Stage) -> int:
    """Return the threads of a stage: `compute.threads` if it depends on `compute`, else 1."""
    for values in stage.params.values():
        compute = values.get("compute")
        if isinstance(compute, dict):
            threads = compute.get("threads", 1)
            return threads if isinstance(threads, int) else 1
    return 1
