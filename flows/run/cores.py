"""Cores of this machine, shared by the stages that run at the same time.

Two stages with two threads each on two cores are not twice but five times as slow: the threads of
one spin while those of the other work. So a stage waits until its threads have cores.
"""

import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from flows.dag.graph import Stage
from flows.project.executor import EXECUTOR, chosen

THREADS = 2
"""What `compute.threads` is where params.yaml does not say (fmcore/work/compute.py needs torch)."""

EXECUTED = ("couple", "evaluate")
"""The verbs whose work an executor shares among its workers."""


QUOTA = Path("/sys/fs/cgroup/cpu.max")
"""What a container or a unit of systemd may use: microseconds of cores in each period, or `max`."""


def allotted() -> int:
    """Return how many cores this process may use: Slurm and containers allot fewer than there are.

    Its affinity is asked, and the quota of its control group.
    """
    known = hasattr(os, "sched_getaffinity")  # not on macOS
    count = len(os.sched_getaffinity(0)) if known else os.cpu_count() or 1
    with suppress(OSError, ValueError):
        quota, period = map(int, QUOTA.read_text().split())
        count = min(count, max(1, quota // period))
    return count


class Cores:
    """A counted resource: `take(n)` waits until n cores are free."""

    def __init__(self, total: int | None = None) -> None:
        self.total = total or allotted()
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
    """Return the threads of all processes of a stage; 1 if it does not depend on `compute`."""
    for values in stage.params.values():
        compute = values.get("compute")
        if isinstance(compute, dict):
            threads = compute.get("threads", THREADS)
            threads = threads if isinstance(threads, int) else THREADS
            return threads * _processes(stage.name, values, threads)
    return 1


def _processes(name: str, values: Mapping[str, object], threads: int) -> int:
    """Return how many processes of this machine compute: `train.processes`, or the executor's."""
    verb, _, key = name.partition("@")
    if verb == "train":
        round_ = values.get(f"rounds.{key}")
        train = round_.get("train") if isinstance(round_, dict) else None
        count = train.get("processes", 1) if isinstance(train, dict) else 1
        return count if isinstance(count, int) else 1
    if verb not in EXECUTED or not os.environ.get(EXECUTOR):
        return 1
    executor = chosen()
    if executor.address or executor.kind == "in-process":  # a cluster has cores of its own
        return 1
    return executor.workers or max(1, (os.cpu_count() or 1) // threads)
