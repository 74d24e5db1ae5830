"""The reverse SDE: the same marginals as the ODE, for Gaussians and mixtures in closed form."""

import math

import numpy as np
import pytest
import torch

from fmcore.coupling.noise import gaussian_noise
from fmcore.matching.interpolant import (
    Cosine,
    Linear,
    Polynomial,
    VarianceExploding,
    VariancePreserving,
)
from fmcore.measure.transport import energy_distance
from fmcore.network.build import build
from fmcore.network.mlp import MLP
from fmcore.network.store import Model
from fmcore.sampling.flow import Flow, concatenated
from fmcore.sampling.reverse_sde import Sde, diffusions
from fmcore.settings import ReflowError
from fmcore.solve.sde import euler_maruyama
from fmcore.solve.solver import Solver, solve
from tests.oracles import eight_gaussians_velocity, gaussian_velocity

MU, S = torch.tensor([1.0, -0.5]), torch.tensor([0.5, 1.5])
N = 8_000


def noise(step):
    return torch.randn(N, 2, generator=torch.Generator().manual_seed(1000 + step))


def start(interpolant):
    x = torch.randn(N, 2, generator=torch.Generator().manual_seed(7))
    return x * interpolant.noise_scale


@pytest.mark.parametrize("churn", [0.0, 0.5, 1.0])
@pytest.mark.parametrize(
    "interpolant",
    [
        Linear(),
        Cosine(),
        VariancePreserving(name="variance_preserving"),
        VarianceExploding(name="variance_exploding", sigma_max=20.0),
    ],
    ids=lambda i: i.name,
)
def test_a_gaussian_keeps_its_mean_and_spread(interpolant, churn):
    v = gaussian_velocity(MU, S, interpolant)
    steps = 400 if churn == 0 else 200
    found = euler_maruyama(v, interpolant, start(interpolant), noise, steps=steps, churn=churn)
    assert found.nfe == steps
    torch.testing.assert_close(found.x.mean(0), MU, atol=0.08, rtol=0)
    torch.testing.assert_close(found.x.std(0), S, atol=0.04, rtol=0.04)


def test_the_error_of_the_spread_falls_with_the_step():
    v = gaussian_velocity(MU, S)
    spreads = [
        euler_maruyama(v, Linear(), start(Linear()), noise, steps=n, churn=1.0).x.std(0)
        for n in (3, 60)
    ]
    errors = [float((spread - S).norm()) for spread in spreads]
    assert errors[0] > 4 * errors[1]


def test_a_mixture_is_reached_by_ode_and_sde_alike():
    v = eight_gaussians_velocity(4.0, 0.5)
    ode = solve(v, start(Linear()), Solver(name="rk4", steps=50)).x[:2000]
    sde = euler_maruyama(v, Linear(), start(Linear()), noise, steps=150, churn=1.0).x
    assert abs(energy_distance(ode, sde[2000:4000])) < 0.02
    angle = torch.atan2(sde[:, 1], sde[:, 0])
    weights = torch.bincount((angle / (math.pi / 4)).round().long() % 8, minlength=8) / N
    torch.testing.assert_close(weights, torch.full((8,), 0.125), atol=0.02, rtol=0)


def test_no_churn_is_the_euler_solver_to_the_bit():
    v = gaussian_velocity(MU, S)
    x = start(Linear())
    ode = solve(v, x, Solver(name="euler", steps=9)).x
    sde = euler_maruyama(v, Linear(), x, noise, steps=9, churn=0.0).x
    assert torch.equal(sde, ode)


def diffuse(flow, source, settings, **how):
    return concatenated(list(diffusions(flow, source, settings, **how)))


def test_the_noise_belongs_to_the_pair_whatever_the_batch():
    flow = Flow(gaussian_velocity(MU, S), Linear(), score=True)
    ids = np.arange(100)
    source = gaussian_noise(3, ids, (2,))
    cpu = torch.device("cpu")
    whole = diffuse(flow, source, Sde(steps=5), seed=1, device=cpu).x
    parts = diffuse(flow, source, Sde(steps=5), seed=1, device=cpu, batch=33).x
    assert torch.equal(whole, parts)
    assert not torch.equal(whole, diffuse(flow, source, Sde(steps=5), seed=2, device=cpu).x)


@pytest.mark.parametrize("churn", [0.3, 1.0])
@pytest.mark.parametrize(
    "interpolant",
    [Linear(), Cosine(), Polynomial(), VariancePreserving(name="variance_preserving")],
    ids=lambda i: i.name,
)
def test_data_that_is_one_point_is_reached_without_noise(interpolant, churn):
    """The last step returns the mean: its noise would stay (sd .04 for linear, .10 for VP)."""
    v = gaussian_velocity(MU, torch.zeros(2), interpolant)
    found = euler_maruyama(v, interpolant, start(interpolant), noise, steps=64, churn=churn)
    assert found.nfe == 64
    torch.testing.assert_close(found.x, MU.expand_as(found.x), atol=2e-5, rtol=0)


@pytest.mark.parametrize("interpolant", [Linear(), Polynomial()], ids=lambda i: i.name)
def test_one_step_of_the_sde_is_the_step_of_the_ode(interpolant):
    v = gaussian_velocity(MU, S, interpolant)
    ode = solve(v, start(interpolant), Solver(name="euler", steps=1)).x
    sde = euler_maruyama(v, interpolant, start(interpolant), noise, steps=1, churn=1.0).x
    assert torch.equal(sde, ode)


INDEPENDENT = {"coupling": "independent", "pairing": "independent"}


@pytest.mark.parametrize(
    ("about", "reason"),
    [
        ({"coupling": "generated", "pairing": "independent"}, "its pairs are not independent"),
        ({**INDEPENDENT, "pairing": "optimal"}, "its pairs are not independent"),
        ({**INDEPENDENT, "source": {"name": "two_moons"}}, "its source is data, not noise"),
        (
            {**INDEPENDENT, "learns_mean": False, "loss": {"name": "pseudo_huber"}},
            r"its loss \(pseudo_huber\) does not learn the mean .*; train the round with loss mse",
        ),
        (
            {**INDEPENDENT, "learns_mean": False, "loss": {"name": "mse", "normalised": True}},
            r"its loss \(normalised\) does not learn the mean",
        ),
    ],
)
def test_a_velocity_that_is_no_score_is_refused_with_its_reason(about, reason):
    model = Model(build(MLP(width=8, depth=1), (2,), seed=0), about, digest="")
    flow = Flow.of(model)
    assert not flow.score
    with pytest.raises(ReflowError, match=f"needs the score.*{reason}"):
        diffuse(flow, torch.zeros(1, 2), Sde(), seed=0, device=torch.device("cpu"))
    assert Flow.of(Model(model.network, {**INDEPENDENT, "learns_mean": True}, digest="")).score
