"""A chain of a teacher of one's own that takes texts: its student is prompted and handed on."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from flows.cli.estimate import estimate
from flows.cli.sample import Draw, draw
from flows.cli.ship import HandOn
from flows.tracking.publish import publish
from fmcore.coupling.read import open_coupling
from fmcore.network.store import load
from fmcore.solve.solver import Solver
from tests.fmcore.conditions.test_conditions import TEXTS, blobs
from tests.fmcore.conditions.test_own_networks import MODULE
from tests.tiny_chain import in_this_process

PARAMS = """
seed: 0
compute: {device: cpu, threads: 1}
data: {name: array, path: x.npz, key: target, conditions: {encoder: {name: wordllama, dim: 8}}}
network: {name: custom, path: "told:Told", conditions: {}}
yardstick: {features: {kind: identity}, samples: 60, splits: 2}
evaluate: {nfe: [1], solver: {name: heun, steps: 2}, trajectories: 16, reconstructions: 8}
gates:
  held_out_ratio: {}
  held_out_rel: {}
  endpoint_shift: {}
  solver_gap_rel: {}
  noise_z: {}
  cost_rise: {}
rounds:
  teacher:
    coupling: independent
    init: scratch
    model:
      kind: own
      network: {name: custom, path: "told:Told", conditions: {}}
      weights: w.safetensors
  student:
    coupling: teacher
    init: teacher
    train: {steps: 4, batch: 16, checkpoint_every: 4, log_every: 2, label_dropout: 0.0}
couplings:
  teacher: {round: teacher, pairs: 96, solver: {name: euler, steps: 4}, shard: 96}
"""


@pytest.mark.long
def test_a_student_of_ones_own_teacher_is_estimated_published_prompted_and_shipped(tmp_path):
    torch.set_num_threads(1)
    root = tmp_path / "project"
    root.mkdir()
    blobs(root)
    (root / "told.py").write_text(MODULE)
    weight = torch.randn(2, 8, generator=torch.Generator().manual_seed(0))
    save_file({"map.weight": weight}, root / "w.safetensors")
    with in_this_process(root, PARAMS):
        known = open_coupling(root / "couplings/independent").conditions
        model = load(root / "models/student")
        assert model.network.given.table.texts == TEXTS
        assert {c.stage for c in estimate(root, seconds=0.01)} == {
            "couple@teacher",
            "train@student",
        }
        assert not publish(root).skipped
        for text in TEXTS:
            draw(root, "teacher", tmp_path / "x.npy", Draw(nfe=1, count=4, seed=1, prompt=text))
            drawn = torch.from_numpy(np.load(tmp_path / "x.npy"))
            draw(root, "teacher", tmp_path / "x.npy", Draw(nfe=1, count=4, seed=1))
            none = torch.from_numpy(np.load(tmp_path / "x.npy"))
            moved = (known.vectors[-1] - known.vectors[known.row(text)]).float() @ weight.T
            torch.testing.assert_close(drawn - none, moved.expand(4, 2), atol=1e-4, rtol=1e-4)
        HandOn(tmp_path / "out", Solver(name="euler", steps=2), export=True).write(root, "student")
        assert json.loads((tmp_path / "out/texts.json").read_text()) == list(TEXTS)
