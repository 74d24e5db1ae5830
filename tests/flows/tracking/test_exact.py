"""MLflow holds the points that were measured: those, each once, to the last bit."""

import csv
import json
import shutil

import pytest

from flows.compare.tables import paths
from flows.params.load import load
from flows.project.events import followed, path_of, scratch_of
from flows.stage.progress import Reporter
from flows.tracking import marker
from flows.tracking.client import LOGGED, OLD_LOGGED, Tracker
from flows.tracking.live import Live
from flows.tracking.publish import publish
from fmcore.settings import derive_seed
from fmcore.train import train
from fmcore.work.work import Work
from tests.real_chain import Chain

pytestmark = pytest.mark.slow

HISTORIES = """
import json
found = {}
for run in t.client.search_runs([t.experiment]):
    points = [
        (name, m.step, m.value, m.timestamp)
        for name in run.data.metrics
        for m in t.client.get_metric_history(run.info.run_id, name)
    ]
    assert run.info.run_name not in found
    found[run.info.run_name] = sorted(points)
print(json.dumps(found))
"""


DATA = """
(data,) = t.find(reflow__kind='chain')[0].inputs.dataset_inputs
assert data.dataset.name == 'gaussian' and 'data' in {tag.value for tag in data.tags}
print(data.dataset.profile)
"""
RECEIPTS = """
import json
run = t.find(reflow__round='rf1')[0].info.run_id
print(json.dumps(sorted(a.path.split('/')[1] for a in t.client.list_artifacts(run, 'receipts'))))
"""


class Killed(BaseException):
    """Stands for SIGKILL: nothing in the code under test may catch it."""


@pytest.fixture(scope="module")
def chain(finished):
    """A copy of the chain that ran live; the tests share it and leave it up to date."""
    root = finished.parent / "exact"
    shutil.copytree(finished, root, symlinks=True)
    return Chain(root)


def histories(chain):
    return json.loads(chain.mlflow(HISTORIES))


def untimed(found):
    return {run: [point[:3] for point in points] for run, points in found.items()}


def curve(root, round_):
    """Return the points of a curve as its csv has them."""
    with paths(root, f"train@{round_}")["curve"].open() as file:
        rows = list(csv.DictReader(file))
    return sorted(
        (f"train/{name}", int(row["step"]), float(value))
        for row in rows
        for name, value in row.items()
        if value and name != "step"
    )


@pytest.mark.long
def test_after_a_live_run_mlflow_is_what_publish_makes_of_nothing(chain):
    live = histories(chain)
    for round_ in ("rf1", "rf2"):
        trained = [p for p in live[round_] if p[0].startswith("train/")]
        assert [tuple(p[:3]) for p in trained] == curve(chain.root, round_)
        last = max(p[3] for p in trained if p[0] == "train/loss")
        assert last < min(p[3] for p in live[round_] if p[0].startswith("over_t/")), "not live"
        assert len({p[0] for p in live[round_]}) < 40
        bars = {p[0] for p in live[round_] if p[1] == 0 and not p[0].startswith("over_t/")}
        assert len([name for name in bars if not name.startswith("spent/")]) <= 12
    held = [p[1] for p in live["rf1"] if p[0] == "train/held_out_loss"]
    assert held == [200, 400, 500]
    seen, kept = json.loads(chain.mlflow(DATA)), json.loads(chain.mlflow(RECEIPTS))
    assert (seen["num_rows"], seen["features"], seen["classes"]) == (4000, 2, 0)
    assert kept == ["couple_rf1.json", "evaluate.json", "train.json"]
    shutil.rmtree(chain.root / ".reflow" / "mlflow")
    assert " 0 not published" in chain.reflow("publish").stdout
    assert untimed(histories(chain)) == untimed(live)


@pytest.mark.long
def test_a_run_with_nothing_to_do_asks_mlflow_nothing_unless_its_file_is_another(chain):
    words = ("python", "-X", "importtime", "-m", "flows.cli", "run", "--no-prefect")

    def imported():
        done = chain.sh(*words)
        assert "cached train@rf2" in done.stdout and "not published" not in done.stdout
        return {line.split("|")[-1].strip().split(".")[0] for line in done.stderr.splitlines()}

    base = chain.root / ".reflow" / "mlflow" / "mlflow.db"
    assert not {"mlflow", "prefect", "torch"} & imported()
    base.unlink()
    assert "mlflow" in imported()
    assert base.exists()
    assert "mlflow" not in imported()
    assert "MLflow: 0 logged" in chain.reflow("publish").stdout
    name = "MLFLOW_EXPERIMENT_NAME=another"
    done = chain.sh("env", name, *words)
    assert "mlflow.client" in done.stderr, "the note is of another experiment"


@pytest.fixture
def data_base(chain, tmp_path, monkeypatch):
    """Let MLflow be a data base of its own; a later call gives the next one."""
    for name in ("DVC_SITE_CACHE_DIR", "PREFECT_HOME", "MLFLOW_TRACKING_URI"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)

    def use(name):
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / name}.db")

    return use


def attempt(root, out, *, kill_at=None, seed=None):
    """Train rf1 as its stage does, followed live; return what became of it."""
    params = load(root / "params.yaml")
    params.compute.start()
    settings = params.rounds["rf1"].train
    files = paths(root, "train@rf1")
    warnings = []
    live = Live(root, warnings.append)
    scratch = scratch_of(root, "train@rf1") / "fingerprint"
    with (
        followed(path_of(root, "train@rf1"), live.event),
        Reporter("train@rf1", settings.steps, scratch) as log,
    ):

        def watched(values, step):
            log(values, step)
            if kill_at and step >= kill_at:
                raise Killed

        try:
            train(
                files["coupling"], files["init"], out / "model", out / "curve.csv",
                out / "metrics.json", settings, name="rf1",
                work=Work(
                    seed=derive_seed(params.seed, "train", "rf1") if seed is None else seed,
                    device=params.compute.start(), scratch=out / "scratch", log=watched,
                    compute=params.compute,
                ),
            )  # fmt: skip
        except Killed:
            pass
    live.close()
    assert warnings == []


def points(root):
    """Return the points of every run that is not deleted."""
    tracker = Tracker(root)
    runs = {
        run.info.run_name: run.info.run_id
        for run in tracker.client.search_runs([tracker.experiment])
    }
    return {
        name: sorted((n, s, v) for n, v, s in tracker.points(run)) for name, run in runs.items()
    }


@pytest.mark.long
def test_a_killed_and_resumed_training_leaves_each_point_once(chain, data_base, tmp_path):
    data_base("live")
    attempt(chain.root, tmp_path, kill_at=330)
    first = points(chain.root)["rf1"]
    assert [s for n, s, _ in first if n == "train/loss"] == list(range(50, 351, 50))
    attempt(chain.root, tmp_path)  # from the checkpoint at 200, past 250, 300 and 350 once more
    assert points(chain.root)["rf1"] == curve(chain.root, "rf1")
    said = []
    publish(chain.root, said.append, models=False)
    assert not any("replaced" in line for line in said)
    live = points(chain.root)
    data_base("empty")
    publish(chain.root, models=False)
    assert points(chain.root) == live


@pytest.mark.long
def test_points_that_no_receipt_has_do_not_stay(chain, data_base, tmp_path):
    """What a GPU does: the steps past the checkpoint come out otherwise when they are repeated."""
    data_base("foreign")
    attempt(chain.root, tmp_path, kill_at=330, seed=99)
    said = []
    publish(chain.root, said.append, models=False)
    assert any(line.startswith("train@rf1: its live curves") for line in said)
    live = points(chain.root)
    data_base("empty")
    publish(chain.root, models=False)
    assert points(chain.root) == live


@pytest.mark.long
def test_publish_that_was_interrupted_logs_the_rest_and_nothing_twice(
    chain, data_base, monkeypatch
):
    data_base("interrupted")
    calls = []

    def set_tag(client, run, key, value):
        calls.append(key)
        if key.endswith("reflow.published.evaluate.rf2"):
            raise Killed
        return real(client, run, key, value)

    from mlflow import MlflowClient

    real = MlflowClient.set_tag
    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, "set_tag", set_tag)
        with pytest.raises(Killed):
            publish(chain.root, models=False)
    publish(chain.root, models=False)
    found = points(chain.root)
    data_base("empty")
    publish(chain.root, models=False)
    assert points(chain.root) == found


@pytest.mark.long
def test_records_of_an_earlier_version_are_completed_and_nothing_is_there_twice(chain, data_base):
    data_base("earlier")
    publish(chain.root)
    tracker = Tracker(chain.root)
    runs = tracker.client.search_runs([tracker.experiment])
    for run in runs:  # the tags, and a name, of earlier versions
        for tag, value in run.data.tags.items():
            if tag.startswith(LOGGED):
                tracker.client.delete_tag(run.info.run_id, tag)
                if ".score." not in tag:
                    old = tag.replace(LOGGED, OLD_LOGGED)
                    tracker.client.set_tag(run.info.run_id, old, value)
        tracker.log(run.info.run_id, [("train/final_loss", 1.0, 0)])
    found = points(chain.root)
    done = publish(chain.root)
    assert done.skipped == [] and {"model@rf1", "model@rf2"} <= set(done.unchanged)
    assert points(chain.root) == found
    models = tracker.client.search_logged_models([tracker.experiment])
    assert len(models) == 2 and publish(chain.root).logged == []
    for run in tracker.client.search_runs([tracker.experiment]):
        left = [tag for tag in run.data.tags if tag.startswith(OLD_LOGGED)]
        assert left in ([], [f"{OLD_LOGGED}model.{run.info.run_name}"]), "out of people's way"
        data = [d.dataset.name for d in run.inputs.dataset_inputs]
        assert len(data) == len(set(data))


def test_the_note_is_of_one_lock_and_one_place(tmp_path, monkeypatch):
    base = tmp_path / "mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{base}")
    base.touch()
    (tmp_path / "dvc.lock").write_text("a")
    assert marker.published(tmp_path) is None
    marker.note(tmp_path, marker.lock_hash(tmp_path), "run")
    assert marker.published(tmp_path) == "run"
    (tmp_path / "dvc.lock").write_text("b")
    assert marker.published(tmp_path) is None
    (tmp_path / "dvc.lock").write_text("a")
    other = tmp_path / "other"
    other.touch()
    other.replace(base)
    assert marker.published(tmp_path) is None
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    assert marker.published(tmp_path) is None
