"""The chains that MLflow holds: one without a description is left out, a dead server is not."""

import json

import pytest

from flows.tracking.client import Tracker
from flows.tracking.published import published
from flows.tracking.shown import GAP, OLD_GAP
from fmcore.settings import ReflowError

ABOUT = {
    "key": "k", "recipe": "r", "data": "digits", "seed": 0, "commit": "c", "settings": {},
    "couplings": [],
    "files": {
        "comparison": "out/rounds.json",
        "rounds": {"rf1": {"pictures": "pictures/rf1", "straightness": "gap/rf1.csv"}},
    },
}  # fmt: skip


@pytest.fixture
def tracker(empty, request) -> Tracker:
    """A finished chain of one round, and one that has not come to its comparison."""
    tracker = Tracker(empty.root)
    create = tracker.client.create_run
    tags = {"reflow.kind": "chain", "reflow.chain": "k"}
    create(tracker.experiment, run_name="half", tags={**tags, "reflow.chain": "h"})
    run = create(tracker.experiment, run_name="whole", tags=tags).info.run_id
    tracker.client.log_dict(run, ABOUT, "chain.json")
    tracker.client.log_text(run, "rounds", "comparison/rounds.json")
    tags = {"reflow.kind": "round", "reflow.chain": "k", "reflow.round": "rf1"}
    child = create(tracker.experiment, run_name="rf1", tags=tags).info.run_id
    name = getattr(request, "param", GAP)
    tracker.log(child, [(name, 2.0, 100), (name, 1.0, 900)])
    tracker.client.log_text(child, "png", "pictures/samples.png")
    return tracker


@pytest.mark.parametrize("tracker", [GAP, OLD_GAP], indirect=True)
def test_what_is_there_is_read_and_what_is_not_is_none(tracker):
    ((name, about, read),) = published(tracker.root, pytest.fail)
    files = {**ABOUT["files"]["rounds"]["rf1"], "losses": ""}  # earlier versions wrote no losses
    own = {**ABOUT, "files": {**ABOUT["files"], "rounds": {"rf1": files}}}
    assert (name, about.as_dict()) == ("whole", own)
    assert read("out/rounds.json") == b"rounds"
    assert read("pictures/rf1/samples.png") == b"png"
    assert read("pictures/rf1/trajectories.png") is None
    assert read("elsewhere") is None
    assert read("gap/rf1.csv").decode().splitlines() == ["t,gap", "0.1,2.0", "0.9,1.0"]


@pytest.mark.parametrize("method", ["list_artifacts", "download_artifacts"])
def test_a_server_that_dies_is_one_line_and_no_missing_chain(tracker, monkeypatch, method):
    from mlflow import MlflowClient

    def die(*_, **__):
        raise ConnectionError("connection refused\nby the server")

    monkeypatch.setattr(MlflowClient, method, die)
    with pytest.raises(ReflowError) as error:
        list(published(tracker.root, pytest.fail))
    assert str(error.value).startswith("MLflow: no server answers there (sqlite:///")


def test_a_description_that_is_damaged_is_left_out_in_one_line(tracker):
    (run,) = tracker.find(reflow__kind="chain", reflow__chain="k")
    tracker.client.log_text(run.info.run_id, json.dumps({"key": "k"}), "chain.json")
    lines: list[str] = []
    assert list(published(tracker.root, lines.append)) == []
    assert [line.partition(": no desc")[0] for line in lines] == [
        "left out: MLflow's chain whole: chain.json"
    ]
