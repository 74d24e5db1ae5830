"""MLflow's records of a project that was moved or copied, and of an experiment that was deleted."""

import os
import shutil
from pathlib import Path

import pytest

from flows.project import environment
from flows.tracking import moved
from flows.tracking.client import Tracker
from tests.real_chain import Chain


@pytest.fixture(scope="module")
def schema(tmp_path_factory):
    """An empty data base of MLflow, once for all tests, because MLflow needs seconds for it."""
    from mlflow import MlflowClient

    file = tmp_path_factory.mktemp("schema") / "mlflow.db"
    MlflowClient(f"sqlite:///{file}").search_experiments()
    return file


@pytest.fixture
def tracker(empty, schema, monkeypatch):
    """A project in a folder with a space, whose experiment is empty."""
    root = empty.root / "first place"
    shutil.copy(schema, environment.local_path(root, "mlflow", "mlflow.db"))
    return _tracker(root, monkeypatch)


def _tracker(root, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", environment.tracking_data_base(root))
    return Tracker(root)


def _log(tracker, text):
    run = tracker.client.create_run(tracker.experiment).info.run_id
    tracker.client.log_text(run, text, "file.txt")
    return run


def _read(tracker, run):
    return Path(tracker.client.download_artifacts(run, "file.txt")).read_text()


def _files(root):
    return {
        p.relative_to(root): p.read_bytes()
        for p in (root / ".reflow" / "mlflow" / "artifacts").rglob("*")
        if p.is_file()
    }


@pytest.mark.parametrize("recorded", [True, False])
def test_a_moved_project_finds_its_artifacts_and_writes_where_it_is(tracker, monkeypatch, recorded):
    run = _log(tracker, "one")
    old, new = tracker.root, tracker.root.with_name("second place")
    shutil.move(old, new)
    if not recorded:  # as a project that was made before places were recorded
        (new / ".reflow" / "mlflow" / "root").unlink()
    there = _tracker(new, monkeypatch)
    assert there.notes == [f"MLflow: the project was in {old}; its records name {new} now"]
    assert _read(there, run) == "one"
    assert _read(there, _log(there, "two")) == "two"
    assert not old.exists()
    assert _tracker(new, monkeypatch).notes == []


def test_a_copy_never_writes_into_the_original(tracker, monkeypatch):
    run = _log(tracker, "one")
    copy = tracker.root.with_name("copy")
    shutil.copytree(tracker.root, copy)
    before, base = _files(tracker.root), tracker.root / ".reflow/mlflow/mlflow.db"
    kept = base.read_bytes()
    there = _tracker(copy, monkeypatch)
    assert _read(there, run) == "one"
    _log(there, "two")
    assert _files(tracker.root) == before and base.read_bytes() == kept
    assert len(_files(copy)) == 2
    again = _tracker(tracker.root, monkeypatch)
    assert again.notes == [] and _read(again, run) == "one"


@pytest.mark.slow
@pytest.mark.long
def test_the_models_of_a_copied_chain_load_and_publish_writes_into_the_copy(finished):
    chain = Chain(finished.parent / "copied")
    shutil.copytree(finished, chain.root, symlinks=True)
    before = _files(finished)
    assert "MLflow: 0 logged" in chain.reflow("publish").stdout
    load = (
        "name = t.client.search_registered_models()[0].name;"
        "m = t.mlflow.pyfunc.load_model(f'models:/{name}@one_step');"
        "print(m.metadata.model_uuid, m.predict([], params={'seed': 0, 'count': 3}).shape);"
        "[t.client.delete_run(r.info.run_id) for r in t.find(reflow__kind='chain')]"
    )
    assert "(3, 2)" in chain.mlflow(load)
    shutil.move(chain.root, chain.root.with_name("copied and moved"))
    chain = Chain(chain.root.with_name("copied and moved"))
    assert "compare: published" in chain.reflow("publish").stdout
    assert len(_files(chain.root)) > len(before)
    assert "(3, 2)" in chain.mlflow(load)
    assert not (finished.parent / "copied").exists() and _files(finished) == before


def test_places_of_others_stay(tracker, monkeypatch):
    other = tracker.root.with_name("other")
    made = tracker.client.create_experiment("own", artifact_location=other.as_uri())
    prefix = tracker.root.with_name("first place too").as_uri()
    near = tracker.client.create_experiment("near", artifact_location=prefix)
    new = tracker.root.with_name("new")
    shutil.move(tracker.root, new)
    there = _tracker(new, monkeypatch)
    assert there.client.get_experiment(made).artifact_location == other.as_uri()
    assert there.client.get_experiment(near).artifact_location == prefix


def test_a_damaged_data_base_is_one_line(tmp_path):
    from fmcore.settings import ReflowError

    file = tmp_path.joinpath(*moved.DATA_BASE)
    file.parent.mkdir(parents=True)
    file.write_text("no data base" * 100)
    with pytest.raises(ReflowError, match=r"mlflow\.db: MLflow's data base cannot be changed"):
        moved.correct(tmp_path)


def test_a_deleted_experiment_is_restored_without_what_was_replaced(tracker, monkeypatch):
    run, stale = _log(tracker, "one"), _log(tracker, "stale")
    tracker.replace(stale)
    tracker.client.delete_experiment(tracker.experiment)
    again = _tracker(tracker.root, monkeypatch)
    (note,) = again.notes
    assert note.startswith("MLflow: the experiment reflow had been deleted; it is restored")
    found = again.client.search_runs([again.experiment])
    assert [r.info.run_id for r in found] == [run]
    assert os.environ["MLFLOW_TRACKING_URI"].startswith("sqlite:")
