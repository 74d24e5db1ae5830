"""Metrics against closed forms, invariants and an independent implementation."""

import numpy as np
import pytest
import scipy.linalg
import torch

from fmcore.matching.interpolant import Cosine
from fmcore.measure.frechet import GaussianStats, frechet_distance
from fmcore.measure.straightness import straightness, straightness_curve, straightness_rel
from fmcore.measure.transport import (
    costs_per_pair,
    energy_distance,
    sliced_w2,
    transport_cost,
    w2,
)
from fmcore.settings import ReflowError
from fmcore.solve.solver import Solver, solve
from tests import oracles


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def normal_quantiles(n=20001):
    """Points of N(0, 1) at evenly spaced probabilities: no Monte-Carlo noise."""
    u = (torch.arange(n, dtype=torch.float64) + 0.5) / n
    return torch.special.ndtri(u)[:, None]


def paths(s, steps, name="euler", interpolant=None, mu=1.5):
    v = oracles.gaussian_velocity(
        torch.tensor([mu]).double(), torch.tensor([s]).double(), interpolant
    )
    x = normal_quantiles()
    return solve(v, x, Solver(name=name, steps=steps), keep_trajectory=True).trajectory


# S of the exact 1-rectified flow N(0, 1) -> N(mu, s^2), on Euler grids of N steps.
EULER = {
    0.5: {10: 0.16981, 20: 0.19088, 50: 0.20475, 100: 0.20961, 1000: 0.21410},
    1.0: {10: 0.37918, 20: 0.40297, 50: 0.41839, 100: 0.42374, 1000: 0.42865},
    2.0: {10: 0.81074, 20: 0.83345, 50: 0.84815, 100: 0.85323, 1000: 0.85789},
}


@pytest.mark.parametrize("s", EULER)
def test_straightness_on_an_euler_grid_has_its_closed_form(s):
    for steps, expected in EULER[s].items():
        assert straightness(paths(s, steps)) == pytest.approx(expected, rel=2e-3)


@pytest.mark.parametrize("s", EULER)
def test_straightness_tends_to_the_closed_form(s):
    assert straightness(paths(s, 200, "rk4")) == pytest.approx(oracles.straightness(s), rel=2e-3)


@pytest.mark.parametrize(
    ("s", "expected"), [(0.25, 0.131457), (0.5, 0.058425), (1, 0), (2, 0.233701)]
)
def test_the_cosine_interpolant_is_not_the_less_straight_one(s, expected):
    found = straightness(paths(s, 200, "rk4", Cosine(), mu=0.0))
    assert found == pytest.approx(expected, rel=5e-3, abs=1e-5)


def test_straightness_of_the_second_round_is_zero():
    """The exact map eps -> mu + s eps is monotone, so its interpolation is a flow of lines."""
    s, mu = 2.0, 1.5
    v = lambda x, t: (
        (1 - s) * (x - (1 - t[:, None]) * mu) / ((1 - t[:, None]) * s + t[:, None]) - mu
    )
    solution = solve(v, draw(500, 1), Solver(name="euler", steps=1), keep_trajectory=True)
    many = solve(v, draw(500, 1), Solver(name="euler", steps=20), keep_trajectory=True)
    assert straightness(many.trajectory) < 1e-20
    torch.testing.assert_close(solution.x, mu + s * draw(500, 1))


def test_straightness_keeps_its_symmetries():
    path = torch.cumsum(draw(9, 50, 3), dim=0)
    s = straightness(path)
    assert straightness(path + 7) == pytest.approx(s)
    assert straightness(3 * path) == pytest.approx(9 * s)
    assert straightness(path.flip(0)) == pytest.approx(s)
    chord = float((path[0] - path[-1]).square().sum(-1).mean())
    assert straightness_rel(path) == pytest.approx(s / chord)
    t, gap = straightness_curve(path)
    assert t[0] < t[-1]
    assert float(gap.mean()) == pytest.approx(s)


def test_the_curve_runs_from_data_to_noise():
    """For s = 0.5 the loss profile leans to the data end; the gap must be read in that order."""
    straight_then_bent = torch.stack([torch.full((1, 1), v) for v in (3.0, 2.0, 1.0, -3.0)])
    t, gap = straightness_curve(straight_then_bent)
    assert gap.argmax() == 0
    assert float(t[0]) == pytest.approx(1 / 6)


@pytest.mark.parametrize("s", [0.5, 1.0, 2.0])
def test_transport_costs_have_their_closed_forms(s):
    mu = 1.5
    eps = normal_quantiles()
    after = transport_cost(eps, mu + s * eps)
    assert after == pytest.approx(mu**2 + (1 - s) ** 2, rel=2e-3)
    source, target = draw(200_000, 1, seed=1), mu + s * draw(200_000, 1, seed=2)
    before = transport_cost(source, target)
    assert before == pytest.approx(mu**2 + 1 + s**2, rel=0.01)
    budget = oracles.straightness(s) + oracles.least_loss(s)
    assert before - after == pytest.approx(budget, rel=0.02)


def test_no_convex_cost_rises_from_independent_to_rectified():
    eps, s, mu = draw(20_000, 2), torch.tensor([0.5, 2.0]).double(), 1.0
    independent = mu + s * draw(20_000, 2, seed=9)
    rectified, former = costs_per_pair(eps, mu + s * eps), costs_per_pair(eps, independent)
    for name, cost in rectified.items():
        assert cost.mean() < former[name].mean()
    assert transport_cost(eps, independent) == float(former["transport_cost"].mean())
    found = costs_per_pair(torch.ones(3, 4), 2 * torch.ones(3, 4))
    assert [float(cost[0]) for cost in found.values()] == pytest.approx([4, 2, 16])


def test_w2_finds_the_assignment():
    a = draw(200, 3)
    assert w2(a, a[torch.randperm(200)]) == pytest.approx(0, abs=1e-6)
    assert w2(a, a + torch.tensor([3.0, 4.0, 0.0])) == pytest.approx(5)
    x, y = draw(300, 1, seed=1), 2 * draw(300, 1, seed=2)
    by_sorting = float((x.sort(0).values - y.sort(0).values).square().mean().sqrt())
    assert w2(x, y) == pytest.approx(by_sorting)
    assert sliced_w2(x, y, seed=0) == pytest.approx(by_sorting)


def test_sliced_w2_and_energy_tell_laws_apart():
    a, b, far = (
        draw(1000, 2, seed=1),
        draw(1000, 2, seed=2),
        draw(1000, 2, seed=3) + 1,
    )
    assert abs(energy_distance(a, b)) < 0.02 < energy_distance(a, far)
    assert sliced_w2(a, b, seed=0) < 0.15 < sliced_w2(a, far, seed=0)


def test_frechet_distance_of_known_gaussians():
    n, mean = 10, torch.tensor([3.0, 4.0]).double()
    one = GaussianStats(
        n, torch.zeros(2).double(), torch.diag(torch.tensor([1.0, 4.0])).double() * 9
    )
    two = GaussianStats(n, mean, torch.diag(torch.tensor([4.0, 9.0])).double() * 9)
    assert frechet_distance(one, two) == pytest.approx(25 + 1 + 1)
    assert frechet_distance(one, one) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("n", [10, 400])
def test_frechet_distance_equals_scipy(n):
    """n = 10 has fewer samples than dimensions."""
    x, y = draw(n, 24, seed=1), draw(n, 24, seed=2) @ draw(24, 24, seed=3)
    a, b = GaussianStats.from_features(x), GaussianStats.from_features(y)
    s1, s2 = np.cov(x.numpy().T), np.cov(y.numpy().T)
    gap = x.mean(0) - y.mean(0)
    values = np.linalg.eigvals(s1 @ s2)
    root = np.sqrt(np.maximum(values.real, 0)).sum()
    expected = float(gap @ gap) + np.trace(s1) + np.trace(s2) - 2 * root
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-5)
    if n > 24:
        other = np.trace(scipy.linalg.sqrtm(s1 @ s2)).real
        assert root == pytest.approx(other, rel=1e-8)


def test_statistics_of_parts_merge_to_those_of_the_whole():
    x = draw(300, 5)
    merged = GaussianStats.from_features(x[:50]).merge(GaussianStats.from_features(x[50:]))
    whole = GaussianStats.from_features(x)
    assert merged.n == whole.n
    torch.testing.assert_close(merged.mean, whole.mean)
    torch.testing.assert_close(merged.covariance, whole.covariance)


def test_the_sampling_bias_of_the_frechet_distance():
    """Two sets of n points of N(0, I_d) are about d (d + 4) / (2 n) apart: print the floor."""
    d, n = 16, 2000
    a, b = (GaussianStats.from_features(draw(n, d, seed=s)) for s in (1, 2))
    assert frechet_distance(a, b) == pytest.approx(d * (d + 4) / (2 * n), rel=0.3)


def test_distances_do_not_depend_on_the_origin():
    a, b = draw(200, 2, seed=1), draw(200, 2, seed=2)
    for offset in (1e3, 1e5):
        assert w2(a + offset, a.flip(0) + offset) < 1e-9
        assert energy_distance(a + offset, b + offset) == pytest.approx(
            energy_distance(a, b), abs=1e-9
        )


@pytest.mark.parametrize("distance", [w2, lambda a, b: sliced_w2(a, b, seed=0)])
def test_sets_of_two_sizes_are_refused(distance):
    with pytest.raises(ValueError, match=r"one shape needed, got \[1, 2\] and \[20, 2\]"):
        distance(draw(1, 2), draw(20, 2))


def test_a_diverged_velocity_is_told_in_words():
    x = draw(10, 2)
    x[3, 0] = float("inf")
    x[4] = float("nan")
    with pytest.raises(ReflowError, match="2 of 10 samples are not finite"):
        GaussianStats.from_features(x)
