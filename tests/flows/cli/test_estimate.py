"""What `reflow estimate` says beside what a stage then takes."""

import json
import shutil
import subprocess
import sys

import pytest
import torch
from typer.testing import CliRunner

import flows.cli.estimate
from flows.cli.estimate import estimate, one_step
from flows.cli.main import app
from flows.params.load import load
from fmcore.couple import couple
from fmcore.coupling.compact import Store
from fmcore.coupling.manifest import MANIFEST
from fmcore.coupling.verify import verify
from fmcore.network.adapter import Lora
from fmcore.network.build import build
from fmcore.prepare import prepare
from fmcore.sampling.pairs import Couple
from fmcore.solve.solver import Solver
from fmcore.train import Train
from fmcore.work.compute import Compute
from fmcore.work.work import Work
from tests.chains import SMALL, gaussian_data, scratch_model
from tests.conftest import SOURCE
from tests.real_chain import PARAMS


@pytest.fixture
def chain(empty):
    for package in ("fmcore", "flows"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(SOURCE / package, empty.root / package, ignore=ignored)
    shutil.copy(SOURCE / "dvc.yaml", empty.root)
    empty.write("params.yaml", PARAMS)
    return empty


def test_every_training_and_coupling_has_a_cost(chain):
    costs = {c.stage: c for c in estimate(chain.root, seconds=0.05)}
    assert list(costs) == ["train@rf1", "couple@rf1", "train@rf2"]
    for cost in costs.values():
        assert cost.rate > 0
        assert cost.hours == pytest.approx(cost.amount / cost.rate / 3600)
    assert costs["train@rf1"].bytes is None
    assert not (chain.root / "models").exists()  # nothing ran


def test_a_step_of_an_adapter_is_tried_on_a_network_that_is_not_there_yet(tmp_path):
    data = gaussian_data(tmp_path / "data", mu=[2.0, -1.0], s=[1.0, 0.5])
    network = build(SMALL, (2,), seed=0).requires_grad_(False)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    for objective in ("velocity", "mean_flow"):
        settings = Train(steps=5, batch=8, adapter=Lora(rank=2), objective=objective)
        step, share = one_step(network, settings, data, Compute())
        assert step() > 0 and step() > 0 and share == 1
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())


def test_pairs_scale_hours_and_bytes(chain):
    small = {c.stage: c for c in estimate(chain.root, pairs=1000, seconds=0.05)}["couple@rf1"]
    large = {c.stage: c for c in estimate(chain.root, pairs=10**8, seconds=0.05)}["couple@rf1"]
    assert (small.amount, large.amount) == (1000, 10**8)
    assert large.bytes == 10**5 * small.bytes
    assert large.hours > 10**4 * small.hours
    chain.edit("params.yaml", "pairs: 2000", "store: {source: false}, pairs: 2000")
    drawn = {c.stage: c for c in estimate(chain.root, pairs=1000, seconds=0.05)}["couple@rf1"]
    assert small.bytes - drawn.bytes == 1000 * 4 * 2


@pytest.mark.parametrize("store", [Store(), Store(source=False, target="float16")], ids=str)
def test_bytes_and_nfe_are_those_of_the_coupling(tmp_path, store):
    """64 values a sample: the size on disk is that of the columns, to a few percent."""
    torch.set_num_threads(1)
    data = gaussian_data(tmp_path / "data", mu=[0.0] * 64, s=[1.0] * 64, pairs=50)
    model = scratch_model(tmp_path / "model", dim=64)
    settings = Couple(pairs=4000, solver=Solver(name="heun", steps=3), store=store)
    out = tmp_path / "out"
    couple(model, data, out, tmp_path / "m.json", settings, Work(scratch=tmp_path / "scratch"))
    size = sum(f.stat().st_size for f in out.iterdir())
    assert pytest.approx(size, rel=0.05) == 4000 * (store.width(64) + 12)
    assert verify(out).about.nfe == 6


def test_the_command_prints_json(chain):
    command = [sys.executable, "-m", "flows.cli", "estimate", "--pairs", "5000", "--json"]
    done = subprocess.run(
        command, cwd=chain.root, env=chain.env(), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)
    assert [r["amount"] for r in rows if r["unit"] == "pairs"] == [5000]


def test_prepared_data_and_trained_models_are_taken_where_dvc_yaml_has_them(chain, monkeypatch):
    """With the data prepared, its source is not read again: it may be large, or elsewhere."""
    chain.edit("dvc.yaml", "couplings/independent", "data/prepared")
    chain.edit("dvc.yaml", "models/", "velocities/")

    def read(*_, **__):
        raise AssertionError("the data set is read")

    params = load(chain.root / "params.yaml")
    prepare(chain.root / "data/prepared", params.data, seed=params.seed)
    scratch_model(chain.root / "velocities/rf1", dim=2)
    built = []
    monkeypatch.setattr(type(params.data), "read", read)
    real = flows.cli.estimate._untrained
    monkeypatch.setattr(
        flows.cli.estimate, "_untrained", lambda *words: built.append(words) or real(*words)
    )
    assert len(estimate(chain.root, seconds=0.01)) == 3
    assert built == []
    (chain.root / "data/prepared" / MANIFEST).unlink()  # not whole, so not prepared
    with pytest.raises(AssertionError, match="the data set is read"):
        estimate(chain.root, seconds=0.01)


def test_a_bound_without_what_it_bounds_is_refused():
    done = CliRunner().invoke(app, ["estimate", "--bound", "0.01"])
    assert done.exit_code == 2 and "error: --bound: " in done.stderr
