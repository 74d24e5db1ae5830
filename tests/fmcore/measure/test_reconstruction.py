"""The reconstruction errors in closed form, on a velocity that is straight for some points only."""

import pytest
import torch

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
    data = gaussian_data(tmp_path / "data", mu=[20.0], s=[0.1], pairs=200)
    harness = Harness(Flow(bent_far_away, Linear()), torch.zeros(40, 1), None, SETTINGS, 0, CPU)
    found = reconstruction(harness, data, torch.zeros(40, 1))
    assert found["recon_real"] == pytest.approx(400, rel=0.01)
    assert found["recon_fake"] == 0
    assert found["drift"] == found["recon_real"]
    assert found["drift_rel"] == pytest.approx(found["drift"] / 0.1**2, rel=0.5)
    near = gaussian_data(tmp_path / "near", mu=[0.0], s=[0.1])
    found = reconstruction(harness, near, torch.full((40, 1), 20.0))
    assert found["drift"] == pytest.approx(-400, rel=0.01)
