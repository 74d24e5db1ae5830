"""One real chain: DVC, Prefect and MLflow, on a copy of this repository with small settings.

The tests of this file run in order and share the chain; each leaves it up to date.
"""

import contextlib
import json
import os
import shutil
import signal
import sqlite3
import subprocess
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.dataset
import pytest

from flows.dag import lineage
from tests.conftest import heed_interrupts, until
from tests.real_chain import OUTPUTS, Chain

pytestmark = pytest.mark.slow

THIRD = """
  rf3:
    coupling: rf2
    init: rf2
    train: {steps: 20, batch: 256, lr: 1.0e-3}
couplings:
  rf2: {round: rf2, pairs: 500}
"""


@pytest.fixture(scope="module")
def chain(finished) -> Chain:
    """A copy of the finished chain, in the same place as seen from inside."""
    root = finished.parent / "end to end"
    shutil.copytree(finished, root, symlinks=True)
    return Chain(root)


def test_the_run_says_what_it_did_and_where_things_are(chain):
    said = (chain.root / ".reflow" / "run.log").read_text()
    assert "Traceback" not in said
    for word in ("done train@rf2", "energy by NFE", "MLflow", "Prefect run", "comparison/"):
        assert word in said
    assert (chain.root / ".reflow" / "prefect").is_dir()


def test_prefect_says_what_the_run_is_about(chain):
    with sqlite3.connect(chain.root / ".reflow" / "prefect" / "prefect.db") as base:
        name, tags, parameters = base.execute(
            "select name, tags, parameters from flow_run"
        ).fetchone()
        found = base.execute("select key, type, description from artifact").fetchall()
    given = json.loads(parameters)
    assert name.startswith(f"{given['data']} rf1")
    assert given["rounds"][:2] == ["rf1", "rf2"] and "train@rf1" in given["to_run"]
    assert {"reflow", "rf1", f"data: {given['data']}", f"seed: {given['seed']}"} <= {
        *json.loads(tags)
    }
    assert ("rounds", "table", "The rounds so far") in found
    assert all(description for _, kind, description in found if kind != "progress"), found


def test_a_proxy_does_not_come_between_the_run_and_its_servers(chain):
    said = (chain.root / ".reflow" / "run.log").read_text()  # it ran behind one: `real_chain`
    assert "Prefect run" in said and "went away" not in said and "not published" not in said


def test_nothing_is_written_outside_the_project(finished):
    assert sorted(p.name for p in (finished.parent / "home").rglob("*")) == []


def test_the_second_round_is_straight_and_good_in_one_step(chain):
    found = json.loads(chain.reflow("compare", "--json").stdout)
    rf1, rf2 = found["rounds"]
    assert (rf1["round"], rf2["round"], rf2["coupling"]) == ("rf1", "rf2", "rf1")
    assert rf2["straightness_rel"] < 0.1 * rf1["straightness_rel"]
    assert rf2["energy"]["1"] < 0.1 * rf1["energy"]["1"]
    assert rf2["transport_cost"] < 1.05 * rf1["transport_cost"]
    assert abs(rf1["budget_defect"]) < 0.1
    assert found["floor_se"] > 0 and rf1["train_seconds"] > 0


def test_dvc_repro_alone_finds_nothing_to_do(chain):
    before = chain.lock()
    said = chain.repro().stdout
    assert said.count("didn't change, skipping") == 9
    assert said.count("Running stage") == 1, "`inputs` alone runs, every time"
    assert chain.lock() == before
    assert set(chain.plan().values()) == {"unchanged"}


def test_pandas_and_pyarrow_read_the_coupling(chain):
    frame = pd.read_parquet(chain.root / "couplings" / "rf1")
    assert len(frame) == 2000
    dataset = pyarrow.dataset.dataset(chain.root / "couplings" / "rf1", format="parquet")
    assert dataset.count_rows() == 2000
    assert "whole; 2000 pairs" in chain.reflow("verify", "couplings/rf1").stdout


def test_dvc_draws_and_diffs_what_the_stages_wrote(chain):
    shown = json.loads(chain.sh("dvc", "metrics", "show", "--json").stdout)[""]["data"]
    assert list(shown) == [f"comparison/short/{name}.json" for name in ("rf1", "rf2")]
    assert [len(file["data"]) for file in shown.values()] == [6, 6]
    heads = chain.sh("dvc", "exp", "show", "--csv").stdout.splitlines()[0].split(",")
    assert heads[5].startswith("comparison/short/rf1.json:energy/nfe_1") and len(heads) < 120
    shown = chain.sh("dvc", "plots", "show", "-o", str(chain.root / ".reflow" / "plots")).stderr
    assert "failed" not in shown
    page = (chain.root / ".reflow" / "plots" / "index.html").read_text()
    assert "distance to the data over NFE" in page and '"type": "log", "base": 2' in page
    points = pd.read_csv(chain.root / "comparison" / "distance.csv")
    assert set(points["round"]) == {"rf1", "rf2", "floor"} and set(points["nfe"]) == {1, 4, 16}
    assert set(pd.read_csv(chain.root / "comparison/straightness.csv")["round"]) == {"rf1", "rf2"}


@pytest.mark.long
def test_dvc_hands_out_a_coupling_and_a_model_by_name(chain, tmp_path):
    for name, path in (("coupling-rf1", "couplings/rf1"), ("rf2", "models/rf2")):
        chain.sh("git", "tag", "-a", f"{name}@v1.0.0", "-m", "kept")
        out = tmp_path / name
        chain.sh("dvc", "artifacts", "get", ".", name, "--rev", "v1.0.0", "-o", str(out))
        names = {file.name for file in out.iterdir()}
        assert names == {file.name for file in (chain.root / path).iterdir()}


def test_mlflow_holds_a_run_per_round_below_one_chain(chain):
    code = (
        "import json; runs = t.client.search_runs([t.experiment]);"
        "print(json.dumps([[r.info.run_name, r.info.status, r.data.tags, r.data.metrics,"
        " r.data.params, [d.dataset.name for d in r.inputs.dataset_inputs]] for r in runs]))"
    )
    runs = {name: rest for name, *rest in json.loads(chain.mlflow(code))}
    assert len(runs) == 3
    parent = next(name for name in runs if name.startswith("gaussian"))
    status, tags, metrics, params, data = runs["rf2"]
    assert status == runs[parent][0] == "FINISHED"
    assert params["train.steps"] == "200"
    assert data == ["couplings-rf1"]
    lock = lineage.lock_entries(chain.root)
    made = lock["couple@rf1"].md5("couplings/rf1")
    assert tags["dvc.couplings/rf1.md5"] == made
    assert tags["reflow.key"] == lineage.lineage(lock)["train@rf2"]
    evaluated = json.loads((chain.root / "metrics" / "evaluate" / "rf2.json").read_text())
    assert metrics["score/straightness_rel"] == evaluated["straightness_rel"]
    assert runs[parent][2]["round/straightness_rel"] == evaluated["straightness_rel"]
    assert metrics["score/nfe_1"] == evaluated["energy/nfe_1"]
    code = (
        "import json; r = t.find(reflow__kind='round', reflow__round='rf1')[0].info.run_id;"
        "h = t.client.get_metric_history;"
        "print(json.dumps([[m.step for m in h(r, 'train/loss')],"
        " [m.step for m in h(r, 'distance/energy')],"
        " sorted(a.path for a in t.client.list_artifacts(r, 'pictures'))]))"
    )
    losses, nfes, pictures = json.loads(chain.mlflow(code))
    assert sorted(losses) == list(range(50, 501, 50)), "each point once, live or published"
    assert sorted(nfes) == [1, 4, 16]
    assert pictures == [
        "pictures/samples.png",
        "pictures/samples.safetensors",
        "pictures/trajectories.png",
    ]


def test_the_logged_model_turns_noise_into_samples(chain):
    code = (
        "import mlflow, numpy as np, json; r = t.find(reflow__round='rf2')[0].info.run_id;"
        "m = t.client.search_logged_models([t.experiment],"
        " filter_string=f\"source_run_id = '{r}'\")[0];"
        "f = mlflow.pyfunc.load_model(m.model_uri);"
        "z = np.random.default_rng(0).normal(size=(400, 2)).astype('float32');"
        "print(json.dumps(f.predict({'noise': z}, params={'nfe': 2}).mean(0).tolist()))"
    )
    mean = json.loads(chain.mlflow(code).splitlines()[-1])
    np.testing.assert_allclose(mean, [2.0, -1.0], atol=0.35)


@pytest.mark.long
def test_publishing_twice_does_nothing_and_a_lost_data_base_is_rebuilt(chain):
    again = chain.reflow("publish").stdout
    assert "MLflow: 0 logged" in again
    shutil.rmtree(chain.root / ".reflow" / "mlflow")
    rebuilt = chain.reflow("publish").stdout
    assert "0 there already, 0 not published" in rebuilt
    names = "print(sorted(r.info.run_name for r in t.client.search_runs([t.experiment])))"
    assert "'rf1', 'rf2'" in chain.mlflow(names)
    assert "MLflow: 0 logged" in chain.reflow("publish").stdout


def test_a_tracking_server_that_is_down_costs_a_line_not_the_work(chain):
    env = {"MLFLOW_TRACKING_URI": "http://127.0.0.1:9", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"}
    words = [f"{k}={v}" for k, v in env.items()]
    done = chain.sh("env", *words, "python", "-m", "flows.cli", "run", "--no-prefect")
    assert "cached train@rf2" in done.stdout
    assert "`reflow publish` records it later" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr


def living(root):
    """Return the processes that work in the folder `root`."""
    found = []
    for process in Path("/proc").glob("[0-9]*/cwd"):
        with contextlib.suppress(OSError):
            found += [process.parent.name] if process.readlink() == root else []
    return found


@pytest.mark.long
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_says_one_line_and_goes_on_later(chain, number):
    chain.edit("params.yaml", "steps: 200", "steps: 100000")
    words = ["python", "-m", "flows.cli", "run", "--no-prefect", "--no-mlflow"]
    process = subprocess.Popen(
        words, cwd=chain.root, env=chain.env(), text=True, start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, preexec_fn=heed_interrupts,
    )  # fmt: skip
    for line in process.stdout:
        if "train@rf2 " in line and "loss=" in line:
            break
    os.kill(process.pid, number)
    _, said = process.communicate(timeout=60)
    chain.edit("params.yaml", "steps: 100000", "steps: 200")
    assert process.returncode == 130
    assert said.strip() == "stopped; `reflow run` goes on from here"
    until(lambda: not living(chain.root))
    assert "cached train@rf2" in chain.reflow("run", "--no-prefect", "--no-mlflow").stdout


@pytest.mark.long
def test_everything_deleted_and_run_again_gives_the_same_bytes(chain):
    """By DVC alone, with no Prefect and no cache: the lock file must not change."""
    before = chain.lock()
    for name in (*OUTPUTS, ".dvc/cache", ".dvc/tmp"):
        shutil.rmtree(chain.root / name)
    done = chain.repro()
    assert done.stdout.count("Running stage") == 10, "every stage must have run"
    assert chain.lock() == before
    assert not chain.sh("git", "status", "--porcelain").stdout


def test_sampling_from_a_round(chain):
    chain.reflow("sample", "rf2", "out/a.npy", "--nfe", "1", "-n", "300")
    x = np.load(chain.root / "out" / "a.npy")
    assert x.shape == (300, 2)
    np.testing.assert_allclose(x.mean(0), [2.0, -1.0], atol=0.4)
    chain.reflow("sample", "rf2", "out/a.png")
    assert (chain.root / "out" / "a.png").stat().st_size > 1000
    shutil.rmtree(chain.root / "out")


def test_a_change_reruns_what_depends_on_it_and_no_more(chain):
    chain.edit("params.yaml", "steps: 200", "steps: 201")
    states = chain.plan()
    rerun = {"train@rf2", "evaluate@rf2", "compare"}
    assert {s for s, state in states.items() if state != "unchanged"} == rerun
    chain.edit("params.yaml", "steps: 201", "steps: 200")
    file = "fmcore/measure/straightness.py"
    chain.edit(file, "return t, gap.flip(0)", "return t, gap.flip((0,))  # as a tuple")
    rerun = {"inputs", "evaluate@rf1", "evaluate@rf2", "compare"}
    assert {s for s, state in chain.plan().items() if state != "unchanged"} == rerun
    chain.sh("git", "checkout", "-q", "fmcore")


@pytest.mark.long
def test_a_third_round_is_two_entries_and_old_couplings_come_back(chain):
    first = chain.sh("git", "rev-parse", "HEAD").stdout.strip()
    chain.edit("params.yaml", "\ncouplings:", THIRD)
    chain.edit("params.yaml", "pairs: 2000", "pairs: 1500")
    done = chain.reflow("run", "--no-prefect")
    assert "cached train@rf1" in done.stdout and "done train@rf3" in done.stdout
    chain.commit("three rounds")
    chain.sh("dvc", "get", ".", "couplings/rf1", "--rev", first, "-o", "old")
    assert len(pd.read_parquet(chain.root / "old")) == 2000
    assert len(pd.read_parquet(chain.root / "couplings" / "rf1")) == 1500
    shutil.rmtree(chain.root / "old")
    versions = json.loads(chain.reflow("couplings", "--json").stdout)
    assert sorted(v["pairs"] for v in versions if v["coupling"] == "couplings/rf1") == [1500, 2000]
    rounds = json.loads(chain.reflow("compare", "--json").stdout)["rounds"]
    assert [r["round"] for r in rounds] == ["rf1", "rf2", "rf3"]
    code = "print([r.data.tags.get('reflow.reused') for r in t.find(reflow__round='rf1')])"
    assert chain.mlflow(code) == "['true', None]"


WRONG = [
    (("sample", "rf9", "a.png"), "no 'rf9' among the rounds; params.yaml has: rf1, rf2"),
    (("sample", "rf1", "a.jpg"), "expected a name that ends in .png, .npy, .gif, .mp4"),
    (("run", "nothing"), "no stage 'nothing'"),
    (("verify", "models"), "not a coupling"),
    (("use", "nowhere.yaml"), "nowhere.yaml: not found"),
]


@pytest.mark.parametrize(("words", "message"), WRONG)
def test_wrong_input_gets_one_line_and_exit_code_2(chain, words, message):
    done = chain.reflow(*words, check=False)
    assert done.returncode == 2
    assert message in done.stderr
    assert done.stderr.count("\n") == 1 and "Traceback" not in done.stderr


def test_bad_settings_stop_every_command_before_anything_runs(chain):
    good = (chain.root / "params.yaml").read_text()
    chain.edit("params.yaml", "steps: 200,", "steps: -1,")
    done = chain.reflow("run", check=False)
    chain.write("params.yaml", good)
    assert done.returncode == 2
    assert "rounds.rf2.train.steps" in done.stderr and "above 0, got -1" in done.stderr


def test_doctor_finds_the_project_in_order(chain):
    done = chain.reflow("doctor")
    assert "rounds rf1, rf2" in done.stdout
    assert "chain: up to date" in done.stdout
