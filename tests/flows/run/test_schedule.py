"""What a run does at its end, and which stages it does not ask DVC about."""

from pathlib import Path

import pytest

from flows.dag import graph
from flows.run.repro import Outcome
from flows.run.schedule import ChainRun, Listeners, StageResult
from fmcore.settings import ReflowError


def stage(name, *upstream):
    return graph.Stage(name, "cmd", {}, (), (), {}, upstream)


def test_the_records_are_kept_though_dvc_lock_cannot_be_sorted(monkeypatch):
    def busy(root):
        raise ReflowError("DVC: Unable to acquire lock")

    monkeypatch.setattr(graph, "sort_lock", busy)
    said, closed = [], []
    run = ChainRun(Path(), {"a": stage("a")}, Listeners(closing=closed.append, say=said.append))
    run.results["a"] = StageResult("done")
    run.close()
    run.close()
    assert [result.ok for result in closed] == [True]
    assert said[0] == "dvc.lock was not sorted: DVC: Unable to acquire lock"


@pytest.mark.parametrize(("above", "asked"), [("done", ["b"]), ("cached", [])])
def test_a_stage_below_one_that_ran_is_asked_about_again(monkeypatch, above, asked):
    """The plan foretold that DVC restores `a`; where DVC ran it after all, `b` may have changed."""
    calls = []

    def update(root, name, *_, **__):
        calls.append(name)
        return Outcome(name, "cached", 0.0)

    monkeypatch.setattr("flows.run.schedule.update_stage", update)
    run = ChainRun(Path(), {"a": stage("a"), "b": stage("b", "a")}, unchanged=frozenset({"b"}))
    run.results["a"] = StageResult(above)
    assert run.update("b", lambda line: None).state == "cached"
    assert calls == asked
