"""Two processes that train together are one process with the whole batch."""

import csv
import os
import subprocess
import sys

import pytest
import torch
from ruamel.yaml import YAML

from flows.dag import inputs
from fmcore.network.store import load
from tests.chains import gaussian_data, scratch_model
from tests.conftest import SOURCE
from tests.real_chain import PARAMS, real_stages


@pytest.fixture
def chain(empty):
    """A project whose data and first model are there, with the real stage `train`."""
    real_stages(empty, "inputs", "train")
    torch.set_num_threads(1)
    gaussian_data(empty.root / "couplings/independent", mu=[2.0, -1.0], s=[1.0, 1.0], pairs=400)
    scratch_model(empty.root / "models/scratch", dim=2)
    return empty


def settings(chain, **changes):
    params = YAML(typ="safe").load(PARAMS)
    params["rounds"]["rf1"]["train"] |= {"steps": 40, "batch": 64, "log_every": 10, **changes}
    with (chain.root / "params.yaml").open("w") as file:
        YAML(typ="safe").dump(params, file)
    inputs.write(chain.root)


def curve(chain):
    with (chain.root / "curves/train/rf1.csv").open() as file:
        return [(int(r["step"]), float(r["loss"])) for r in csv.DictReader(file)]


def repro(chain, check=True):
    return chain.sh("dvc", "repro", "--single-item", "train@rf1", check=check)


def test_two_processes_train_as_one(chain):
    settings(chain)
    repro(chain)
    one, alone = curve(chain), load(chain.root / "models/rf1").network.state_dict()
    settings(chain, processes=2)
    found = repro(chain)
    two, shared = curve(chain), load(chain.root / "models/rf1").network.state_dict()
    assert [s for s, _ in one] == [s for s, _ in two] == [10, 20, 30, 40]
    assert [v for _, v in two] == pytest.approx([v for _, v in one], rel=1e-5)
    for name, value in alone.items():
        torch.testing.assert_close(shared[name], value, rtol=1e-4, atol=1e-5)
    assert found.stdout.count("train@rf1 40/40") == 1  # one of them speaks


@pytest.mark.long
def test_torchrun_of_ones_own_is_joined(chain):
    """As on several machines: the user starts torchrun, the stage finds its rank."""
    settings(chain, processes=2)
    stage = ["train", "rf1", "coupling=couplings/independent", "init=models/scratch"]
    stage += ["out=models/rf1", "curve=curves/train/rf1.csv", "metrics=metrics/train/rf1.json"]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    run = [*torchrun, "--nproc-per-node", "2", "-m", "flows.stage", *stage]
    subprocess.run(run, cwd=chain.root, check=True, capture_output=True, timeout=120)
    assert len(curve(chain)) == 4


def fake(folder, name, script):
    file = folder / name
    file.write_text(f"#!/bin/sh\n{script}\n")
    file.chmod(0o755)


@pytest.mark.slow
def test_the_slurm_script_trains_a_round_and_dvc_records_it(chain):
    """On one node, with stand-ins for the two commands of Slurm that it calls."""
    settings(chain, processes=2, shard="full", accumulate=2, checkpoint_every=20)
    folder = chain.root / "fake"
    folder.mkdir()
    fake(folder, "scontrol", 'test "$*" = "show hostnames node" && echo localhost && echo other')
    fake(folder, "srun", 'exec "$@"')
    fake(folder, "torchrun", f'exec {sys.executable} -m torch.distributed.run "$@"')
    job = {"SLURM_JOB_NODELIST": "node", "SLURM_NNODES": "1", "SLURM_JOB_ID": str(os.getpid())}
    own = {**chain.env(), **job, "PER_NODE": "2", "SLURM_SUBMIT_DIR": str(chain.root)}
    own["PATH"] = f"{folder}:{own['PATH']}"
    script = ["bash", str(SOURCE / "scripts/train.slurm"), "rf1"]
    done = subprocess.run(script, env=own, capture_output=True, text=True, timeout=240)
    assert not done.returncode, done.stderr
    assert done.stdout.count("train@rf1 40/40") == 1 and len(curve(chain)) == 4
    assert "train@rf1" not in chain.sh("dvc", "status", "train@rf1").stdout


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"batch": 63, "processes": 2}, "train.batch: 63 has no 2 equal parts; make it a multiple"),
        ({"flip": True, "processes": 2}, "train.flip: mirrors images"),
    ],
)
def test_a_mistake_is_one_line(chain, changes, says):
    settings(chain, **changes)
    found = repro(chain, check=False)
    assert found.returncode
    assert says in found.stderr + found.stdout
    assert "Traceback" not in found.stderr + found.stdout
