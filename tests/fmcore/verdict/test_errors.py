"""Standard errors, intervals and paired tests: simulated, where the truth is known."""

import math

import pytest
import torch

from fmcore.measure.distances import disjoint
from fmcore.measure.frechet import GaussianStats, frechet_distance
from fmcore.measure.transport import cost_rise, energy_distance
from fmcore.verdict.errors import interval, paired, resolvable, standard_error, summary

N, REPEATS = 40, 400
"""Points in each half, and simulated measurements of a round."""


def generator(seed):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def data():
    return torch.randn(2 * N, 2, generator=generator(0))


def on_cut(data, i, *samples):
    """Return the energy distance of some samples to the reference of cut `i`."""
    half = data[disjoint(len(data), N, i)[0]]
    return [energy_distance(x, half) for x in samples]


def covered(measured, truth):
    hits = [low <= truth <= high for low, high in map(interval, measured)]
    return sum(hits) / len(hits)


@pytest.mark.parametrize("cuts", [4, 8])
def test_the_interval_of_a_round_covers_its_expected_distance(data, cuts):
    """A nominal 95 % is 90 to 98 %: each cut has noise and a half of its own."""
    draw = generator(cuts)
    measured = [
        [
            on_cut(data, cuts * r + k, 0.5 + torch.randn(N, 2, generator=draw))[0]
            for k in range(cuts)
        ]
        for r in range(REPEATS)
    ]
    truth = sum(map(sum, measured)) / (cuts * REPEATS)
    assert 0.9 < covered(measured, truth) < 0.98


def test_the_interval_of_a_paired_difference_covers_and_is_narrower(data):
    """Two rounds on the same noise and the same cuts: what they have in common cancels."""
    draw, gaps, one, two = generator(1), [], [], []
    for r in range(REPEATS):
        pairs = []
        for k in range(4):
            z = torch.randn(N, 2, generator=draw)
            pairs.append(on_cut(data, 4 * r + k, z + 0.5, 1.05 * z + 0.55))
        gaps.append([b - a for a, b in pairs])
        one.append([a for a, _ in pairs])
        two.append([b for _, b in pairs])
    truth = sum(map(sum, gaps)) / (4 * REPEATS)
    assert truth > 0 and 0.9 < covered(gaps, truth) < 0.98
    errors = [[standard_error(v) for v in own] for own in (one, two, gaps)]
    apart = [math.hypot(a, b) for a, b in zip(errors[0], errors[1], strict=True)]
    assert sum(errors[2]) < 0.5 * sum(apart)
    assert sum(paired(b, a).seen for a, b in zip(one, two, strict=True)) > 0.3 * REPEATS


def test_the_interval_of_the_floor_covers_its_mean_over_all_cuts(data):
    floors = []
    for i in range(16 * 200):
        a, b = (GaussianStats.from_features(data[rows]) for rows in disjoint(2 * N, N, i))
        floors.append(frechet_distance(a, b))
    truth = sum(floors) / len(floors)
    groups = [floors[i : i + 16] for i in range(0, len(floors), 16)]
    assert 0.9 < covered(groups, truth) < 0.98


def test_two_rounds_that_are_alike_differ_once_in_twenty(data):
    draw, alarms = generator(2), 0
    for r in range(REPEATS):
        pairs = []
        for k in range(4):
            a, b = (torch.randn(N, 2, generator=draw) for _ in range(2))
            pairs.append(on_cut(data, 4 * r + k, a, b))
        alarms += paired([a for a, _ in pairs], [b for _, b in pairs]).seen
    assert 0.02 < alarms / REPEATS < 0.08


def test_what_a_test_resolves_is_seen_four_times_in_five():
    """Values of the cuts are normal with the sd of the floor; nothing is shared by the rounds."""
    draw, cuts = generator(3), 4
    floor = torch.randn(64, generator=draw)
    shift = resolvable((floor / floor.std()).tolist(), cuts)
    values = torch.randn(2, 2000, cuts, generator=draw, dtype=torch.float64)
    pairs = zip((values[0] + shift).tolist(), values[1].tolist(), strict=True)
    seen = sum(paired(a, b).seen for a, b in pairs) / 2000
    assert 0.72 < seen < 0.88
    assert resolvable([1.0], 4) is None and resolvable([1.0, 2.0], 1) is None


def test_the_error_of_a_rise_in_cost_is_that_of_the_differences():
    """A round that changes nothing but noise: its rise exceeds two errors once in twenty."""
    draw, high, apart = generator(4), 0, []
    for _ in range(300):
        z = torch.randn(400, 2, generator=draw, dtype=torch.float64)
        before = 3 * z + 0.1 * torch.randn(400, 2, generator=draw, dtype=torch.float64)
        after = 3 * z + 0.1 * torch.randn(400, 2, generator=draw, dtype=torch.float64)
        rise, error = cost_rise(z, before, after)
        high += abs(rise) > 2 * error
        costs = [(x - z).square().sum(1) for x in (before, after)]
        apart.append(math.hypot(*(float(c.std()) / 20 for c in costs)) / float(costs[0].mean()))
    assert 0.02 < high / 300 < 0.09
    assert error < 0.2 * sum(apart) / len(apart), "what both costs share has cancelled"
    assert cost_rise(z, before, before) == (0.0, 0.0)


def test_a_single_cut_has_no_error():
    assert interval([3.0]) == (-math.inf, math.inf)
    assert paired([2.0], [1.0]).seen and not paired([1.0], [2.0]).seen
    assert paired([2.0], [1.0]).p is None
    assert paired([1.0, 2.0], [1.0, 2.0]).p == 0.5
    assert paired([2.0, 3.0], [1.0, 2.0]).p == 0.0
    assert summary([{"fd": 2.0}]) == {"fd": 2.0}
    with pytest.raises(ValueError, match="2 and 1 cuts"):
        paired([1.0, 2.0], [1.0])
