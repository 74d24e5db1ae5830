"""What other processes take of the CPU while `reflow estimate` measures, and the clock it takes."""

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

STAT = Path("/proc/stat")
BUSY = ("user", "nice", "system", "idle", "iowait", "irq", "softirq", "steal")
"""The first columns of the line `cpu` in /proc/stat; all but idle and iowait are work."""
LEAST = 0.1
"""Cores that others take below which nobody would notice."""
FREE = 0.25
"""Idle cores above which others are in nobody's way."""


@dataclass(frozen=True)
class Load:
    """Cores, on the mean over a while: those of other processes, those that were idle, and all."""

    others: float
    idle: float
    cores: int

    @property
    def felt(self) -> bool:
        """Whether others were in the way: they took something, and hardly anything was left."""
        return self.others >= LEAST and self.idle < FREE


class Watch:
    """Watches the CPUs of this machine from its making on."""

    def __init__(self) -> None:
        self._before = _now()

    def load(self) -> Load | None:
        """Return what others took since then; None where the system does not tell (no Linux)."""
        if self._before is None or (now := _now()) is None:
            return None
        wall, busy, idle, own = (b - a for a, b in zip(self._before, now, strict=True))
        return Load(max(0.0, busy - own) / wall, idle / wall, os.cpu_count() or 1)


def _now() -> tuple[float, float, float, float] | None:
    """Return seconds: of the clock, of all cores' work and idleness, of this process's work."""
    try:
        words = STAT.read_text().split("\n", 1)[0].split()[1 : 1 + len(BUSY)]
        ticks = dict(zip(BUSY, map(int, words), strict=True))
    except (OSError, ValueError):
        return None
    idle = ticks["idle"] + ticks["iowait"]
    hertz = os.sysconf("SC_CLK_TCK")
    own = os.times()
    work = own.user + own.system + own.children_user + own.children_system
    return time.perf_counter(), (sum(ticks.values()) - idle) / hertz, idle / hertz, work


def one_thread(device: str, threads: int) -> bool:
    """Say whether one CPU thread does the work: then its own CPU time says what it takes."""
    return device == "cpu" and threads == 1


def clock(device: str, threads: int) -> Callable[[], float]:
    """Return the clock for work on a device: other processes do not slow down the CPU's own."""
    return time.thread_time if one_thread(device, threads) else time.perf_counter


def note(load: Load | None, *, exact: bool) -> str:
    """Say that others took CPU while times were measured, `exact` ones by CPU time; "" if not.

    >>> note(Load(1.5, 0.0, 2), exact=False)
    'other processes took 1.5 of 2 cores meanwhile: on a quiet machine the chain takes less time'
    """
    if load is None or not load.felt:
        return ""
    took = f"other processes took {load.others:.1f} of {load.cores} cores meanwhile"
    if exact:
        return f"{took}: the times are CPU times, as on a quiet machine"
    return f"{took}: on a quiet machine the chain takes less time"
