"""Interpolants and the four views of their field, against finite differences and Gaussians."""

from pathlib import Path
from typing import ClassVar

import pytest
import torch
from pydantic import TypeAdapter

from fmcore.choices.interpolants import Interpolant, check
from fmcore.matching.conversions import (
    diffusion_squared,
    drift,
    from_source,
    from_target,
    to_score,
    to_source,
    to_target,
    to_velocity,
    usable_times,
)
from fmcore.matching.interpolant import (
    Cosine,
    Linear,
    Polynomial,
    Schedule,
    VarianceExploding,
    VariancePreserving,
    interpolate,
)
from fmcore.own import trust
from fmcore.settings import ReflowError
from tests.oracles import gaussian_velocity

ALL = [
    Linear(),
    Cosine(),
    Polynomial(name="polynomial", power=2.5),
    VariancePreserving(name="variance_preserving"),
    VarianceExploding(name="variance_exploding", sigma_max=20.0),
]
TIMES = torch.linspace(0.05, 0.95, 19, dtype=torch.float64)
each = pytest.mark.parametrize("interpolant", ALL, ids=lambda i: i.name)


@each
def test_the_derivatives_are_those_of_the_formulas_and_the_ends_are_right(interpolant):
    check(interpolant)
    one = torch.ones((), dtype=torch.float64)
    assert float(interpolant.alpha(0 * one)) == 1
    assert float(interpolant.alpha(one)) < 0.01 or interpolant.name == "variance_exploding"


def test_a_wrong_derivative_or_end_is_found():
    class Wrong(Linear):
        def d_sigma(self, t):
            return 0.9 * torch.ones_like(t)

    class Late(Linear):
        def sigma(self, t):
            return 0.5 + t

    with pytest.raises(ValueError, match="d_sigma is not the derivative of sigma"):
        check(Wrong())
    with pytest.raises(ValueError, match=r"sigma\(0\) = 0.5"):
        check(Late())


@each
def test_the_velocity_is_the_slope_of_the_path(interpolant):
    torch.manual_seed(0)
    target, source = torch.randn(2, 19, 3, dtype=torch.float64)
    h = 1e-6
    ahead, _ = interpolate(interpolant, target, source, TIMES + h)
    behind, _ = interpolate(interpolant, target, source, TIMES - h)
    _, u = interpolate(interpolant, target, source, TIMES)
    torch.testing.assert_close((ahead - behind) / (2 * h), u, rtol=1e-5, atol=1e-6)


@each
def test_each_view_gives_the_others(interpolant):
    torch.manual_seed(1)
    target, source = torch.randn(2, 19, 3, dtype=torch.float64)
    x, u = interpolate(interpolant, target, source, TIMES)
    close = {"rtol": 1e-6, "atol": 1e-8}
    torch.testing.assert_close(to_source(interpolant, u, x, TIMES), source, **close)
    torch.testing.assert_close(to_target(interpolant, u, x, TIMES), target, **close)
    torch.testing.assert_close(from_source(interpolant, source, x, TIMES), u, **close)
    torch.testing.assert_close(from_target(interpolant, target, x, TIMES), u, **close)
    score = to_score(interpolant, u, x, TIMES)
    torch.testing.assert_close(score * interpolant.sigma(TIMES)[:, None], -source, **close)
    for objective, output in (("velocity", u), ("noise", source), ("target", target)):
        torch.testing.assert_close(
            to_velocity(interpolant, objective, output, x, TIMES), u, **close
        )


@each
def test_score_and_velocity_of_a_gaussian_are_those_of_its_marginal(interpolant):
    mu, s = torch.tensor([1.0, -0.5]).double(), torch.tensor([0.5, 2.0]).double()
    x = torch.randn(19, 2, dtype=torch.float64)
    v = gaussian_velocity(mu, s, interpolant)(x, TIMES)
    a, b = (f(TIMES)[:, None] for f in (interpolant.alpha, interpolant.sigma))
    score = -(x - a * mu) / (a**2 * s**2 + b**2)
    torch.testing.assert_close(to_score(interpolant, v, x, TIMES), score)
    f, g2 = (c(interpolant, TIMES)[:, None] for c in (drift, diffusion_squared))
    torch.testing.assert_close(f * x - g2 / 2 * score, v)


@each
def test_the_forward_sde_has_the_variance_of_the_interpolant(interpolant):
    """d(sigma^2)/dt = 2 f sigma^2 + g^2, by finite differences."""
    h = 1e-6
    slope = (interpolant.sigma(TIMES + h) ** 2 - interpolant.sigma(TIMES - h) ** 2) / (2 * h)
    f, g2 = drift(interpolant, TIMES), diffusion_squared(interpolant, TIMES)
    torch.testing.assert_close(2 * f * interpolant.sigma(TIMES) ** 2 + g2, slope, rtol=1e-5, atol=0)
    assert bool((g2 > 0).all())


@each
def test_every_objective_gives_a_finite_velocity_between_its_times(interpolant):
    x = torch.randn(2, 3, dtype=torch.float64)
    for objective in ("velocity", "noise", "target"):
        t = torch.tensor(usable_times(interpolant, objective), dtype=torch.float64)
        assert bool(torch.isfinite(to_velocity(interpolant, objective, x, x, t)).all())
        assert bool(torch.isfinite(interpolant.d_sigma(t)).all())


@pytest.mark.parametrize(
    "interpolant",
    [
        Polynomial(power=24.0),
        Polynomial(power=100.0),
        VariancePreserving(name="variance_preserving", beta_max=1000.0),
    ],
)
def test_noise_is_asked_for_where_alpha_is_a_number_of_float32(interpolant):
    x, (low, high) = torch.randn(1, 3), usable_times(interpolant, "noise")
    assert low < 0.4 < high < 0.99
    t = torch.tensor([high])
    assert bool(torch.isfinite(to_velocity(interpolant, "noise", x, 2 * x, t)).all())
    assert usable_times(Linear(), "noise") == usable_times(Cosine(), "noise") == (0.0, 0.99)


def test_at_the_ends_what_is_known_is_right_and_what_is_not_is_refused():
    """No nan: at t = 1 x is all source, at t = 0 all target; of the other the velocity may tell."""
    target, source = torch.randn(2, 3, 2, generator=torch.Generator().manual_seed(0)).double()
    zero, one = torch.zeros(3, dtype=torch.float64), torch.ones(3, dtype=torch.float64)
    for path in (Linear(), Cosine(), Polynomial(), Polynomial(power=100.0)):
        x, u = interpolate(path, target, source, one)
        torch.testing.assert_close(to_source(path, u, x, one), source)
        torch.testing.assert_close(to_score(path, u, x, one), -source)
        x, v = interpolate(path, target, source, zero)
        torch.testing.assert_close(to_target(path, v, x, zero), target)
        torch.testing.assert_close(to_source(path, v, x, zero), source)
        with pytest.raises(ReflowError, match="no score where sigma"):
            to_score(path, v, x, zero)
        x, u = interpolate(path, target, source, one)
        if isinstance(path, Polynomial):  # alpha' = sigma' = 0: the velocity is 0 for every target
            with pytest.raises(ReflowError, match="does not determine source and target"):
                to_target(path, u, x, one)
        else:
            torch.testing.assert_close(to_target(path, u, x, one), target)


def test_variance_exploding_starts_far_out():
    assert ALL[-1].noise_scale == pytest.approx(20)
    assert Linear().noise_scale == 1


class Smooth(Schedule):
    """A schedule of a user's own: alpha = cos^2, sigma = sin^2."""

    first: ClassVar[float] = 0.1

    def alpha(self, t):
        return torch.cos(torch.pi / 2 * t) ** 2

    def sigma(self, t):
        return torch.sin(torch.pi / 2 * t) ** 2

    def d_alpha(self, t):
        return -torch.pi / 2 * torch.sin(torch.pi * t)

    def d_sigma(self, t):
        return torch.pi / 2 * torch.sin(torch.pi * t)


def test_a_schedule_of_the_users_own_comes_by_class():
    """Refusals are in tests/fmcore/test_own.py."""
    path = f"{__name__}:Smooth"
    trust(Path(__file__).parents[3], [path])
    parse = TypeAdapter(Interpolant).validate_python
    own = parse({"name": "custom", "path": path})
    for name in ("alpha", "sigma", "d_alpha", "d_sigma"):
        torch.testing.assert_close(getattr(own, name)(TIMES), getattr(Smooth(), name)(TIMES))
    assert own.first == 0.1 and usable_times(own, "velocity") == (0.1, 1.0)
    assert parse(own.model_dump()) == own
