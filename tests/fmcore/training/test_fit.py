"""The optimiser of a round: warm-up, cosine, clipping, and the mean over processes."""

import itertools
import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.multiprocessing.spawn import spawn

from fmcore.matching.maps import Batch
from fmcore.network.build import build
from fmcore.network.images import DiT
from fmcore.network.own import OwnNetwork
from fmcore.tensors import independent
from fmcore.training.batches import shuffled_batches
from fmcore.training.checkpoint import load_state, save_state
from fmcore.training.fit import Train, clip, fit, new_state
from fmcore.training.processes import Group
from tests.chains import SMALL


def steps(settings, count, *, scale=1.0):
    """Yield (learning rate of the step, the step, gradients) of a small training."""
    torch.set_num_threads(1)
    target = scale * torch.randn(256, 2, generator=torch.Generator().manual_seed(0))
    state = new_state(build(SMALL, (2,), seed=0), settings)
    stream = shuffled_batches(independent(target), batch=settings.batch, seed=0)
    rate = state.optimizer.param_groups[0]["lr"]
    for done in itertools.islice(fit(state, stream, settings, seed=0), count):
        yield rate, done, [p.grad for p in state.network.parameters()]
        rate = state.optimizer.param_groups[0]["lr"]


def test_the_learning_rate_rises_over_the_warm_up_and_falls_by_a_cosine():
    settings = Train(steps=40, batch=32, lr=1e-3, warmup=9)
    rates = [rate for rate, _, _ in steps(settings, 40)]
    cosine = [0.5 * (1 + math.cos(math.pi * k / 40)) for k in range(40)]
    rise = [min(1.0, (k + 1) / 10) for k in range(40)]
    assert rates == pytest.approx([1e-3 * c * r for c, r in zip(cosine, rise, strict=True)])
    assert rates[0] == pytest.approx(1e-4)


def test_without_warm_up_the_first_rate_is_the_peak():
    assert next(steps(Train(steps=40, batch=32, lr=1e-3, warmup=0), 1))[0] == pytest.approx(1e-3)


def test_gradients_are_clipped_to_the_norm_and_their_own_norm_is_reported():
    settings = Train(steps=5, batch=32, clip=0.01)
    for _, done, gradients in steps(settings, 5, scale=10.0):
        norm = torch.linalg.vector_norm(torch.cat([g.flatten() for g in gradients]))
        assert float(norm) == pytest.approx(0.01, rel=1e-3)
        assert float(done.grad_norm) > 0.1


def test_a_small_gradient_is_left_alone():
    for _, done, gradients in steps(Train(steps=2, batch=32, clip=1e6), 2):
        norm = torch.linalg.vector_norm(torch.cat([g.flatten() for g in gradients]))
        assert float(norm) == pytest.approx(float(done.grad_norm), rel=1e-5)


class Dropping(OwnNetwork):
    """A layer whose dropout is a function, no module that anybody would find."""

    def __init__(self, shape, classes=0):
        super().__init__(shape, classes)
        self.layer = nn.Linear(64, 64)

    def forward(self, x, t, label=None):
        """Return the velocity."""
        kept = nn.functional.dropout(x.flatten(1), 0.2, self.training)
        return self.layer(kept).view_as(x)


def dropping(kind):
    if kind == "module":
        chosen = DiT(name="dit", heads=2, head=8, depth=1, patch=4, dropout=0.2)
        return build(chosen, (1, 8, 8), seed=0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = Dropping((1, 8, 8))
    network.settings = SimpleNamespace(classes=0)
    return network


@pytest.mark.parametrize("kind", ["module", "function"])
def test_dropout_is_a_function_of_seed_step_and_rank(kind, tmp_path):
    settings = Train(steps=4, batch=16, warmup=0)
    pairs = independent(torch.randn(64, 1, 8, 8, generator=torch.Generator().manual_seed(0)))

    def trained(seed=0, *, stop=4, resumed=False, rank=0):
        torch.manual_seed(1234 + stop)
        state = new_state(dropping(kind), settings)
        if resumed:
            load_state(tmp_path, state)
        stream = shuffled_batches(pairs, batch=16, seed=0, start=state.step)
        group = Group(rank=rank)
        for _ in itertools.islice(fit(state, stream, settings, seed=seed, group=group), stop):
            pass
        if stop < 4 and not resumed:
            save_state(tmp_path, state)
        return torch.cat([p.detach().flatten() for p in state.network.parameters()])

    whole = trained()
    trained(stop=2)
    assert torch.equal(trained(stop=2, resumed=True), whole)
    assert not torch.equal(trained(rank=1), whole)


@pytest.mark.parametrize("longest", [0.1, 1e3])
def test_clipping_is_that_of_torch(longest):
    generator = torch.Generator().manual_seed(0)
    given = [torch.randn(shape, generator=generator) for shape in ((7, 3), (5,), (1, 1))]
    theirs = [torch.nn.Parameter(torch.zeros_like(g)) for g in given]
    for p, g in zip(theirs, given, strict=True):
        p.grad = g.clone()
    norm = torch.nn.utils.clip_grad_norm_(theirs, longest)
    assert torch.equal(clip(given, longest), norm)
    assert all(torch.equal(g, p.grad) for g, p in zip(given, theirs, strict=True))


def trained(folder, *, fused, resumed=None):
    """Train 20 steps, from a checkpoint in `resumed` if there is one; keep one, return weights."""
    torch.set_num_threads(1)
    settings = Train(steps=40, batch=32, lr=1e-3)
    state = new_state(build(SMALL, (2,), seed=0), settings)
    state.optimizer.param_groups[0].update(fused=fused, foreach=not fused)
    if resumed:
        assert load_state(resumed, state)
    target = torch.randn(256, 2, generator=torch.Generator().manual_seed(0))
    stream = shuffled_batches(independent(target), batch=32, seed=0, start=state.step)
    for _ in itertools.islice(fit(state, stream, settings, seed=0), 20):
        pass
    save_state(folder, state)
    return state, torch.cat([p.detach().flatten() for p in state.network.parameters()])


def test_the_optimiser_is_fused_and_continues_what_an_unfused_one_began(tmp_path):
    """Versions before this one kept checkpoints of an unfused one."""
    assert new_state(build(SMALL, (2,), seed=0), Train(steps=1)).optimizer.defaults["fused"]
    _, unfused = trained(tmp_path / "old", fused=False)
    state, after = trained(tmp_path / "new", fused=True, resumed=tmp_path / "old")
    _, never = trained(tmp_path / "never", fused=False, resumed=tmp_path / "old")
    assert state.step == 40 and state.optimizer.param_groups[0]["fused"]
    moved = float((never - unfused).norm())
    assert moved > 1e-2 and float((after - never).norm()) < 1e-4 * moved
    _, again = trained(tmp_path / "again", fused=True, resumed=tmp_path / "old")
    assert torch.equal(after, again)


def _averaged(rank, address):
    torch.distributed.init_process_group("gloo", init_method=address, rank=rank, world_size=2)
    first, second = torch.full((3,), float(rank)), torch.tensor([[1.0 + 4 * rank]])
    Group(rank, 2).average([first, None, second])
    assert first.tolist() == [0.5] * 3 and second.tolist() == [[3.0]]
    torch.distributed.destroy_process_group()


def test_processes_average_and_do_not_add(tmp_path):
    spawn(_averaged, (f"file://{tmp_path / 'meet'}",), nprocs=2)


@pytest.mark.parametrize("size", [1, 2, 3])
def test_processes_share_a_batch_without_overlap(size):
    """Each one taking all rows would give the same mean, at `size` times the work."""
    rows = torch.arange(6.0)
    batch = Batch(rows[:, None], -rows[:, None], rows, label=rows.long())
    parts = [Group(rank, size).part(batch) for rank in range(size)]
    assert [len(part.t) for part in parts] == [6 // size] * size
    for name in ("target", "source", "t", "label"):
        whole = torch.cat([getattr(part, name) for part in parts])
        assert torch.equal(whole, getattr(batch, name))
    assert all(part.span is None for part in parts)
