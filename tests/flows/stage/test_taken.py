"""A round or coupling that was renamed takes what its inputs gave under the other name."""

import json

import pytest
import torch

from flows.dag import inputs, plan
from tests.chains import gaussian_data, scratch_model
from tests.real_chain import real_stages

PARAMS = """
seed: 0
compute: {device: cpu, threads: 1}
data: {name: gaussian, mean: [1.0, 0.0], std: [1.0, 2.0], samples: 100}
network: {width: 8, depth: 1, time_features: 2}
yardstick: {features: {kind: identity}, samples: 50, splits: 2}
evaluate: {nfe: [1], solver: {name: heun, steps: 2}}
gates: {endpoint_shift: {}, solver_gap_rel: {}, held_out_ratio: {}}
rounds:
  rf1: {coupling: independent, init: scratch, train: {steps: 3, batch: 16, lr: 1.0e-3}}
  rf2: {coupling: rf1, init: rf1, train: {steps: 2, batch: 16, lr: 1.0e-3}}
couplings:
  rf1: {round: rf1, pairs: 100, shard: 64, solver: {name: euler, steps: 4}}
"""
RENAMED = (
    PARAMS.replace("  rf1: {coupling", "  teacher: {coupling")
    .replace("  rf2: {coupling: rf1, init: rf1", "  final: {coupling: made, init: teacher")
    .replace("  rf1: {round: rf1", "  made: {round: teacher")
)


@pytest.fixture
def chain(empty):
    """A project with the real stages of two rounds, and data and first weights that git keeps."""
    real_stages(empty, "inputs", "train", "couple")
    empty.write("params.yaml", PARAMS)
    torch.set_num_threads(1)
    gaussian_data(empty.root / "couplings/independent", mu=[1.0, 0.0], s=[1.0, 2.0], pairs=100)
    scratch_model(empty.root / "models/scratch", dim=2)
    inputs.write(empty.root)
    return empty


def contents(folder):
    return {p.name: p.read_bytes() for p in folder.iterdir()}


@pytest.mark.long
def test_a_renamed_chain_is_not_trained_again_and_a_changed_or_forced_one_is(chain):
    chain.repro()
    before = {name: contents(chain.root / "models" / name) for name in ("rf1", "rf2")}
    coupling = contents(chain.root / "couplings/rf1")
    chain.write("params.yaml", RENAMED)
    planned = {p.stage: (p.state, p.reasons) for p in plan.plan(chain.root)[1:]}
    assert planned == {
        "train@teacher": ("cached", ("never ran", "train@rf1 had the same inputs")),
        "couple@made": ("cached", ("never ran", "couple@rf1 had the same inputs")),
        "train@final": ("cached", ("never ran", "train@rf2 had the same inputs")),
    }
    said = chain.repro().stdout
    taken = [line for line in said.splitlines() if line.startswith("taken from")]
    assert taken == [
        f"taken from {s}: same inputs" for s in ("train@rf1", "couple@rf1", "train@rf2")
    ]
    assert contents(chain.root / "models/teacher") == before["rf1"]
    assert contents(chain.root / "models/final") == before["rf2"]
    assert contents(chain.root / "couplings/made") == coupling
    for kind, new, old in (("train", "final", "rf2"), ("couple", "made", "rf1")):
        folder = chain.root / "metrics" / kind
        assert (folder / f"{new}.json").read_bytes() == (folder / f"{old}.json").read_bytes()
    states = {p.stage: p.state for p in plan.plan(chain.root) if p.stage != "inputs"}
    assert set(states.values()) == {"unchanged"}
    assert "train@final 2/2" in chain.repro("-s", "-f", "train@final").stdout
    config = json.loads((chain.root / "models/final/config.json").read_text())
    assert config["round"] == "final"
    assert {
        k: v for k, v in contents(chain.root / "models/final").items() if k != "config.json"
    } == {k: v for k, v in before["rf2"].items() if k != "config.json"}, (
        "the name is no part of the seed"
    )
    chain.edit("params.yaml", "  final:", "  last:")
    chain.edit("params.yaml", "steps: 2, batch", "steps: 1, batch")
    assert "train@last 1/1" in chain.repro("train@last").stdout
