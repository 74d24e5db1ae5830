"""Published scores against closed forms and plain reimplementations."""

import math

import numpy as np
import pytest
import torch

from fmcore.measure import published
from fmcore.measure.frechet import GaussianStats, frechet_distance, frechet_error
from fmcore.measure.published import cmmd, inception_score, published_kid
from fmcore.verdict.errors import quantile


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_inception_score_of_sure_and_even_classes_is_their_number():
    classes = 8
    sure = 1e4 * torch.eye(classes).repeat(40, 1)  # each split of 32 holds every class 4 times
    mean, sd, error = inception_score(sure)
    assert mean == pytest.approx(classes) and [sd, error] == pytest.approx([0, 0], abs=1e-9)


def test_inception_score_of_an_undecided_classifier_is_one():
    assert inception_score(torch.zeros(100, 1008))[0] == pytest.approx(1)
    same = 1e4 * torch.eye(8)[[3] * 100]  # sure, and always of one class
    assert inception_score(same)[0] == pytest.approx(1)


def test_inception_score_is_the_mean_of_its_splits_in_order():
    logits = normal(103, 7)
    p = logits.softmax(1).numpy()
    scores = []
    for part in np.array_split(p, 10):
        scores.append(np.exp(np.mean(np.sum(part * np.log(part / part.mean(0)), 1))))
    error = np.std(scores, ddof=1) / np.sqrt(10)
    assert inception_score(logits) == pytest.approx((np.mean(scores), np.std(scores), error))


def plain_kid(x, y):
    """The published formula written with loops over sums, in numpy."""
    k = lambda a, b: (a @ b.T / a.shape[1] + 1) ** 3
    m, n = len(x), len(y)
    xx, yy = k(x, x), k(y, y)
    np.fill_diagonal(xx, 0)
    np.fill_diagonal(yy, 0)
    return xx.sum() / (m * (m - 1)) + yy.sum() / (n * (n - 1)) - 2 * k(x, y).sum() / (m * n)


def test_kid_of_one_whole_subset_is_the_plain_formula():
    x, y = normal(60, 5), 1.3 * normal(60, 5, seed=1) + 0.2
    mean, sd, _ = published_kid(x, y, seed=0)  # fewer than 1,000: every subset is the whole
    assert mean == pytest.approx(plain_kid(x.numpy(), y.numpy()), rel=1e-10)
    assert sd == pytest.approx(0, abs=1e-12)


def test_kid_averages_over_subsets_of_a_thousand():
    x, y = normal(1500, 4), normal(1500, 4, seed=1) + 0.1
    mean, sd, error = published_kid(x, y, seed=0)
    whole = plain_kid(x.numpy(), y.numpy())
    assert sd > 0 and abs(mean - whole) < 4 * sd / 10
    assert published_kid(x, y, seed=0) == (mean, sd, error)
    assert error > sd / 10  # that of the draw of the subsets is a part of it


def test_cmmd_is_the_plain_formula_on_the_sphere():
    x, y = normal(30, 6), normal(40, 6, seed=1) + 0.5
    a, b = x / x.norm(dim=1, keepdim=True), y / y.norm(dim=1, keepdim=True)
    k = lambda u, v: float((-torch.cdist(u, v).square() / 200).exp().mean())
    assert cmmd(x, y)[0] == pytest.approx(1000 * (k(a, a) + k(b, b) - 2 * k(a, b)), rel=1e-6)
    assert cmmd(x, 3 * x) == pytest.approx((0, 0), abs=1e-9)
    one, other = torch.tensor([[1.0, 0]] * 2), torch.tensor([[-1.0, 0]])
    assert cmmd(one, other)[0] == pytest.approx(1000 * (2 - 2 * math.exp(-4 / 200)))


def test_fid_of_known_gaussians():
    """|m1 - m2|^2 + sum (s1 - s2)^2 for covariances that commute."""
    m1, m2 = torch.tensor([1.0, 2, 0]).double(), torch.tensor([0.0, 2, 2]).double()
    s1, s2 = torch.tensor([1.0, 2, 3]).double(), torch.tensor([2.0, 2, 1]).double()
    found = frechet_distance(
        GaussianStats.of(m1, torch.diag(s1**2)), GaussianStats.of(m2, torch.diag(s2**2))
    )
    assert found == pytest.approx(5 + 1 + 0 + 4)


def test_the_error_of_a_frechet_distance_is_its_spread_over_draws():
    torch.manual_seed(0)
    d, n = 8, 500
    mix = 0.5 * torch.randn(d, d, dtype=torch.float64)
    reference = GaussianStats.from_features(normal(20000, d) @ torch.randn(d, d).double() / 2)
    found, errors = [], []
    for seed in range(200):
        x = normal(n, d, seed=seed) @ mix + 0.2
        x = x + 0.3 * x**2  # not Gaussian: the error needs fourth moments
        found.append(frechet_distance(GaussianStats.from_features(x), reference))
        errors.append(frechet_error(x, reference))
    spread = float(torch.tensor(found).std())
    assert float(torch.tensor(errors).mean()) == pytest.approx(spread, rel=0.15)
    centre = torch.tensor(found).mean()
    inside = (torch.tensor(found) - centre).abs() <= 1.96 * torch.tensor(errors)
    assert 0.90 <= float(inside.float().mean()) <= 0.98


def covered(measure, draws):
    """Return how often value +- t error holds the mean of all values, for draws of samples."""
    found = torch.tensor([measure(seed) for seed in range(draws)], dtype=torch.float64)
    value, half = found.T
    return float(((value - value.mean()).abs() <= half).double().mean())


def test_the_error_of_an_inception_score_covers():
    mix, t = 2 * normal(6, 10, seed=1), quantile(0.975, 10)

    def measure(seed):
        score, _, error = inception_score(normal(500, 6, seed=seed) @ mix)
        return score, t * error

    assert 0.90 <= covered(measure, 300) <= 0.98


@pytest.mark.parametrize("shift", [0.0, 0.3])
def test_the_errors_of_kid_and_cmmd_cover(shift, monkeypatch):
    """The reference stays; equal laws are the hard case, where the first-order terms vanish."""
    monkeypatch.setattr(published, "KID_SIZE", 100)
    monkeypatch.setattr(published, "KID_SUBSETS", 20)
    real = normal(300, 8, seed=1000)

    def by_kid(seed):
        value, _, error = published_kid(normal(200, 8, seed=seed) + shift, real, seed=seed)
        return value, 1.96 * error

    def by_cmmd(seed):
        value, error = cmmd(normal(200, 8, seed=seed) + shift, real)
        return value, 1.96 * error

    assert 0.90 <= covered(by_kid, 200) <= 0.98
    assert 0.90 <= covered(by_cmmd, 200) <= 0.98
