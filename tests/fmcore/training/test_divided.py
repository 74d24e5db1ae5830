"""Weights divided among processes: one process's loss, and checkpoints that any number reads."""

import shutil
from functools import partial

import pytest
import torch
from torch.multiprocessing.spawn import spawn

from fmcore.matching.maps import Batch
from fmcore.network.build import build, with_spans
from fmcore.network.images import DiT, UNet
from fmcore.network.power import PowerEma
from fmcore.network.store import load
from fmcore.settings import ReflowError
from fmcore.train import Train
from fmcore.training import divided
from fmcore.training.checkpoint import CONTINUED, load_state, save_state
from fmcore.training.divided import gather, keep, resume, states
from fmcore.training.fit import new_state
from fmcore.training.gradient import network_of
from fmcore.training.processes import Group
from fmcore.work.compute import Compute
from tests.chains import SMALL
from tests.together import start, together, trained  # noqa: F401

FULL = Train(steps=16, batch=32, log_every=2, checkpoint_every=4, lr=3e-3, warmup=2, shard="full")


def full(**changes):
    return FULL.model_copy(update=changes)


def test_two_train_as_one_and_four_or_one_go_on(start):  # noqa: F811
    plain = full(shard="replicate", power_ema=PowerEma(snapshots=2))
    whole = trained(start, start / "whole", "pairs", plain)
    stopped = full(steps=16, power_ema=PowerEma(snapshots=2), accumulate=2, recompute=True)
    found, _ = together(start, 2, [("run", "pairs", stopped)])["run"]
    assert found == pytest.approx(whole, rel=1e-5)
    for weights in ("ema", "raw", 0.1):
        one = load(start / "whole" / "model", weights=weights).network.state_dict()
        two = load(start / "run-2" / "model", weights=weights).network.state_dict()
        for name, value in one.items():
            torch.testing.assert_close(two[name], value, rtol=1e-3, atol=1e-5)
    kept = start / "run-2" / "scratch"
    assert sorted(p.name for p in (kept / "divided").iterdir()) == ["000000000012", "000000000016"]
    assert len(list((kept / "divided" / "000000000012").glob("*.safetensors"))) == 2
    shutil.rmtree(kept / "divided" / "000000000016")  # as if it had been killed after step 12
    for name, size in (("again", 4), ("alone", 1)):
        shutil.copytree(kept, start / f"{name}-{size}" / "scratch")
    again, notes = together(start, 4, [("again", "pairs", stopped)])["again"]
    assert again == pytest.approx(whole, rel=1e-5)
    assert [note["resumed"] for note in notes] == [[12], [], [], []]
    resumed = []
    alone = trained(start, start / "alone-1", "pairs", stopped, resumed=resumed)
    assert alone == pytest.approx(whole, rel=1e-5) and resumed == [12]


NETWORKS = [
    (DiT(name="dit", heads=2, head=8, depth=2), (1, 8, 8)),
    (UNet(name="unet", channels=(8, 8), blocks=1, attend=(1,), head=4), (1, 8, 8)),
    (SMALL, (3,)),
]


def _made(network, shape, objective):
    made = build(network, shape, seed=0)
    made = with_spans(made) if objective == "mean_flow" else made
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in made.parameters():
            p += 0.05 * torch.randn(p.shape, generator=generator)
    x = torch.randn(2, 8, *shape, generator=generator)
    span = torch.full((8,), 0.1) if objective == "mean_flow" else None
    return made, Batch(x[0], x[1], torch.linspace(0.2, 0.9, 8), span=span)


def _gradient(made, batch, group, **settings):
    given = Train(steps=1, **settings)
    state = states(made, given, group)[0]
    error, found = network_of(state.network, given, Compute(), group).gradients(batch)
    for weight, own in zip((w for w in state.network.parameters() if w.grad is not None), found):
        full = getattr(weight.grad, "full_tensor", lambda w=weight: w.grad)
        assert group.divided or own is weight.grad
        yield full().clone()
    yield error.clone()


def _compared(rank, size, meet):
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=meet, rank=rank, world_size=size)
    for network, shape in NETWORKS:
        for objective in ("velocity", "mean_flow") if len(shape) == 1 else ("velocity",):
            alone = list(_gradient(*_made(network, shape, objective), Group(), objective=objective))
            for whole in (False, True):
                for more in ({}, {"recompute": objective != "mean_flow", "accumulate": 2}):
                    group = Group(rank, size, divided=whole)
                    made, batch = _made(network, shape, objective)
                    found = list(_gradient(made, batch, group, objective=objective, **more))
                    assert len(found) == len(alone)
                    for a, b in zip(found, alone):
                        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
    torch.distributed.destroy_process_group()


def test_the_gradient_of_every_network_is_that_of_one_process(tmp_path):
    spawn(_compared, (2, f"file://{tmp_path / 'meet'}"), nprocs=2)


@pytest.fixture
def group(tmp_path):
    """A group of this process alone that divides its state nevertheless."""
    where = f"file://{tmp_path / 'meet'}"
    torch.distributed.init_process_group("gloo", init_method=where, rank=0, world_size=1)
    yield Group(0, 1, divided=True)
    torch.distributed.destroy_process_group()


def stepped(group, steps):
    """Return the states after some steps whose gradients are drawn."""
    state, whole = states(build(SMALL, (2,), seed=0), FULL, group)
    return advance(state, steps), whole


def advance(state, steps):
    for _ in range(steps):
        generator = torch.Generator().manual_seed(state.step)
        for p in state.network.parameters():
            p.grad = torch.zeros_like(p)
            getattr(p.grad, "to_local", lambda g=p.grad: g)().normal_(generator=generator)
        state.optimizer.step()
        state.ema.update_parameters(state.network)
        state.to_step(state.step + 1)
        state.history.append({"step": float(state.step), "loss": 1.0})
    return state


def numbers(state, whole, group):
    found = gather(state, whole, group)
    moments = [v for slot in state.optimizer.state.values() for v in slot.values()]
    moments = [getattr(m, "full_tensor", lambda m=m: m)().flatten() for m in moments]
    weights = [v.flatten() for m in (found.network, found.ema) for v in m.state_dict().values()]
    return torch.cat([v.double() for v in (*weights, *moments)]), state.step, list(state.history)


def same(a, b):
    return torch.equal(a[0], b[0]) and a[1:] == b[1:]


class Killed(BaseException):
    """Stands for SIGKILL: nothing in the code under test may catch it."""


def dying(real, left, *args, **kwargs):
    left[0] -= 1
    if left[0] < 0:
        raise Killed
    return real(*args, **kwargs)


def test_killed_at_any_moment_the_last_or_the_one_before_it_is_there(group, tmp_path, monkeypatch):
    state, whole = stepped(group, 1)
    keep(tmp_path / "a", state, group)
    first = numbers(state, whole, group)
    second = numbers(advance(state, 1), whole, group)
    seen = set()
    for at in range(100):
        folder, left = tmp_path / f"killed-{at}", [at]
        shutil.copytree(tmp_path / "a", folder)
        with monkeypatch.context() as m:
            for name in ("sha256", "sync", "commit", "sealed", "_tensors"):
                m.setattr(divided, name, partial(dying, getattr(divided, name), left))
            m.setattr(shutil, "rmtree", partial(dying, shutil.rmtree, left))
            try:
                keep(folder, state, group)
                done = True
            except Killed:
                done = False
        found, into = stepped(group, 0)
        assert resume(folder, found, group)
        got = numbers(found, into, group)
        assert same(got, second) if done else (same(got, first) or same(got, second))
        seen.add(found.step)
        if done:
            break
        keep(folder, found, group)  # what was left does not disturb the next one
        assert resume(folder, stepped(group, 0)[0], group)
    assert done and seen == {1, 2} and at > 4


def test_a_damaged_checkpoint_is_told_removed_and_the_one_before_it_taken(group, tmp_path, capsys):
    state, whole = stepped(group, 1)
    keep(tmp_path, state, group)
    first = numbers(state, whole, group)
    keep(tmp_path, advance(state, 1), group)
    folders = sorted((tmp_path / "divided").iterdir())
    file = next(folders[1].glob("*.safetensors"))
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    found, into = stepped(group, 0)
    assert resume(tmp_path, found, group) and same(numbers(found, into, group), first)
    said = capsys.readouterr().out
    assert said.count("\n") == 1 and "damaged and removed" in said and "before it is tried" in said
    assert not folders[1].exists()
    (folders[0] / "note.json").write_text("{")
    found = stepped(group, 0)[0]
    assert not resume(tmp_path, found, group) and found.step == 0
    assert "it starts over" in capsys.readouterr().out


def test_either_kind_of_checkpoint_is_continued_by_the_other(group, tmp_path):
    state, whole = stepped(group, 3)
    keep(tmp_path / "a" / CONTINUED, state, group)
    expected = numbers(state, whole, group)[0]
    plain = new_state(build(SMALL, (2,), seed=0), FULL.model_copy(update={"lr": 1e-4}))
    assert resume(tmp_path / "a", plain, Group())
    assert torch.equal(numbers(plain, plain, Group())[0], expected)
    (told,) = plain.continued
    assert told["step"] == 3 and told["before"] == {"lr": 3e-3}
    save_state(tmp_path / "b" / CONTINUED, plain)
    back, into = stepped(group, 0)
    assert resume(tmp_path / "b", back, group)
    assert torch.equal(numbers(back, into, group)[0], expected) and len(back.continued) == 2
    other = new_state(build(SMALL.model_copy(update={"width": 16}), (2,), seed=0), FULL)
    with pytest.raises(ReflowError, match=r"^continue: .* does not fit this round"):
        resume(tmp_path / "a", other, Group())
    assert not load_state(tmp_path / "a", other)
    deeper, averaged = SMALL.model_copy(update={"depth": 3}), full(power_ema=PowerEma(snapshots=2))
    for network, settings in ((deeper, FULL), (SMALL, averaged)):
        more = states(build(network, (2,), seed=0), settings, group)[0]
        with pytest.raises(ReflowError, match=r"^continue: .*it has no (network|power)"):
            resume(tmp_path / "b", more, group)
