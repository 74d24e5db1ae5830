"""Losses by sample, objectives and MeanFlow, against closed forms."""

import math

import pytest
import torch

from fmcore.matching.conversions import to_velocity
from fmcore.matching.interpolant import Cosine, Linear, VariancePreserving, interpolate
from fmcore.matching.loss import Batch, Loss, mean_flow_gap
from tests.oracles import gaussian_velocity

GAP = torch.tensor([[3.0, 4.0], [0.0, 0.0], [0.3, 0.4]])
T = torch.tensor([0.2, 0.5, 0.9])


def test_mse_is_the_mean_square():
    value = Loss().per_sample(GAP, T, Linear(), "velocity")
    torch.testing.assert_close(value, torch.tensor([12.5, 0.0, 0.125]))


def test_pseudo_huber_is_half_square_for_small_gaps_and_length_for_large():
    value = Loss(name="pseudo_huber", c=100.0).per_sample(GAP, T, Linear(), "velocity")
    assert float(value[2]) == pytest.approx(0.25 / 200, rel=1e-2)
    value = Loss(name="pseudo_huber", c=1e-3).per_sample(GAP, T, Linear(), "velocity")
    assert float(value[0]) == pytest.approx(5, rel=1e-3)
    standard = Loss(name="pseudo_huber").per_sample(GAP, T, Linear(), "velocity")
    c = 0.00054 * 2
    assert float(standard[2]) == pytest.approx(math.sqrt(0.25 + c * c) - c, rel=1e-5)


def test_a_normalised_loss_gives_every_sample_the_same_pull():
    gap = GAP[[0, 2]].clone().requires_grad_(True)
    Loss(normalised=True).per_sample(gap, T[:2], Linear(), "velocity").sum().backward()
    relative = (gap.grad * gap).sum(1)
    torch.testing.assert_close(relative, torch.full((2,), 2.0))


def test_weights_by_time():
    value = Loss(weight="inverse_t").per_sample(GAP, T, Linear(), "velocity")
    torch.testing.assert_close(value, Loss().per_sample(GAP, T, Linear(), "velocity") / T)


@pytest.mark.parametrize(
    "interpolant", [Linear(), Cosine(), VariancePreserving(name="variance_preserving")]
)
@pytest.mark.parametrize("objective", ["noise", "target"])
def test_denoising_with_the_velocity_weight_is_velocity_matching(interpolant, objective):
    """Das 2024: one regression in two coordinates."""
    torch.manual_seed(0)
    target, source, guess = torch.randn(3, 3, 4, dtype=torch.float64)
    t = T.double()
    x, u = interpolate(interpolant, target, source, t)
    aim = source if objective == "noise" else target
    weighted = Loss(weight="velocity").per_sample(guess - aim, t, interpolant, objective)
    v = to_velocity(interpolant, objective, guess, x, t)
    torch.testing.assert_close(weighted, Loss().per_sample(v - u, t, interpolant, "velocity"))


def average_velocity(mu, s):
    """The exact u(x, t, span) of a Gaussian flow: the chord of its linear flow map."""

    def spread(t):
        return ((1 - t) ** 2 * s**2 + t**2).sqrt()

    def network(x, t, label, span):
        t, h = t[:, None], span[:, None]
        moved = (1 - t + h) * mu + (x - (1 - t) * mu) * spread(t - h) / spread(t)
        return (x - moved) / h

    return network


def test_the_exact_average_velocity_has_no_mean_flow_gap():
    torch.manual_seed(0)
    mu, s = torch.tensor([1.0, -2.0]).double(), torch.tensor([0.5, 2.0]).double()
    x = torch.randn(6, 2, dtype=torch.float64)
    t = torch.tensor([0.3, 0.5, 0.7, 0.9, 1.0, 1.0], dtype=torch.float64)
    span = t * torch.tensor([0.1, 0.9, 0.5, 0.2, 1.0, 0.5], dtype=torch.float64)
    v = gaussian_velocity(mu, s)(x, t)
    network = average_velocity(mu, s)
    gap = mean_flow_gap(network, Batch(x, x, t, span=span), x, v, t)
    torch.testing.assert_close(gap, torch.zeros_like(gap), atol=1e-9, rtol=0)
    wrong = mean_flow_gap(lambda *a: 1.1 * network(*a), Batch(x, x, t, span=span), x, v, t)
    assert float(wrong.abs().min(1).values.max()) > 0.01


def test_one_step_of_the_average_velocity_lands_on_the_target():
    mu, s = torch.tensor([1.0, -2.0]).double(), torch.tensor([0.5, 2.0]).double()
    x, one = torch.randn(5, 2, dtype=torch.float64), torch.ones(5, dtype=torch.float64)
    landed = x - average_velocity(mu, s)(x, one, None, one)
    torch.testing.assert_close(landed, mu + s * x)
