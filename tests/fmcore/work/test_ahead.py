"""Items made by a thread: the same items, errors where they belong, nothing left running."""

import threading
from functools import partial

import pytest

import fmcore.couple
from fmcore.couple import Couple, couple
from fmcore.settings import ReflowError
from fmcore.solve.solver import Solver
from fmcore.work.ahead import ahead
from fmcore.work.work import Work
from fmcore.work.workers import start_workers
from tests.chains import gaussian_data, scratch_model, silent


class Killed(BaseException):
    """Stands for SIGKILL."""


def threads():
    return [t for t in threading.enumerate() if t.name == "ahead"]


def test_items_come_in_order_and_from_another_thread():
    made = ((n, threading.current_thread().name) for n in range(20))
    assert list(ahead(made)) == [(n, "ahead") for n in range(20)]
    assert list(ahead([])) == [] and not threads()


def test_no_more_than_the_bound_are_made_before_they_are_wanted():
    made, third = [], threading.Event()

    def items():
        for n in range(50):
            made.append(n)
            if n == 3:  # one with the caller, two wait, one in the thread's hand
                third.set()
            yield n

    for n in ahead(items(), 2):
        assert third.wait(10) and len(made) <= n + 4


def test_an_error_comes_after_the_items_before_it():
    def items():
        yield 1
        raise ReflowError("the velocity diverges")

    found = ahead(items())
    assert next(found) == 1
    with pytest.raises(ReflowError, match="diverges"):
        next(found)
    assert not threads()


def test_a_caller_that_stops_ends_the_thread():
    found = ahead(iter(int, 1))  # never ends
    assert next(found) == 0
    found.close()
    assert not threads()


@pytest.fixture(params=[False, True], ids=["in turn", "behind"])
def behind(request, monkeypatch):
    set_ = partial(start_workers, behind=request.param)
    monkeypatch.setattr(fmcore.couple, "start_workers", set_)
    return request.param


def run(root, name, *, log=silent, **settings):
    given = Couple(**{"pairs": 700, "shard": 100, "solver": Solver(steps=2)} | settings)
    work = Work(scratch=root / name / "scratch", seed=11, log=log)
    out = root / name / "out"
    couple(root / "model", root / "data", out, root / name / "m.json", given, work)
    return {p.name: p.read_bytes() for p in out.iterdir()}


@pytest.fixture
def start(tmp_path):
    gaussian_data(tmp_path / "data", mu=[0.0, 0.0], s=[1.0, 1.0], pairs=50)
    scratch_model(tmp_path / "model", dim=2)
    return tmp_path


def test_writing_behind_sampling_changes_no_byte(start, monkeypatch):
    whole = run(start, "in_turn")
    names = []
    real = fmcore.couple.write_shard
    monkeypatch.setattr(fmcore.couple, "start_workers", partial(start_workers, behind=True))
    monkeypatch.setattr(
        fmcore.couple,
        "write_shard",
        lambda *given: names.append(threading.current_thread().name) or real(*given),
    )
    assert run(start, "behind") == whole
    assert set(names) == {threading.main_thread().name} and not threads()


def test_a_killed_run_goes_on_where_it_stopped(start, behind):
    whole, logged = run(start, "whole"), []

    def killed(values, done):
        logged.append(done)
        if done == 300:
            raise Killed

    with pytest.raises(Killed):
        run(start, "killed", log=killed)
    assert not threads()
    shards = start / "killed/scratch/shards"
    assert len(list(shards.glob("part-*.parquet"))) == 3  # what waited was not written
    again = []
    assert run(start, "killed", log=lambda values, done: again.append(done)) == whole
    assert again == [300, 400, 500, 600, 700]


def test_an_error_of_the_writer_ends_the_sampler(start, behind, monkeypatch):
    real = fmcore.couple.write_shard

    def full(folder, index, rows):
        if index == 2:
            raise ReflowError("no space")
        return real(folder, index, rows)

    monkeypatch.setattr(fmcore.couple, "write_shard", full)
    with pytest.raises(ReflowError, match="no space"):
        run(start, "full")
    assert not threads()


def test_an_error_of_the_sampler_ends_the_coupling(start, behind, monkeypatch):
    real = fmcore.couple.PairSampler.shard

    def diverging(self, index):
        if index == 2:
            raise ReflowError("target of pair 250 is not finite")
        return real(self, index)

    monkeypatch.setattr(fmcore.couple.PairSampler, "shard", diverging)
    with pytest.raises(ReflowError, match="pair 250"):
        run(start, "bad")
    assert len(list((start / "bad/scratch/shards").glob("part-*.parquet"))) == 2
    assert not threads()
