"""Live curves: what MLflow says of a run whose work is over."""

from dataclasses import replace

from flows.dag.chain import Round
from flows.project.events import Event
from flows.tracking.live import Live, _Curve
from tests.flows.tracking.test_registry import chain_of, project, tracker

__all__ = ["project", "tracker"]  # fixtures


def test_a_run_that_ends_midway_does_not_stay_running(tracker, tmp_path, monkeypatch):
    whole = chain_of("midway")
    planned = replace(whole.entries["prepare"], digest="t")
    whole = replace(whole, rounds=[Round("rf1", 1, "k", None, None, {})])
    monkeypatch.setattr(_Curve, "of", lambda root, stage: _Curve(stage, whole, planned))
    monkeypatch.setattr("flows.tracking.live._tracker", lambda root: tracker)
    told: list[str] = []
    for _ in range(2):  # stopped, and stopped again
        live = Live(tmp_path, told.append)
        live.event(Event("train@rf1", 0, 10))
        live.event(Event("train@rf1", 5, 10, {"loss": 1.0}))
        live.close()
        runs = [tracker.client.get_run(tracker.parent(whole)), *tracker.find(reflow__kind="round")]
        assert [run.info.status for run in runs] == ["KILLED", "KILLED"] and not told
    assert tracker.points(runs[1].info.run_id) == [("train/loss", 1.0, 5)]
