"""Settings that change how a network is computed: the same velocity, and still the same bytes."""

import shutil

import numpy as np
import pytest
import torch

from fmcore.couple import Couple, couple
from fmcore.coupling.read import open_coupling, read
from fmcore.coupling.write import About, finish, table, write_shard
from fmcore.network.build import build
from fmcore.network.images import DiT, UNet
from fmcore.network.mlp import MLP
from fmcore.network.store import load, save
from fmcore.sampling.flow import Flow
from fmcore.solve.solver import Solver
from fmcore.tensors import independent
from fmcore.train import Train
from fmcore.training.batches import shuffled_batches
from fmcore.training.fit import fit, new_state
from fmcore.training.gradient import network_of
from fmcore.training.processes import ALONE
from fmcore.work.compute import Compute, numerics, rows_of_call
from fmcore.work.executor import IN_PROCESS, Executor
from fmcore.work.graphs import MOST, Graphed, GraphedGradient
from fmcore.work.work import Work

SHAPE = (3, 8, 8)
UNET = UNet(name="unet", channels=(8, 16), attend=(1,), head=4)
DIT = DiT(name="dit", heads=2, head=8, depth=1)
LAST = Compute(threads=1, channels_last=True)
CPU = torch.device("cpu")
X = torch.randn(40, *SHAPE, generator=torch.Generator().manual_seed(0))
T = torch.linspace(0.1, 0.9, 40)


def gradients(call, network):
    network.zero_grad()
    call(X, T).square().mean().backward()
    return {name: p.grad.clone() for name, p in network.named_parameters()}


@pytest.mark.parametrize("settings", [UNET, DIT])
def test_channels_last_is_the_same_function(settings):
    network = build(settings, SHAPE, seed=1)
    strides = {name: p.stride() for name, p in network.named_parameters()}
    seen = []
    kernel = next(m for m in network.modules() if isinstance(m, torch.nn.Conv2d))
    kernel.register_forward_hook(lambda m, given, out: seen.append(m.weight.stride()))
    last = LAST.running(network)
    torch.testing.assert_close(last(X, T), network(X, T), rtol=1e-4, atol=1e-5)
    assert seen[0] != seen[1] == kernel.weight.stride()
    found, plain = gradients(last, network), gradients(network, network)
    for name in plain:
        torch.testing.assert_close(found[name], plain[name], rtol=1e-3, atol=1e-5)
    assert {name: p.stride() for name, p in network.named_parameters()} == strides


@pytest.mark.parametrize(
    ("tile", "rows"), [(1, 32), (8, 256), (32, 1024), (256, 1024), (1024, 4096)]
)
def test_a_gpu_is_given_more_rows_a_call(tile, rows):
    assert rows_of_call(tile, torch.device("cuda")) == rows
    assert rows_of_call(tile, CPU) == tile


@pytest.mark.parametrize(("side", "tile"), [(8, 32), (32, 32), (64, 8), (128, 2), (256, 1)])
def test_a_call_has_fewer_large_images(side, tile):
    small = UNET.model_copy(update={"attend": ()})
    assert build(small, (1, side, side), seed=0).tile == tile


def test_a_network_without_convolutions_has_no_layout():
    network = build(MLP(width=16, depth=1), (2,), seed=0)
    assert LAST.running(network) is network


def test_a_training_in_channels_last_comes_close():
    pairs, settings = independent(X), Train(steps=5, batch=16)
    ends = []
    for compute in (Compute(threads=1), LAST):
        state = new_state(build(UNET, SHAPE, seed=0), settings)
        stream = shuffled_batches(pairs, batch=16, seed=0)
        for _ in fit(state, stream, settings, seed=0, compute=compute):
            pass
        ends.append(torch.cat([p.flatten() for p in state.network.parameters()]))
    assert float((ends[0] - ends[1]).detach().norm() / ends[0].detach().norm()) < 1e-3


@pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile needs a C++ compiler")
def test_channels_last_compiles():
    network = torch.nn.Conv2d(2, 2, 3).requires_grad_(False)
    compute = LAST.model_copy(update={"compile": True})
    x = torch.randn(4, 2, 5, 5)
    torch.testing.assert_close(compute.running(network)(x), network(x))


def test_numerics_name_what_is_set_and_nothing_that_is_not():
    assert {"channels_last", "cuda_graphs"}.isdisjoint(numerics(CPU, Compute()))
    assert numerics(CPU, LAST)["channels_last"] is True


@pytest.fixture
def start(tmp_path):
    torch.set_num_threads(1)
    about = About(kind="independent", shape=list(SHAPE), image=True, pairs=40, seed=0)
    write_shard(tmp_path / "data", 0, table(about, np.arange(40), X))
    finish(tmp_path / "data", about, 1)
    save(tmp_path / "model", build(UNET, SHAPE, seed=1).eval(), about={"round": "rf1"})
    return tmp_path


@pytest.mark.parametrize(
    ("compute", "workers", "bound"),
    [(LAST, 0, 1e-5), (LAST.model_copy(update={"precision": "bf16"}), 2, 0.05)],
)
def test_no_batch_shard_or_worker_changes_a_byte(start, compute, workers, bound):
    def sampled(name, compute=compute, executor=IN_PROCESS, **settings):
        work = Work(scratch=start / name / "s", compute=compute, executor=executor)
        given = Couple(**{"pairs": 40, "shard": 40, "solver": Solver(steps=1)} | settings)
        out = start / name / "out"
        couple(start / "model", start / "data", out, start / name / "m.json", given, work)
        return read(open_coupling(out)).target

    whole = sampled("whole")
    assert torch.equal(sampled("batch", batch=7), whole)
    assert torch.equal(sampled("shard", shard=13), whole)
    if workers:
        executor = Executor(kind="processes", workers=workers)
        assert torch.equal(sampled("workers", executor=executor, shard=20), whole)
    plain = sampled("plain", Compute(threads=1))
    assert float((whole - plain).norm() / plain.norm()) < bound


def made_again(call, held):
    """Stands for a graph: it computes into one memory, from what the held inputs then hold."""
    out = call(*held)

    def replay():
        out.copy_(call(*held))
        return out

    return replay


class OnCpu(Graphed):
    device = "cpu"


def test_replayed_calls_have_their_own_results():
    network, recorded = build(MLP(width=16, depth=1), (2,), seed=0), []

    def record(call, held):
        recorded.append([None if a is None else a.shape for a in held])
        return made_again(call, held)

    call = OnCpu(network, record)
    xs = [torch.randn(4, 2) for _ in range(3)]
    with torch.no_grad():
        for one in (torch.full((4,), 0.3), torch.tensor([0.7]).expand(4)):
            found = [call(x, one, None) for x in xs]
            for x, y in zip(xs, found):
                assert torch.equal(y, network(x, one, None))
        assert len(recorded) == 2  # one time for all rows is another call
        for rows in range(5, 5 + MOST):
            call(torch.randn(rows, 2), torch.full((rows,), 0.5))
        assert len(recorded) == MOST
    x = torch.randn(4, 2, requires_grad=True)
    call(x, torch.full((4,), 0.5), None).sum().backward()
    assert x.grad is not None


def replays_steps(call, held):
    """Stands for the graph of a step: it writes gradients into the memory they had at first."""
    out, kept = call(*held), [p.grad for p in STEP.parameters()]

    def replay():
        there = [p.grad for p in STEP.parameters()]
        assert all(a is b for a, b in zip(there, kept, strict=True))
        out.copy_(call(*held))
        for p, into in zip(STEP.parameters(), kept, strict=True):
            into.copy_(p.grad)
            p.grad = into
        return out

    return replay


STEP = build(MLP(width=16, depth=1), (2,), seed=0)


class StepOnCpu(GraphedGradient):
    device = "cpu"


def test_a_replayed_step_has_the_gradients_of_its_own_batch():
    def backward(x, t):
        loss = STEP(x, t, None).square().mean()
        loss.backward()
        return loss.detach()

    weights = list(STEP.parameters())
    step, errors = StepOnCpu(backward, weights, replays_steps), []
    for rows in (4, 4, 7, 4):  # one of another size, between two that are replayed
        x, t = torch.randn(rows, 2), torch.rand(rows)
        for p in weights:
            p.grad = None
        wanted = backward(x, t)
        own = [p.grad for p in weights]
        errors.append(step(x, t))
        assert torch.equal(errors[-1], wanted)
        assert all(torch.equal(p.grad, g) for p, g in zip(weights, own, strict=True))
    assert len({float(e) for e in errors}) == 4  # an error is no view of the next one


@pytest.mark.parametrize(
    ("settings", "dropout", "replayed"),
    [
        ({}, 0.0, True),
        ({"accumulate": 2}, 0.0, False),
        ({"objective": "mean_flow"}, 0.0, False),
        ({"loss": {"name": "perceptual"}}, 0.0, False),
        ({}, 0.1, False),
    ],
)
def test_only_steps_that_are_the_same_kernels_each_time_are_replayed(settings, dropout, replayed):
    network = build(UNET.model_copy(update={"dropout": dropout}), SHAPE, seed=0)
    given = Train(steps=2, batch=8, **settings)
    shared = network_of(network, given, Compute(cuda_graphs=True), ALONE)
    assert (shared.whole is not None) == replayed


def test_graphs_change_nothing_on_a_cpu(start):
    model = load(start / "model")
    ends = [
        Flow.of(model, c).sample(X, Solver(steps=2)).x
        for c in (Compute(), Compute(cuda_graphs=True))
    ]
    assert torch.equal(*ends)
