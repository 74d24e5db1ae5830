"""Results of threads: the same ones, errors where they belong, nothing left running."""

import threading
import time
import weakref
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
    return [t for t in threading.enumerate() if t.name.startswith("ahead")]


def test_results_come_in_order_and_from_other_threads():
    def late(n):
        time.sleep(0.01 * (n % 3 == 0))  # so that the next one is done before it
        return threading.current_thread().name[:5]

    assert list(ahead(late, range(20))) == [(n, "ahead") for n in range(20)]
    assert list(ahead(late, [])) == [] and not threads()


def test_no_more_than_the_bound_are_begun_before_they_are_wanted():
    asked = []

    def items():
        for n in range(50):
            asked.append(n)
            yield n

    for n, _ in ahead(str, items(), 2):
        assert len(asked) <= n + 3


def test_two_are_worked_on_at_once():
    both = threading.Barrier(2, timeout=10)
    assert [n for n, _ in ahead(lambda n: both.wait(), range(4))] == [0, 1, 2, 3]


def test_a_result_that_was_given_is_not_kept():
    class Shard:
        pass

    for _, shard in ahead(lambda n: Shard(), range(5)):
        seen = weakref.ref(shard)
        del shard
        assert seen() is None


def test_an_error_comes_after_the_results_before_it():
    def call(n):
        if n == 2:
            raise ReflowError("the velocity diverges")
        return n

    found = ahead(call, range(9))
    assert [next(found), next(found)] == [(0, 0), (1, 1)]
    with pytest.raises(ReflowError, match="diverges"):
        next(found)
    assert not threads()


def test_a_caller_that_stops_ends_the_threads():
    found = ahead(str, iter(int, 1))  # never ends
    assert next(found) == (0, "0")
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
