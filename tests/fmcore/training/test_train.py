"""Training: closed-form losses, bit-exact resumption, and what stops it."""

import csv
import json
import math
import shutil

import pytest
import torch

from fmcore.coupling.read import open_coupling, read
from fmcore.matching.interpolant import Linear
from fmcore.matching.loss import flow_matching_loss
from fmcore.matching.maps import Batch
from fmcore.network.field import Field
from fmcore.network.mlp import MLP
from fmcore.network.store import load
from fmcore.settings import ReflowError
from fmcore.train import Train, train
from fmcore.training.batches import batches
from fmcore.training.checkpoint import load_state
from fmcore.training.fit import fit, new_state
from fmcore.training.held_out import held_out_losses, held_out_sides
from fmcore.work.work import Work, unseen
from tests.chains import CPU, gaussian_data, scratch_model, silent, two_dimensions
from tests.oracles import gaussian_velocity, least_loss


class Killed(BaseException):
    """Stands for SIGKILL: nothing in the code under test may catch it."""


def run(tmp_path, name, settings, *, log=silent, data="data", seed=5, continued=None, look=unseen):
    out = tmp_path / name
    if continued:
        shutil.copytree(continued, out / "scratch" / "continued", dirs_exist_ok=True)
    train(
        tmp_path / data,
        tmp_path / "init",
        out / "model",
        out / "curve.csv",
        out / "metrics.json",
        settings,
        name="rf1",
        work=Work(scratch=out / "scratch", seed=seed, log=log, look=look),
    )
    files = [p for p in (out / "model").rglob("*") if p.is_file()]
    return {p.relative_to(out): p.read_bytes() for p in files} | {
        "curve": (out / "curve.csv").read_bytes(),
        "metrics": (out / "metrics.json").read_bytes(),
    }


@pytest.fixture
def start(tmp_path):
    return two_dimensions(tmp_path)


def test_the_exact_velocity_reaches_the_least_loss(start):
    """E||v* - u||^2 = (pi/2) sum s: no velocity does better on independent pairs."""
    gaussian_data(start / "many", mu=[2.0, -1.0], s=[1.0, 0.5], pairs=200_000)
    pairs = read(open_coupling(start / "many"))
    v = gaussian_velocity(torch.tensor([2.0, -1.0]), torch.tensor([1.0, 0.5]))
    t = (torch.randperm(len(pairs), generator=torch.Generator().manual_seed(0)) + 0.5) / len(pairs)
    loss = float(flow_matching_loss(v, Batch(pairs.target, pairs.source, t))[1]) * 2
    assert loss == pytest.approx(least_loss(1.0) + least_loss(0.5), rel=0.015)


def test_training_lowers_the_held_out_loss_towards_the_least(start):
    run(start, "a", Train(steps=600, lr=3e-3, warmup=10, ema=0.99, checkpoint_every=600))
    metrics = json.loads((start / "a" / "metrics.json").read_text())
    least = (least_loss(1.0) + least_loss(0.5)) / 2
    assert metrics["held_out_loss"] == pytest.approx(least, rel=0.15)
    assert metrics["held_out_ratio"] == pytest.approx(1, abs=0.2)
    untrained = held_out_losses(
        Field(load(start / "init").network, Linear()),
        held_out_sides(open_coupling(start / "data"), 4096),
        seed=5,
        device=CPU,
        limit=4096,
    )
    assert metrics["held_out_loss"] < 0.6 * untrained["held_out_loss"]


@pytest.mark.parametrize("kill_at", [25, 50, 130])
def test_a_killed_training_resumes_bit_for_bit(start, kill_at):
    settings = Train(steps=160, batch=32, log_every=10, checkpoint_every=50, warmup=20)
    whole = run(start, "whole", settings)

    def kill(values, step):
        if step >= kill_at and "loss" in values:
            raise Killed

    with pytest.raises(Killed):
        run(start, "killed", settings, log=kill)
    resumed_at = []
    again = run(start, "killed", settings, log=lambda v, s: None if v else resumed_at.append(s))
    assert again == whole
    assert resumed_at == ([kill_at // 50 * 50] if kill_at >= 50 else [])


@pytest.fixture
def stopped(start):
    """The checkpoint at step 50 of a training that was stopped."""

    def kill(values, step):
        if step >= 60 and "loss" in values:
            raise Killed

    settings = Train(steps=160, batch=32, log_every=10, checkpoint_every=50, warmup=20)
    with pytest.raises(Killed):
        run(start, "stopped", settings, log=kill)
    return settings, start / "stopped" / "scratch"


def test_a_training_continues_with_another_learning_rate_and_says_so(start, stopped):
    settings, folder = stopped
    lower = settings.model_copy(update={"lr": settings.lr / 10})
    found = run(start, "a", lower, continued=folder)
    (told,) = load(start / "a" / "model").config["continued"]
    assert (told["step"], told["before"]) == (50, {"lr": settings.lr})
    rows = list(csv.DictReader(found["curve"].decode().splitlines()))
    before = [float(r["lr"]) for r in rows if int(float(r["step"])) == 50]
    after = [float(r["lr"]) for r in rows if int(float(r["step"])) == 60]
    assert 0.08 * before[0] < after[0] < 0.1 * before[0]
    assert run(start, "b", lower, continued=folder) == found
    assert run(start, "fresh", lower) != found
    same = run(start, "same", settings, continued=folder)  # nothing changed: as if never stopped
    whole = run(start, "whole", settings)
    kept = [k for k in whole if str(k).endswith("safetensors") or k == "curve"]
    assert len(kept) == 3 and [same[k] for k in kept] == [whole[k] for k in kept]


def test_a_continued_training_that_is_killed_gives_the_same_bytes(start, stopped):
    settings, folder = stopped
    lower = settings.model_copy(update={"lr": settings.lr / 10})
    whole = run(start, "whole", lower, continued=folder)

    def kill(values, step):
        if step >= 120 and "loss" in values:
            raise Killed

    with pytest.raises(Killed):
        run(start, "killed", lower, log=kill, continued=folder)
    assert run(start, "killed", lower, continued=folder) == whole


def test_continuing_what_does_not_fit_is_one_line(start, stopped):
    settings, folder = stopped
    short = settings.model_copy(update={"steps": 50})
    with pytest.raises(ReflowError, match=r"is at step 50, and train\.steps is 50; raise"):
        run(start, "short", short, continued=folder)
    scratch_model(start / "init", dim=2, network=MLP(width=16, depth=1, time_features=16))
    with pytest.raises(ReflowError, match=r"^continue: .* does not fit this round \(.*\); remove"):
        run(start, "other", settings, continued=folder)
    (folder / "checkpoint.safetensors").write_bytes(b"no checkpoint")
    with pytest.raises(ReflowError, match="^continue: .* does not fit"):
        run(start, "damaged", settings, continued=folder)


def test_without_the_optimizer_state_resuming_would_differ(start):
    """The test above can fail: a checkpoint of weights alone gives another model."""
    settings = Train(steps=60, batch=32, warmup=0)

    def trained(restart):
        state = new_state(load(start / "init").network, settings)
        stream = batches(open_coupling(start / "data"), batch=32, seed=1)
        for done in fit(state, stream, settings, seed=1):
            if restart and done.step == 30:
                state.optimizer.state.clear()
        return state.network.state_dict()["leave.weight"]

    assert torch.equal(trained(False), trained(False))
    assert not torch.equal(trained(False), trained(True))


def steps_of(start, settings):
    """Train in this process; yield the state after each step."""
    state = new_state(load(start / "init").network, settings)
    stream = batches(open_coupling(start / "data"), batch=settings.batch, seed=1)
    for done in fit(state, stream, settings, seed=1):
        yield done, state


def test_the_learning_rate_warms_up_and_then_falls_to_zero(start):
    settings = Train(steps=40, batch=16, lr=1e-2, warmup=9)
    first = new_state(load(start / "init").network, settings).rate(0)
    lrs = [state.optimizer.param_groups[0]["lr"] for _, state in steps_of(start, settings)]
    assert first == pytest.approx(1e-2 / 10)
    assert lrs[:9] == sorted(lrs[:9]) and lrs[8] == max(lrs) == pytest.approx(9e-3, rel=0.05)
    assert lrs[9:] == sorted(lrs[9:], reverse=True) and lrs[-1] == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("clip", [1e-3, 1e3])
def test_a_gradient_is_clipped_to_its_norm_and_reported_before(start, clip):
    for done, state in steps_of(start, Train(steps=5, batch=16, clip=clip)):
        used = torch.stack([p.grad.norm() for p in state.network.parameters()]).norm()
        expected = min(float(done.grad_norm), clip)
        assert float(used) == pytest.approx(expected, rel=1e-3)
        assert float(done.grad_norm) > 1e-2


def test_a_stream_that_ends_ends_the_training(start):
    settings = Train(steps=40, batch=16)
    state = new_state(load(start / "init").network, settings)
    pairs = read(open_coupling(start / "data"), limit=16)
    assert [done.step for done in fit(state, iter([pairs] * 3), settings, seed=1)] == [1, 2, 3]
    state.step = 50
    assert list(fit(state, iter([pairs]), settings, seed=1)) == []


def test_a_torn_checkpoint_counts_as_none(start):
    settings = Train(steps=60, batch=32, log_every=10, checkpoint_every=20)
    whole = run(start, "whole", settings)
    scratch = start / "torn" / "scratch"
    scratch.mkdir(parents=True)
    (scratch / "checkpoint.safetensors").write_bytes(b"half a file")
    assert run(start, "torn", settings) == whole


def test_a_checkpoint_with_a_flipped_bit_gives_way_to_the_one_before(start, capsys):
    """The damage is in the averaged weights: it would go on into the model unseen."""
    settings = Train(steps=60, batch=32, log_every=10, checkpoint_every=20)
    whole = run(start, "whole", settings)
    shutil.rmtree(start / "whole" / "model")
    file = start / "whole" / "scratch" / "checkpoint.safetensors"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    assert run(start, "whole", settings) == whole
    said = capsys.readouterr().out
    assert said.count("\n") == 1 and "damaged and removed" in said
    state = new_state(load(start / "init").network, settings)
    for name in ("checkpoint", "earlier"):
        whole_file = start / "whole" / "scratch" / f"{name}.safetensors"
        whole_file.write_bytes(whole_file.read_bytes()[:-9])
    lines = []
    assert not load_state(start / "whole" / "scratch", state, lines.append)
    assert ["checkpoint before" in line for line in lines] == [True, False]
    assert state.step == 0


def test_the_seed_decides(start):
    settings = Train(steps=20, batch=32)
    assert run(start, "a", settings) == run(start, "b", settings)
    assert run(start, "a", settings) != run(start, "c", settings, seed=6)


def test_the_curve_is_a_table(start):
    run(start, "a", Train(steps=100, batch=32, log_every=20, checkpoint_every=50, warmup=10))
    rows = list(csv.DictReader((start / "a" / "curve.csv").open()))
    assert [int(r["step"]) for r in rows] == [20, 40, 50, 60, 80, 100]
    assert all(math.isfinite(float(r["loss"])) for r in rows)
    assert float(rows[-1]["held_out_loss"]) > 0
    assert float(rows[-1]["lr"]) == pytest.approx(0, abs=1e-9)


def test_a_diverging_training_stops_and_keeps_the_last_good_checkpoint(start):
    calm = Train(steps=400, batch=32, log_every=10, checkpoint_every=20, warmup=0)

    def poison(values, step):
        if step == 40 and "held_out_loss" in values:
            raise Killed

    with pytest.raises(Killed):
        run(start, "a", calm, log=poison)
    kept = (start / "a" / "scratch" / "checkpoint.safetensors").read_bytes()
    wild = calm.model_copy(update={"lr": 1e9, "clip": 1e9})
    with pytest.raises(
        ReflowError, match=r"(diverged|rose to).*lower train\.lr.*checkpoint is kept"
    ):
        run(start, "a", wild)
    assert (start / "a" / "scratch" / "checkpoint.safetensors").read_bytes() == kept
    assert not (start / "a" / "model").exists()


def test_a_model_of_another_shape_is_refused(start):
    gaussian_data(start / "three", mu=[0.0, 0.0, 0.0], s=[1.0, 1.0, 1.0], pairs=100)
    with pytest.raises(ReflowError, match=r"shape \[2\].*\[3\]"):
        run(start, "a", Train(steps=1), data="three")


def test_a_full_disk_is_one_line_that_names_the_file(start):
    blocked = start / "a" / "scratch"
    blocked.mkdir(parents=True)
    (blocked / ".checkpoint.safetensors.tmp").mkdir()  # what cannot be written to, even by root
    with pytest.raises(ReflowError, match=r"checkpoint\.safetensors\.tmp: cannot be written"):
        run(start, "a", Train(steps=10, batch=32))
