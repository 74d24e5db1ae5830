"""Power averages through training: snapshots in the model, resumption, weights by length."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from flows.cli.sample import Draw, _solved
from flows.tracking.served import Sampler
from fmcore.coupling.source import Source
from fmcore.network.power import PowerEma
from fmcore.network.store import load
from fmcore.sampling.flow import Flow
from fmcore.settings import ReflowError, derive_seed
from fmcore.solve.solver import Solver
from fmcore.train import Train
from tests.chains import two_dimensions
from tests.fmcore.training.test_train import Killed, run

SETTINGS = Train(
    steps=120, batch=32, lr=5e-3, log_every=10, checkpoint_every=40, warmup=5, power_ema=PowerEma()
)


def _samples(model, data, wanted):
    """Return samples in the data's own units, and the evaluations for each."""
    found, loaded, _ = _solved(model, data, wanted)
    return loaded.scale.inverse(found.x), found.nfe


@pytest.fixture
def start(tmp_path):
    return two_dimensions(tmp_path)


def stopping_at(step):
    def kill(values, now):
        if now >= step and "loss" in values:
            raise Killed

    return kill


def vector(model):
    return torch.cat([p.flatten() for p in model.network.parameters()]).double()


def test_a_killed_training_keeps_the_same_snapshots_to_the_last_bit(start):
    whole = run(start, "whole", SETTINGS)
    snapshots = sorted(str(name) for name in whole if "power" in str(name))
    assert len(snapshots) == 16 and snapshots[-1].endswith("step_000000120.safetensors")
    with pytest.raises(Killed):
        run(start, "killed", SETTINGS, log=stopping_at(70))
    assert run(start, "killed", SETTINGS) == whole
    plain = run(start, "plain", SETTINGS.model_copy(update={"power_ema": None}))
    name = next(name for name in whole if str(name).endswith("model.safetensors"))
    assert plain[name] == whole[name]  # they change nothing else


def test_weights_of_any_length_are_those_of_an_average_that_was_tracked(start):
    run(start, "two", SETTINGS)
    for sigma in (0.05, 0.07, 0.15, 0.2):
        direct = PowerEma(sigma_rel=(sigma,), snapshots=1)
        run(start, f"{sigma}", SETTINGS.model_copy(update={"power_ema": direct}))
        tracked = vector(load(start / f"{sigma}" / "model", weights=sigma))
        made = load(start / "two" / "model", weights=sigma)
        moved = float((tracked - vector(load(start / "init"))).norm())
        assert float((vector(made) - tracked).norm()) < 0.01 * moved
    assert made.digest != load(start / "two" / "model").digest
    assert made.digest != load(start / "two" / "model", weights=0.15).digest


def test_samples_and_the_served_model_take_the_weights_that_were_scored(start):
    run(start, "own", SETTINGS)
    model = start / "own" / "model"
    sampler = Sampler()
    sampler.load_context(SimpleNamespace(artifacts={"model": str(model)}))
    found = {}
    for weights, own in (("ema", "ema"), ("raw", "raw"), ("0.1", 0.1)):
        x, _ = _samples(model, start / "data", Draw(nfe=2, count=5, weights=weights))
        noise = Source((2,)).draw(derive_seed(0, "sample"), np.arange(5))
        flow = Flow.of(load(model, weights=own))
        assert torch.equal(x, flow.sample(noise, Solver(name="euler", steps=2)).x)
        asked = {"seed": 0, "count": 5, "nfe": 2, "weights": weights}
        served = sampler.predict(None, np.zeros((0, 1), np.float32), asked)
        assert torch.equal(torch.from_numpy(served), x)
        found[weights] = x
    assert not torch.equal(found["ema"], found["raw"])
    assert not torch.equal(found["raw"], found["0.1"])
    for wrong in ("avarage", "0.5"):
        with pytest.raises(ReflowError, match=f"weights '{wrong}': expected ema, raw, or the"):
            _samples(model, start / "data", Draw(weights=wrong))


def test_weights_that_cannot_be_had_are_one_line(start):
    few = PowerEma(snapshots=2)
    run(start, "few", SETTINGS.model_copy(update={"power_ema": few}))
    with pytest.raises(ReflowError, match="make its profile to 45% only"):
        load(start / "few" / "model", weights=0.2)
    with pytest.raises(ReflowError, match="this model kept none; set train.power_ema"):
        load(start / "init", weights=0.1)
    file = next((start / "few" / "model" / "power").iterdir())
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    with pytest.raises(ReflowError, match="damaged"):
        load(start / "few" / "model", weights=0.1)


def test_a_continued_training_keeps_snapshots_from_there_on(start):
    with pytest.raises(Killed):
        run(start, "stopped", SETTINGS, log=stopping_at(70))
    before = start / "stopped" / "scratch"
    lower = SETTINGS.model_copy(update={"lr": 1e-3})
    run(start, "again", lower, continued=before)
    model = load(start / "again" / "model", weights=0.05)
    assert min(model.config["power_ema"]["steps"]) > 40
    other = SETTINGS.model_copy(update={"power_ema": PowerEma(sigma_rel=(0.2,))})
    with pytest.raises(ReflowError, match="kept no such power averages"):
        run(start, "other", other, continued=before)
