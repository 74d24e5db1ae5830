"""Averages of weights: half-lives, power averages and their profiles, closed forms."""

import math

import pytest
import torch
from torch.optim.swa_utils import AveragedModel

from fmcore.network.ema import HalfLife, averaged, decay_of, half_life_of, ramped
from fmcore.network.power import PowerEma, coefficients, factors, gamma_of, power_averaged
from fmcore.settings import ReflowError
from fmcore.training.fit import Train

T = 2000


def profile(average, steps=T, at=()):
    """The weight of each step in an average [steps], and in those at some steps before the end.

    The network's weights are a unit vector at each step, so their average is the profile itself.
    """
    network = torch.nn.Linear(steps, 1, bias=False).double()
    ema, kept = average(network), {}
    for step in range(1, steps + 1):
        network.weight.data.zero_()
        network.weight.data[0, step - 1] = 1
        ema.update_parameters(network)
        if step in at:
            kept[step] = ema.module.weight.data[0].clone()
    return ema.module.weight.data[0], kept


def test_a_half_life_means_the_same_at_any_batch():
    for batch in (50, 200):
        settings = Train(steps=10_000, batch=batch, ema=HalfLife(half_life=20_000))
        network = torch.nn.Linear(1, 1, bias=False)
        ema = averaged(network, settings.decay)
        network.weight.data.fill_(1.0)
        ema.update_parameters(network)
        ema.n_averaged += 10**8  # past the ramp
        network.weight.data.zero_()
        for _ in range(20_000 // batch):
            ema.update_parameters(network)
        assert float(ema.module.weight.detach()) == pytest.approx(0.5, rel=1e-4)
    assert decay_of(HalfLife(half_life=500_000), 512) == 0.5 ** (512 / 500_000)
    assert half_life_of(0.999, 256) == pytest.approx(256 * math.log(2) / -math.log(0.999))


def test_both_lengths_of_an_average_are_told_and_a_short_one_is_a_line():
    long = Train(steps=10_000, batch=256, ema=0.999)
    assert long.average()["last_decay"] == 0.999 and long.short_average() is None
    short = Train(steps=1000, batch=256, ema=0.9999)
    assert short.last_decay == 1000 / 1009
    line = short.short_average()
    assert "half-life of 1774368 samples is asked for, the average ends at 19805" in line
    assert "train 45000 steps" in line
    assert Train(steps=45_000, batch=256, ema=0.9999).short_average() is None


@pytest.mark.parametrize(
    ("made", "share"),
    [
        (lambda n: averaged(n, 0.9), lambda n: 1 - ramped(0.9, n)),
        (lambda n: power_averaged(n, 0.1), lambda n: 1 - (1 - 1 / (n + 1)) ** (gamma_of(0.1) + 1)),
    ],
)
def test_an_average_has_the_bytes_of_torchs_own_with_its_buffers(made, share):
    """Also when it goes on from the state of another one, as after a checkpoint."""
    network = torch.nn.Sequential(torch.nn.Linear(3, 5), torch.nn.BatchNorm1d(5))
    torchs = AveragedModel(
        network, multi_avg_fn=lambda own, new, n: torch._foreach_lerp_(own, new, share(int(n)))
    )
    ours, other = made(network), made(network)
    generator = torch.Generator().manual_seed(0)
    for step in range(30):
        for p in network.parameters():
            p.data += torch.randn(p.shape, generator=generator)
        network(torch.randn(8, 3, generator=generator))
        with torch.no_grad():
            torchs.update_parameters(network)
        (ours if step < 20 else other).update_parameters(network)
        if step == 19:
            other.load_state_dict(ours.state_dict())
    theirs, found = torchs.state_dict(), other.state_dict()
    assert list(found) == list(theirs) and found["n_averaged"] == 30
    assert all(torch.equal(found[name], theirs[name]) for name in theirs)


def test_an_average_takes_the_weights_of_its_own_network_alone():
    network = torch.nn.Linear(2, 2)
    with pytest.raises(ValueError, match="of the network that it was made of"):
        averaged(network, 0.9).update_parameters(torch.nn.Linear(2, 2))


@pytest.mark.parametrize("sigma", [0.03, 0.05, 0.1, 0.2])
def test_the_profile_of_a_power_average_has_its_standard_deviation(sigma):
    weights, _ = profile(lambda network: power_averaged(network, sigma))
    t = (torch.arange(T, dtype=torch.float64) + 1) / T
    assert float(weights.sum()) == pytest.approx(1)
    mean = float((weights * t).sum())
    std = math.sqrt(float((weights * (t - mean).square()).sum()))
    assert std == pytest.approx(sigma, rel=0.01)
    gamma = gamma_of(sigma)  # their equation 3: sigma_rel by gamma
    assert math.sqrt((gamma + 1) / (gamma + 3)) / (gamma + 2) == pytest.approx(sigma)
    assert float(weights[T // 2] / weights[-1]) == pytest.approx(0.5**gamma, rel=0.05)


def test_an_average_made_of_snapshots_is_the_one_that_was_tracked():
    kept, steps = (0.05, 0.1), PowerEma().steps(T)
    found = {s: profile(lambda n, s=s: power_averaged(n, s), at=steps)[1] for s in kept}
    for sigma in (0.03, 0.05, 0.07, 0.1, 0.15, 0.2, 0.25):
        tracked, _ = profile(lambda n, s=sigma: power_averaged(n, s))
        x, far = coefficients(steps, kept, sigma)
        pairs = ((t, j) for t in range(len(steps)) for j in range(len(kept)))
        made = sum(x[t, j] * found[kept[j]][steps[t]] for t, j in pairs)
        assert float(made.sum()) == pytest.approx(1, abs=1e-9)
        error = float((made - tracked).norm() / tracked.norm())
        assert error == pytest.approx(far, abs=0.01) and error < 0.1
        if sigma in kept:
            assert far < 1e-6 and error < 1e-6


def test_more_snapshots_make_it_better_and_too_few_are_refused():
    far = [coefficients(PowerEma(snapshots=n).steps(T), (0.05, 0.1), 0.15)[1] for n in (4, 8, 16)]
    assert far[0] > 2 * far[1] > 4 * far[2]
    with pytest.raises(ReflowError, match="2 snapshots of sigma_rel 0.05, 0.1 make its profile"):
        factors(PowerEma(snapshots=2).steps(T), (0.05, 0.1), 0.2)
