"""Samples that come in parts score what they score as a whole, whatever the parts are."""

import pytest
import torch

from fmcore.coupling.noise import gaussian_noise
from fmcore.coupling.source import Drawn, Source
from fmcore.features.extractor import FeatureSettings
from fmcore.measure import yardstick
from fmcore.measure.distances import Group, Summary
from fmcore.measure.frechet import ROWS, GaussianStats
from fmcore.measure.neighbours import balls, kernel_distance, kernel_within, manifold_scores
from fmcore.measure.passing import Passing, cut_anew
from fmcore.measure.scores import Scores
from fmcore.measure.transport import energy_distance, mean_within
from fmcore.measure.yardstick import YardstickSettings
from fmcore.scale import Scale
from fmcore.solve.solver import Solution
from tests.chains import gaussian_data, silent


def normal(n, d, seed=0):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    data = gaussian_data(
        tmp_path_factory.mktemp("data") / "d", mu=[0.0, 1.0], s=[1.0, 0.5], pairs=400
    )
    settings = YardstickSettings(
        features=FeatureSettings(kind="identity"), samples=200, splits=2, floor_cuts=2, w2_samples=9
    )
    return yardstick.fit(data, settings, seed=0, log=silent)


@pytest.mark.parametrize("each", [1, 7, 150, 256, 399])
def test_a_round_scores_the_same_in_any_parts(made, each):
    x = normal(made.samples, 2)
    assert made.measure(iter(x.split(each))) == made.measure(x)


def test_labels_go_with_their_samples():
    group = Group(normal(900, 3), label=torch.arange(900) % 3)
    whole = Summary.of([group], 10, [0, 2], limit=50)
    parts = Summary.of((group.rows(r) for r in torch.arange(900).split(70)), 10, [0, 2], limit=50)
    assert list(parts.classes) == [0, 2] and parts.classes[2].n == 50
    for key, stats in whole.classes.items():
        of = group.features[group.label == key][:50].double()
        torch.testing.assert_close(stats.mean, of.mean(0), rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(parts.classes[key].mean, stats.mean, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(parts.classes[key].covariance, of.T.cov(), rtol=1e-9, atol=1e-9)


def test_statistics_of_many_rows_are_those_of_one_sum():
    x = normal(2 * ROWS + 5, 3)
    found, exact = GaussianStats.from_features(x), x.double()
    assert found.n == len(x)
    torch.testing.assert_close(found.mean, exact.mean(0), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(found.covariance, exact.T.cov(), rtol=1e-10, atol=1e-12)


def test_statistics_of_some_rows_are_those_of_their_copy_bit_for_bit():
    x = normal(3 * ROWS, 3)
    rows = torch.randperm(len(x), generator=torch.Generator().manual_seed(1))[: ROWS + 9]
    found, copied = GaussianStats.from_features(x, rows), GaussianStats.from_features(x[rows])
    assert found.n == copied.n == ROWS + 9
    assert torch.equal(found.mean, copied.mean) and torch.equal(found.m2, copied.m2)


def test_what_is_known_of_the_real_side_gives_the_same_distances():
    fake, real = normal(300, 4), 1.1 * normal(310, 4, 1)
    known = manifold_scores(fake, real, real_balls=balls(real, 5))
    assert known == manifold_scores(fake, real)
    assert kernel_distance(fake, real, own=kernel_within(real)) == kernel_distance(fake, real)
    assert energy_distance(fake, real, own=mean_within(real)) == energy_distance(fake, real)


def test_too_few_samples_are_told():
    with pytest.raises(ValueError, match="2 samples are missing"):
        list(cut_anew(iter(normal(8, 1).split(3)), [5, 5]))


def test_what_passes_is_counted_in_the_datas_own_units():
    first = Solution(torch.zeros(3, 2), 7, evaluations=torch.tensor([7, 4, 4]))
    passed = Passing([first, Solution(torch.ones(1, 2), 1)], Scale((1.0,), (2.0,)), 2)
    assert torch.cat(list(passed)).tolist() == [[1.0, 1.0]] * 3 + [[3.0, 3.0]]
    assert passed.nfe == 4.0 and passed.count == 4 and len(passed.shown) == 2


def test_a_protocol_gets_all_samples_and_the_yardstick_its_own(made):
    class Protocol:
        """Takes more samples than the yardstick."""

        def measure(self, x):
            return {"fid": float(len(x))}

    x = normal(made.samples + 150, 2)
    found = [Solution(part, 1) for part in x.split(130)]
    row, passed = Scores(made, Protocol()).row("euler_1", found, Scale(), None)
    assert row.published == {"fid": len(x)} and passed.count == len(x)
    assert row.cuts == made.measure(x[: made.samples])


def test_noise_that_is_drawn_when_asked_for_is_that_of_its_rows():
    drawn = Drawn(Source((3,)), 5, 20)
    assert len(drawn) == 20 and len(drawn[:0]) == 0
    assert torch.equal(drawn[6:], gaussian_noise(5, torch.arange(6, 20).numpy(), (3,)))
    many = Drawn(Source((1000, 1000)), 5, 20)  # more than are kept
    assert torch.equal(many[3:4], gaussian_noise(5, torch.arange(3, 4).numpy(), (1000, 1000)))
