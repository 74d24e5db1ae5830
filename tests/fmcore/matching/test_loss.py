"""Losses by sample, objectives and MeanFlow, against closed forms."""

import math

import pytest
import torch

from fmcore.matching.conversions import to_velocity
from fmcore.matching.interpolant import Cosine, Linear, VariancePreserving, interpolate
from fmcore.matching.loss import Loss, flow_matching_loss
from fmcore.matching.maps import Batch, MeanFlow
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
    batch = Batch(x, x, t, span=span)
    gap = MeanFlow().gap(network, batch, x, v, Linear())
    torch.testing.assert_close(gap, torch.zeros_like(gap), atol=1e-9, rtol=0)
    wrong = MeanFlow().gap(lambda *a: 1.1 * network(*a), batch, x, v, Linear())
    assert float(wrong.abs().min(1).values.max()) > 0.01


def test_one_step_of_the_average_velocity_lands_on_the_target():
    mu, s = torch.tensor([1.0, -2.0]).double(), torch.tensor([0.5, 2.0]).double()
    x, one = torch.randn(5, 2, dtype=torch.float64), torch.ones(5, dtype=torch.float64)
    landed = x - average_velocity(mu, s)(x, one, None, one)
    torch.testing.assert_close(landed, mu + s * x)


VELOCITIES = torch.tensor([0.0] * 70 + [4.0] * 30)[:, None]
"""All velocities through one point: 0 in 70 of 100 paths, 4 in 30; their mean is 1.2."""


def learned(loss, objective="velocity"):
    """Return the constant that a network learns at t = 1, x = 0, where these paths start.

    The slope of the normalised loss grows to 1,400 where a gap is small, so its steps are short,
    and they begin on the way to where they end.
    """
    value = torch.tensor(0.1 if loss.normalised else 0.5, requires_grad=True)
    optimizer = torch.optim.SGD([value], lr=3e-5 if loss.normalised else 5e-2)
    falling = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step / 50))
    zero, one = torch.zeros_like(VELOCITIES), torch.ones(len(VELOCITIES))
    batch = Batch(-VELOCITIES, zero, one)
    for _ in range(500):
        optimizer.zero_grad()
        network = lambda x, t, *_: value + 0 * (x + t[:, None])
        each, _ = flow_matching_loss(network, batch, Linear(), objective, loss)
        each.mean().backward()
        optimizer.step()
        falling.step()
    return float(value.detach())


@pytest.mark.parametrize("objective", ["velocity", "mean_flow"])
@pytest.mark.parametrize(
    ("loss", "expected", "error"),
    [
        (Loss(), 1.2, 1e-3),
        (Loss(weight="inverse_t"), 1.2, 1e-3),
        (Loss(name="pseudo_huber"), 0.0, 0.02),
        (Loss(normalised=True), 0.0, 0.05),
    ],
    ids=["mse", "inverse_t", "pseudo_huber", "normalised"],
)
def test_only_a_square_learns_the_mean_where_paths_cross(loss, expected, error, objective):
    """Of MeanFlow too: its aim stands still in the gradient, and has the path's velocity in it."""
    assert learned(loss, objective) == pytest.approx(expected, abs=error)
    assert loss.learns_mean is (expected == 1.2)
