"""The likelihood of a flow: exact on Gaussians, Hutchinson's estimate around it."""

import math

import numpy as np
import pytest
import torch

from fmcore.coupling.read import open_coupling, read
from fmcore.dataset.arrays import Array
from fmcore.dataset.densities import Gaussian
from fmcore.matching.interpolant import Linear, VarianceExploding
from fmcore.measure.harness import Evaluate, Harness, likelihood
from fmcore.measure.likelihood import Likelihood, bits_per_dim, log_likelihood
from fmcore.prepare import prepare
from fmcore.sampling.flow import Flow
from fmcore.settings import ReflowError
from fmcore.solve.solver import Solver
from tests.chains import CPU
from tests.oracles import gaussian_velocity

MU, S = torch.tensor([2.0, -1.0, 0.5]), torch.tensor([1.5, 0.5, 1.0])


@pytest.fixture
def flow():
    velocity = gaussian_velocity(MU, S)
    return Flow(lambda x, t: velocity(x, t), Linear())


def points(n=300):
    return MU + 1.2 * S * torch.randn(n, 3, generator=torch.Generator().manual_seed(0))


def exact(x):
    return torch.distributions.Normal(MU.double(), S.double()).log_prob(x.double()).sum(1)


def test_on_gaussians_it_is_the_closed_form(flow):
    x = points()
    found = log_likelihood(flow, x, Likelihood(), seed=0, device=CPU)
    torch.testing.assert_close(found, exact(x), rtol=0, atol=2e-4)


def test_the_error_falls_with_the_order_of_the_solver(flow):
    x = points(64)
    errors = []
    for steps in (4, 8, 16):
        settings = Likelihood(solver=Solver(name="heun", steps=steps))
        found = log_likelihood(flow, x, settings, seed=0, device=CPU)
        errors.append(float((found - exact(x)).abs().mean()))
    assert math.log2(errors[0] / errors[1]) == pytest.approx(2, abs=0.6)
    assert math.log2(errors[1] / errors[2]) == pytest.approx(2, abs=0.6)


def test_signs_give_the_trace_of_a_diagonal_field_exactly(flow):
    """e.(J e) is the trace for every e in {-1, 1}^d where J is diagonal."""
    x = points(32)
    settings = Likelihood(trace="hutchinson", probes=1)
    found = log_likelihood(flow, x, settings, seed=3, device=CPU)
    torch.testing.assert_close(found, exact(x), rtol=0, atol=5e-4)


def test_signs_are_unbiased_where_the_field_turns():
    """dx/dt = A x with an A that is not diagonal: the log-determinant is tr A."""
    a = torch.tensor([[0.3, 0.8], [0.5, -0.2]])
    flow = Flow(lambda x, t: x @ a.T, Linear())
    x = torch.zeros(4000, 2)
    whole = log_likelihood(flow, x[:1], Likelihood(), seed=0, device=CPU)
    assert float(whole) == pytest.approx(-math.log(2 * math.pi) + 0.1, abs=1e-4)
    signs = Likelihood(trace="hutchinson", probes=2)
    found = log_likelihood(flow, x, signs, seed=0, device=CPU)
    assert float(found.std()) > 0.1
    assert float(found.mean()) == pytest.approx(float(whole), abs=0.05)


def test_the_source_of_variance_exploding_is_wide():
    interpolant = VarianceExploding(name="variance_exploding")
    flow = Flow(lambda x, t: 0 * x, interpolant)
    scale = interpolant.noise_scale
    found = log_likelihood(flow, torch.zeros(1, 2), Likelihood(), seed=0, device=CPU)
    assert float(found) == pytest.approx(-math.log(2 * math.pi) - 2 * math.log(scale), abs=1e-4)


def test_bits_of_uniform_noise_over_256_levels_are_eight():
    """Uniform over [-1, 1] with half a level on each side: p = 127.5 / 256 a dimension."""
    assert bits_per_dim(-10 * math.log(127.5 / 256), 10) == pytest.approx(8)


def test_settings_have_bounds():
    with pytest.raises(ValueError, match="probes"):
        Likelihood(probes=0)
    assert issubclass(ReflowError, Exception)


@pytest.mark.parametrize("known", [True, False])
def test_a_mean_likelihood_has_its_standard_error(tmp_path, known):
    """The flow that stands still has the law of its source; -log p then has variance d / 2."""
    if known:
        law = Gaussian(name="gaussian", mean=[0.0, 0.0], std=[1.0, 1.0], samples=2000)
        prepare(tmp_path / "data", law, seed=0)
    else:
        images = 0.5 * torch.randn(400, 1, 2, 2, generator=torch.Generator().manual_seed(0))
        array = (images.clamp(-1, 1) * 127.5 + 127.5).byte().numpy()
        np.save(tmp_path / "a.npy", array)
        prepare(tmp_path / "data", Array(name="array", path=str(tmp_path / "a.npy")), seed=0)
    settings = Evaluate(likelihood=Likelihood(samples=2000))
    flow = Flow(lambda x, t: 0 * x, Linear())
    harness = Harness(flow, torch.zeros(2, 2), None, settings, seed=0, device=CPU)
    found = likelihood(harness, tmp_path / "data")
    n = len(read(open_coupling(tmp_path / "data"), split="held_out"))
    if known:
        assert found["nll_se"] == pytest.approx(n**-0.5, rel=0.35)
        assert abs(found["nll"] - 1 - math.log(2 * math.pi)) < 4 * found["nll_se"]
        assert found["nll_se/floor"] == pytest.approx(found["nll_se"], rel=1e-4)
    else:
        size = math.log(2) * 4
        assert found["bits_per_dim_se"] == pytest.approx(found["nll_se"] / size)
        assert found["bits_per_dim"] == pytest.approx(found["nll"] / size + math.log2(127.5))
