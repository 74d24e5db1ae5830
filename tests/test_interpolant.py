"""Interpolants: end conditions, derivatives, and the two views of one field."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fmcore.interpolant import Cosine, Linear, interpolate, to_score, to_source, to_target

INTERPOLANTS = [Linear(), Cosine()]
times = st.floats(0.01, 0.99)


@pytest.mark.parametrize("interpolant", INTERPOLANTS, ids=lambda i: i.name)
def test_ends_are_target_and_source(interpolant):
    target, source = torch.randn(5, 3), torch.randn(5, 3)
    at_target, _ = interpolate(interpolant, target, source, torch.zeros(5))
    at_source, _ = interpolate(interpolant, target, source, torch.ones(5))
    torch.testing.assert_close(at_target, target)
    torch.testing.assert_close(at_source, source, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("interpolant", INTERPOLANTS, ids=lambda i: i.name)
@given(t=times)
def test_velocity_is_the_derivative_of_x_t(interpolant, t):
    target = torch.tensor([[1.5, -2.0]], dtype=torch.float64)
    source = torch.tensor([[0.3, 0.7]], dtype=torch.float64)
    at = torch.tensor([t], dtype=torch.float64)
    h = 1e-6
    after, _ = interpolate(interpolant, target, source, at + h)
    before, _ = interpolate(interpolant, target, source, at - h)
    _, velocity = interpolate(interpolant, target, source, at)
    torch.testing.assert_close(velocity, (after - before) / (2 * h), atol=1e-8, rtol=1e-8)


@pytest.mark.parametrize("interpolant", INTERPOLANTS, ids=lambda i: i.name)
@given(t=times)
def test_target_and_source_come_back_from_the_velocity(interpolant, t):
    target = torch.tensor([[1.5, -2.0]], dtype=torch.float64)
    source = torch.tensor([[0.3, 0.7]], dtype=torch.float64)
    at = torch.tensor([t], dtype=torch.float64)
    x, u = interpolate(interpolant, target, source, at)
    torch.testing.assert_close(to_target(interpolant, u, x, at), target)
    torch.testing.assert_close(to_source(interpolant, u, x, at), source)


@pytest.mark.parametrize("interpolant", INTERPOLANTS, ids=lambda i: i.name)
def test_score_of_a_gaussian(interpolant):
    """For target N(0, s^2) the marginal is N(0, alpha^2 s^2 + sigma^2): its score is known."""
    s = 0.5
    t = torch.linspace(0.1, 0.9, 9, dtype=torch.float64)
    x = torch.linspace(-2, 2, 9, dtype=torch.float64)[:, None]
    a, b, da, db = (f(t)[:, None] for f in (
        interpolant.alpha, interpolant.sigma, interpolant.d_alpha, interpolant.d_sigma
    ))  # fmt: skip
    variance = a**2 * s**2 + b**2
    velocity = (da * a * s**2 + db * b) / variance * x
    torch.testing.assert_close(to_score(interpolant, velocity, x, t), -x / variance)


def test_cosine_keeps_the_variance():
    t = torch.linspace(0, 1, 11)
    cosine = Cosine()
    torch.testing.assert_close(cosine.alpha(t) ** 2 + cosine.sigma(t) ** 2, torch.ones(11))
    assert float(cosine.d_sigma(torch.tensor(0.0))) == pytest.approx(math.pi / 2)
