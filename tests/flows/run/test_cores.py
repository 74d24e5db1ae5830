"""Cores: stages side by side never hold more than there are, and none waits for ever."""

import os
import threading
import time
from pathlib import Path

import pytest

from flows.dag import graph
from flows.dag.graph import Stage
from flows.project.executor import EXECUTOR
from flows.run.cores import THREADS, Cores, wanted
from flows.run.repro import Outcome
from flows.run.schedule import ChainRun
from fmcore.work.compute import Compute
from tests.conftest import SOURCE


@pytest.mark.parametrize(("threads", "at_once"), [(1, 4), (2, 2), (3, 1), (9, 1)])
def test_no_more_threads_than_cores_and_all_get_through(threads, at_once):
    cores, lock = Cores(4), threading.Lock()
    running, most, done = 0, 0, 0

    def work():
        nonlocal running, most, done
        with cores.take(threads):
            with lock:
                running += 1
                most = max(most, running)
            time.sleep(0.05)
            with lock:
                running -= 1
                done += 1

    workers = [threading.Thread(target=work) for _ in range(8)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(10)
    assert (most, done, cores.free) == (at_once, 8, 4)


@pytest.mark.parametrize(
    ("quota", "expected"),
    [("max 100000", 3), ("200000 100000", 2), ("50000 100000", 1), ("900000 100000", 3), ("", 3)],
)
def test_the_cores_are_those_that_are_allotted(monkeypatch, tmp_path, quota, expected):
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 5}, raising=False)
    monkeypatch.setattr("flows.run.cores.QUOTA", tmp_path / "cpu.max")
    (tmp_path / "cpu.max").write_text(f"{quota}\n")
    assert Cores().total == expected


def fails(cores):
    with cores.take(2):
        raise RuntimeError("stage failed")


def test_a_failing_stage_gives_its_cores_back():
    cores = Cores(2)
    with pytest.raises(RuntimeError):
        fails(cores)
    assert cores.free == 2


def test_a_stage_that_waits_for_cores_does_not_run_yet(monkeypatch):
    def update(root, name, tell, processes, room, **_):
        assert noted == []
        with room:
            assert noted == [("a", "running")]
        return Outcome(name, "done", 0.0)

    noted: list[tuple[str, str]] = []
    monkeypatch.setattr("flows.run.schedule.update_stage", update)
    monkeypatch.setattr(ChainRun, "_note", lambda self, *said, **_: noted.append(said))
    ChainRun(Path(), {"a": stage("a", {})}).update("a", lambda line: None)
    assert noted == [("a", "running"), ("a", "done")]


def stage(name, params):
    return Stage(name, "cmd", {}, (), (), {"params.yaml": params}, ())


TWO = {"compute": {"threads": 2}}


@pytest.mark.parametrize(
    ("made", "executor", "count"),
    [
        (stage("prepare", {"seed": 0}), "processes:4", 1),
        (stage("train@rf1", {"compute": {"threads": 3}, "rounds.rf1": {"train": {}}}), None, 3),
        (stage("train@rf1", {**TWO, "rounds.rf1": {"train": {"processes": 4}}}), None, 8),
        (stage("train@rf1", {**TWO, "rounds.rf1": {"train": {}}}), "processes:4", 2),
        (stage("couple@rf1", TWO), None, 2),
        (stage("couple@rf1", TWO), "processes:3", 6),
        (stage("evaluate@rf1", TWO), "dask:2", 4),
        (stage("evaluate@rf1", TWO), "ray://head:10001", 2),
        (stage("couple@rf1", {"compute": {}}), None, 2),
        (stage("couple@rf1", {"compute": {"threads": 1}}), "processes", os.cpu_count()),
    ],
)
def test_a_stage_wants_the_threads_of_all_its_processes(monkeypatch, made, executor, count):
    monkeypatch.delenv(EXECUTOR, raising=False)
    if executor:
        monkeypatch.setenv(EXECUTOR, executor)
    assert wanted(made) == count
    assert Compute.model_fields["threads"].default == THREADS


FAKE = """
stages:
  train:
    foreach: ${rounds}
    do:
      cmd: python -m fake ${key}
      params: [compute, "rounds.${key}"]
      outs: ["${key}"]
"""
NOTE = """
import pathlib, sys, time
log = pathlib.Path("log")
def note(what):
    with log.open("a") as file:
        file.write(f"{what} {sys.argv[1]}\\n")
note("begins")
time.sleep(1)
note("ends")
pathlib.Path(sys.argv[1]).write_text("done")
"""


def most_at_once(project, processes):
    """Run two stages of so many processes of one thread each on two cores; count them."""
    rounds = "".join(f"  {n}: {{train: {{processes: {processes}}}}}\n" for n in ("a", "b"))
    project.write("params.yaml", f"compute: {{threads: 1}}\nrounds:\n{rounds}")
    stages = graph.read(project.root)
    chain_run = ChainRun(project.root, stages, cores=Cores(2))
    threads = [
        threading.Thread(target=chain_run.update, args=(name, lambda line: None)) for name in stages
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert chain_run.result().ok
    at_once = [0]
    for line in (project.root / "log").read_text().splitlines():
        at_once.append(at_once[-1] + (1 if line.startswith("begins") else -1))
    (project.root / "log").unlink()
    return max(at_once)


def test_trainings_of_two_processes_hold_two_cores_each(empty, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", f"{SOURCE}{os.pathsep}{empty.root}")
    empty.write("dvc.yaml", FAKE)
    empty.write("fake.py", NOTE)
    assert most_at_once(empty, 2) == 1
    assert most_at_once(empty, 1) == 2
