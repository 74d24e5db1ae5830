"""A loss that is finite and far above where it began stops the training; healthy ones go on."""

import json

import pytest
import torch

from fmcore import MLP, fit_flow, independent
from fmcore.coupling.read import open_coupling, read
from fmcore.matching.interpolant import Linear
from fmcore.matching.loss import Loss
from fmcore.network.build import build, with_spans
from fmcore.network.images import UNet
from fmcore.settings import ReflowError
from fmcore.train import Train
from fmcore.training import divergence
from fmcore.training.batches import shuffled_batches
from fmcore.training.divergence import LAST, Watch, watch_of
from fmcore.training.fit import fit, new_state
from fmcore.training.held_out import constant_loss
from fmcore.verdict.gates import Gates, judge
from tests.chains import two_dimensions
from tests.fmcore.training.test_train import run

SMALL = MLP(width=32, depth=1, norm="none")


@pytest.fixture
def start(tmp_path):
    return two_dimensions(tmp_path)


def test_a_rate_of_1000_stops_the_training_in_one_line_with_the_cures(start):
    with pytest.raises(ReflowError) as error:
        run(start, "a", Train(steps=100, lr=1000.0, batch=64, log_every=25))
    said = str(error.value)
    assert "\n" not in said and "at step 25" in said and "train.lr (1000)" in said
    for cure in ("train.warmup", "train.clip", "data.scale"):
        assert cure in said
    assert not (start / "a" / "model").exists()


def test_the_same_in_a_notebook():
    x = torch.randn(500, 2, generator=torch.Generator().manual_seed(0))
    with pytest.raises(ReflowError, match="diverged"):
        fit_flow(independent(x), Train(steps=100, lr=1000.0, batch=64), network=SMALL)


def test_a_normal_training_has_the_same_bytes_with_and_without_the_watch(start, monkeypatch):
    settings = Train(steps=60, batch=64, lr=3e-3, log_every=10, checkpoint_every=30)
    watched = run(start, "a", settings)
    monkeypatch.setattr(Watch, "check", lambda *a: None)
    monkeypatch.setattr(divergence, "LAST", 1)
    assert run(start, "b", settings) == watched


def test_a_watch_draws_nothing_from_the_global_generator_and_keeps_dropout_on():
    network = build(UNet(name="unet", channels=(8,), dropout=0.5), (1, 8, 8), seed=0)
    x = torch.zeros(8, 1, 8, 8)
    state = new_state(network, Train(steps=1))
    before = torch.random.get_rng_state()
    watch = watch_of(state, independent(x), Train(steps=1), seed=0)
    assert bool((torch.random.get_rng_state() == before).all()) and network.training
    assert watch.nothing == pytest.approx(1, abs=0.2)  # the velocity is the noise here


def test_one_step_or_a_few_do_not_stop_a_training():
    watch = Watch(first=1.0, nothing=2.0)
    watch.recent.extend([torch.tensor(1e9)] * (LAST - 1))
    watch.check(19, Train(steps=50))
    watch.recent.appendleft(torch.tensor(1999.0))
    watch.check(20, Train(steps=50))
    watch.recent.append(torch.tensor(1e9))
    with pytest.raises(ReflowError, match="at step 21"):
        watch.check(21, Train(steps=50))


@pytest.mark.parametrize(
    "changes",
    [
        {"lr": 0.1},
        {"lr": 0.1, "warmup": 0, "loss": Loss(name="pseudo_huber")},  # steps 8,000 times above
        {"objective": "mean_flow", "spans": 0.5, "lr": 0.03, "loss": Loss(normalised=True)},
        {"objective": "noise"},
        {"objective": "target", "loss": Loss(weight="velocity")},
    ],
)
def test_healthy_trainings_stay_far_below(changes):
    torch.set_num_threads(1)
    angle = torch.randint(8, (2000, 1), generator=torch.Generator().manual_seed(0)) * torch.pi / 4
    pairs = independent(4 * torch.cat([angle.cos(), angle.sin()], dim=1))
    settings = Train(**{"steps": 60, "batch": 128, "lr": 5e-3, **changes})
    network = build(MLP(width=64, depth=2, norm="none"), (2,), seed=1)
    state = new_state(with_spans(network), settings)
    watch = watch_of(state, pairs.rows(torch.arange(256)), settings, seed=0)
    stream = shuffled_batches(pairs, batch=128, seed=0)
    losses = [float(step.loss) for step in fit(state, stream, settings, seed=0)]
    least = max(min(losses[i : i + LAST]) for i in range(len(losses) - LAST + 1))
    assert least < divergence.FAR / 100 * max(watch.first, watch.nothing)


def test_the_end_of_a_training_is_compared_with_the_best_constant(start):
    run(start, "a", Train(steps=150, lr=5e-3, warmup=5, ema=0.9, batch=128))
    found = json.loads((start / "a" / "metrics.json").read_text())
    held = read(open_coupling(start / "data"), split="held_out")
    least = (held.source - held.target).var(dim=0, unbiased=False).mean()
    assert found["held_out_rel"] == pytest.approx(found["held_out_loss"] / float(least), rel=1e-4)
    assert found["held_out_rel"] < 1
    states = {v.gate: v.state for v in judge(Gates(), found)}
    assert states["held_out_rel"] == "ok"
    worse = {**found, "held_out_rel": 200.0}
    (verdict,) = [v for v in judge(Gates(), worse) if v.gate == "held_out_rel"]
    assert verdict.state == "fail" and "lower train.lr" in verdict.says


def test_the_best_constant_of_a_gaussian_has_the_variance_of_its_velocity(start):
    pairs = read(open_coupling(start / "data"))
    expected = (1 + 1 + 1 + 0.25) / 2  # variances of source - target, a mean of two dimensions
    assert constant_loss(pairs, Linear()) == pytest.approx(expected, rel=0.05)
