"""Kernel distance, precision, recall, density, coverage: closed forms and what they must see."""

import math

import numpy as np
import pytest
import torch
from sklearn.metrics.pairwise import polynomial_kernel
from sklearn.neighbors import NearestNeighbors

from fmcore.dataset.densities import Checkerboard, EightGaussians, Gaussian, TwoMoons
from fmcore.measure.frechet import GaussianStats, frechet_distance, frechet_infinity
from fmcore.measure.neighbours import (
    kernel_distance,
    manifold_scores,
    mode_scores,
    nearest,
    recall_error,
)


@pytest.mark.parametrize("value", [0.0, 0.1, 1e-6])
def test_the_kernel_distance_of_constant_features_is_a_number_of_their_size(value):
    real = torch.full((40, 3), value)
    x, y = normal(50, 3, 0), 1000 * normal(30, 3, 0)
    assert kernel_distance(real, real) == pytest.approx(0, abs=1e-12)
    assert 0 < kernel_distance(x, real) < 100
    assert kernel_distance(1000 * x, y) == pytest.approx(kernel_distance(x, y / 1000), rel=1e-6)


def normal(n, d, seed, shift=0.0):
    generator = torch.Generator().manual_seed(seed)
    return shift + torch.randn(n, d, generator=generator)


def test_the_kernel_distance_is_that_of_scikit_learns_kernel():
    x, y = normal(60, 5, 0), normal(80, 5, 1, 0.5)
    scale = float((y.double() - y.double().mean(0)).square().mean().sqrt())
    a, b = x.double().numpy() / scale, y.double().numpy() / scale

    def kernel(p, q):
        return polynomial_kernel(p, q, degree=3, gamma=1 / 5, coef0=1)

    n, m = len(a), len(b)
    within = (kernel(a, a).sum() - np.trace(kernel(a, a))) / (n * (n - 1))
    within += (kernel(b, b).sum() - np.trace(kernel(b, b))) / (m * (m - 1))
    assert kernel_distance(x, y) == pytest.approx(within - 2 * kernel(a, b).mean(), rel=1e-9)


def test_the_kernel_distance_is_unbiased_and_free_of_scale():
    found = [kernel_distance(normal(200, 3, s), normal(200, 3, 100 + s)) for s in range(20)]
    assert abs(np.mean(found)) < 3 * np.std(found) / math.sqrt(20) + 1e-3
    x, y = normal(200, 3, 0, 1.0), normal(200, 3, 1)
    assert kernel_distance(10 * x, 10 * y) == pytest.approx(kernel_distance(x, y), rel=1e-4)
    assert kernel_distance(x, y) > 0.5


def test_precision_and_the_others_are_those_of_nearest_neighbour_search():
    fake, real, k = normal(70, 4, 2, 0.3), normal(90, 4, 3), 5
    found = manifold_scores(fake, real, k=k)
    ball = NearestNeighbors(n_neighbors=k + 1).fit(real.numpy()).kneighbors(real.numpy())[0][:, k]
    own = NearestNeighbors(n_neighbors=k + 1).fit(fake.numpy()).kneighbors(fake.numpy())[0][:, k]
    far = torch.cdist(fake.double(), real.double()).numpy()
    assert found["precision"] == pytest.approx((far <= ball).any(1).mean())
    assert found["recall"] == pytest.approx((far <= own[:, None]).any(0).mean())
    assert found["density"] == pytest.approx((far <= ball).sum(1).mean() / k)
    assert found["coverage"] == pytest.approx((far.min(0) <= ball).mean())


@pytest.mark.parametrize("scale", [1.0, 0.7])
def test_the_error_of_recall_is_its_spread_over_draws_of_the_samples(scale):
    real = normal(300, 8, 0)
    draws = [scale * normal(300, 8, 1 + s) for s in range(120)]
    values = np.array([manifold_scores(x, real, k=3)["recall"] for x in draws])
    errors = np.array([recall_error(x, real, k=3, splits=8, seed=0) for x in draws])
    assert np.sqrt((errors**2).mean()) == pytest.approx(values.std(ddof=1), rel=0.25)
    inside = np.abs(values - values.mean()) <= 1.96 * errors
    assert 0.86 <= inside.mean() <= 0.99


def test_few_samples_repeated_have_precision_but_no_coverage():
    real = normal(500, 8, 0)
    same = manifold_scores(normal(500, 8, 1), real)
    few = manifold_scores(normal(10, 8, 2).repeat(50, 1), real)
    assert same["coverage"] > 0.9 and few["coverage"] < 0.3
    assert few["recall"] < 0.1 < same["recall"]


def test_training_data_that_comes_back_is_near():
    real = normal(300, 6, 0)
    assert nearest(real[:100] + 1e-3, real).max() < 0.01 < nearest(normal(100, 6, 1), real).min()


def test_the_nearest_distance_is_exact_with_features_that_are_dead():
    real, fake = normal(1300, 6, 0), normal(300, 6, 1)
    real[:, 4] = 0.0
    exact = torch.cdist(fake.double(), real.double()).amin(1)
    torch.testing.assert_close(nearest(fake, real), exact)


def test_extrapolation_takes_the_bias_out():
    """FD of N samples of the reference's own law is about c / N: the intercept is near 0."""
    reference = GaussianStats.from_features(normal(200_000, 16, 0))
    plain, beyond = [], []
    for seed in range(1, 7):
        x = normal(600, 16, seed)
        plain.append(frechet_distance(GaussianStats.from_features(x), reference))
        beyond.append(frechet_infinity(x, reference))
    assert abs(np.mean(beyond)) < 0.5 * np.mean(plain)


def test_modes_that_are_missing_show():
    settings = EightGaussians(name="eight_gaussians", samples=4000)
    x = settings.read(0).target
    found = mode_scores(x, settings.modes(), settings.std)
    assert found["mode_share"] == pytest.approx(1 - math.exp(-4.5), abs=0.005)
    assert found["mode_weights_tv"] < 0.03
    one = x[(x - settings.modes()[0]).norm(dim=1) < 1.5]
    assert mode_scores(one, settings.modes(), 0.5)["mode_weights_tv"] == pytest.approx(7 / 8)


@pytest.mark.parametrize(
    "law",
    [
        EightGaussians(name="eight_gaussians", std=0.5),
        TwoMoons(name="two_moons", std=0.1),
        Checkerboard(name="checkerboard"),
        Gaussian(name="gaussian", mean=[1.0, -1.0], std=[0.5, 1.5]),
    ],
    ids=lambda law: law.name,
)
def test_a_density_integrates_to_one_and_is_that_of_the_samples(law):
    side = torch.linspace(-8, 8, 801, dtype=torch.float64)[:-1] + 0.01
    grid = torch.cartesian_prod(side, side)
    log_p = law.log_density(grid)
    assert float(log_p.exp().sum() * 0.02**2) == pytest.approx(1, abs=2e-3)
    entropy = -float((log_p.exp() * log_p.clamp(min=-1e3)).sum() * 0.02**2)
    x = law.model_copy(update={"samples": 20_000}).read(1).target
    assert -float(law.log_density(x).mean()) == pytest.approx(entropy, abs=0.03)


def test_moons_without_noise_have_no_density():
    assert TwoMoons(name="two_moons", std=0.0).log_density(torch.zeros(1, 2)) is None
