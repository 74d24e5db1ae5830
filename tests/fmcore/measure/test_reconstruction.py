"""The reconstruction errors in closed form, on a velocity that is straight for some points only."""

import numpy as np
import pytest
import torch

from fmcore.coupling.noise import is_held_out
from fmcore.coupling.write import About, finish, table, write_shard
from fmcore.evaluate import Evaluate
from fmcore.matching.interpolant import Linear
from fmcore.measure.harness import Harness, reconstruction
from fmcore.sampling.flow import Flow
from fmcore.solve.solver import Solver
from tests.chains import CPU, gaussian_data

SETTINGS = Evaluate(nfe=(1,), solver=Solver(name="rk4", steps=20), reconstructions=40)


def bent_far_away(x, t):
    """Points beyond 10 move as dx/dt = t x, to e^{1/2} x at t = 1; the others stay."""
    return torch.where(x > 10, t[:, None] * x, 0.0)


def test_real_samples_that_come_back_worse_than_generated_ones_are_a_drift_upwards(tmp_path):
    """One Euler step from e^{1/2} x along t x = e^{1/2} x ends at 0: the error is x^2."""
    data = gaussian_data(tmp_path / "data", mu=[20.0], s=[0.1], pairs=2000)
    harness = Harness(Flow(bent_far_away, Linear()), torch.zeros(40, 1), None, SETTINGS, 0, CPU)
    found = reconstruction(harness, data, torch.zeros(40, 1))
    assert found["recon_real"] == pytest.approx(400, rel=0.01)
    assert found["recon_fake"] == 0
    assert found["drift"] == found["recon_real"]
    assert found["drift_rel"] == pytest.approx(found["drift"] / 0.1**2, rel=0.5)
    near = gaussian_data(tmp_path / "near", mu=[0.0], s=[0.1])
    found = reconstruction(harness, near, torch.full((40, 1), 20.0))
    assert found["drift"] == pytest.approx(-400, rel=0.01)


def test_no_sample_that_trained_is_taken_back(tmp_path):
    """Held-out samples lie at 20, where the error is 400; those that train at 0, where it is 0."""
    about = About(kind="independent", shape=[1], pairs=200, seed=0)
    ids = np.arange(200)
    x = torch.where(torch.from_numpy(is_held_out(ids)), 20.0, 0.0)[:, None]
    write_shard(tmp_path / "d", 0, table(about, ids, x, real_id=ids))
    finish(tmp_path / "d", about, 1)
    harness = Harness(Flow(bent_far_away, Linear()), torch.zeros(40, 1), None, SETTINGS, 0, CPU)
    found = reconstruction(harness, tmp_path / "d", torch.zeros(40, 1))
    assert (found["recon_real"], found["recon_samples"]) == (pytest.approx(400, rel=0.01), 10)
    few = about.model_copy(update={"pairs": 19})
    write_shard(tmp_path / "few", 0, table(few, ids[:19], x[:19], real_id=ids[:19]))
    finish(tmp_path / "few", few, 1)
    assert reconstruction(harness, tmp_path / "few", torch.zeros(40, 1)) == {}


class ByClass(torch.nn.Module):
    """Class 0 stays; class 1 moves as `bent_far_away` does; the null class is far off."""

    def forward(self, x, t, label=None):
        assert label is not None and label.shape == t.shape
        return torch.where((label == 1)[:, None], t[:, None] * x, 0.0)


def test_a_flow_with_classes_takes_each_sample_with_its_own_label(tmp_path):
    """Real samples are all of class 1, whose error is x^2; generated ones of class 0, with none."""
    about = About(kind="independent", shape=[1], pairs=200, seed=0)
    ids, x = np.arange(200), torch.full((200, 1), 20.0)
    labels = torch.ones(200, dtype=torch.long)
    write_shard(tmp_path / "d", 0, table(about, ids, x, label=labels, real_id=ids))
    finish(tmp_path / "d", about, 1)
    flow = Flow(ByClass(), Linear(), "velocity", 2)
    zeros = torch.zeros(40, dtype=torch.long)
    harness = Harness(flow, torch.zeros(40, 1), zeros, SETTINGS, 0, CPU)
    found = reconstruction(harness, tmp_path / "d", torch.full((40, 1), 20.0))
    assert found["recon_real"] == pytest.approx(400, rel=0.01) and found["recon_fake"] == 0
    plain = Harness(flow, torch.zeros(40, 1), None, SETTINGS, 0, CPU)
    assert reconstruction(plain, tmp_path / "d", torch.zeros(40, 1)) == {}
