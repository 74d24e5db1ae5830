"""`reflow estimate` does not take the load of a machine for its speed."""

import os
import subprocess
import sys
import time

import pytest
import torch

from flows.cli import load
from flows.cli.estimate import _seconds_each
from flows.cli.load import Load, Watch, note

SPIN = "while True: pass"


@pytest.mark.parametrize(
    ("others", "idle", "felt"), [(0.0, 0.0, False), (1.0, 0.1, True), (3.0, 4.0, False)]
)
def test_others_are_felt_where_they_leave_no_core_idle(others, idle, felt):
    found = Load(others, idle, 8)
    assert found.felt == felt == bool(note(found, exact=False))


@pytest.mark.parametrize("exact", [True, False])
def test_the_note_says_whether_the_times_are_cpu_times(exact):
    assert ("CPU times" in note(Load(2.0, 0.0, 2), exact=exact)) == exact
    assert note(None, exact=exact) == ""


@pytest.mark.skipif(not load.STAT.exists(), reason="no /proc/stat")
def test_work_of_other_processes_is_seen_and_own_work_is_not():
    others = [subprocess.Popen([sys.executable, "-c", SPIN]) for _ in range(os.cpu_count() or 1)]
    try:
        watch = Watch()
        time.sleep(1.0)
        found = watch.load()
        assert found is not None and found.felt
    finally:
        for other in others:
            other.kill()
            other.wait()


def test_own_work_counts_for_nobody_else(monkeypatch, tmp_path):
    """Ten ticks of a second: four are this process's, one another's, five nobody's."""
    monkeypatch.setattr(load, "STAT", tmp_path / "stat")
    tick = os.sysconf("SC_CLK_TCK")
    said = iter([(0.0, 0.0), (10.0, 4.0)])
    clock = {}

    def step(user, idle):
        load.STAT.write_text(f"cpu  {user * tick} 0 0 {idle * tick} 0 0 0 0 0 0\n")
        clock["wall"], clock["own"] = next(said)

    monkeypatch.setattr(load.time, "perf_counter", lambda: clock["wall"])
    monkeypatch.setattr(load.os, "times", lambda: os.times_result((clock["own"], 0, 0, 0, 0)))
    step(100, 100)
    watch = Watch()
    step(105, 105)
    found = watch.load()
    assert found is not None and (found.others, found.idle) == pytest.approx((0.1, 0.5))
    load.STAT.write_text("no such line")
    assert watch.load() is None and Watch().load() is None


@pytest.mark.parametrize("threads", [1, 2])
def test_one_thread_is_timed_by_its_own_work(threads):
    """A call that only waits, as one does while others have the CPU."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        took = _seconds_each(lambda: time.sleep(0.01), 0.1, torch.device("cpu"))
    finally:
        torch.set_num_threads(before)
    assert took < 0.003 if threads == 1 else took >= 0.01
