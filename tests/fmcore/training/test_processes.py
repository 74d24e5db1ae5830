"""Two and four processes that train together: one process's loss, each reading its own rows."""

import json
import shutil

import pytest
import torch
from torch.multiprocessing.spawn import spawn

from fmcore.coupling.read import open_coupling
from fmcore.matching.loss import flow_matching_loss
from fmcore.matching.maps import Batch
from fmcore.network.build import build
from fmcore.network.images import DiT, UNet
from fmcore.network.mlp import MLP
from fmcore.settings import ReflowError
from fmcore.tensors import independent
from fmcore.train import Train
from fmcore.training.batch import Optimal
from fmcore.training.batches import batches, longest, shuffled_batches
from fmcore.training.fit import fit, new_state
from fmcore.training.processes import ALONE
from fmcore.training.recompute import recompute_blocks
from tests.chains import SMALL
from tests.together import free_port, start, stored, together, train_as, trained  # noqa: F401

SHORT = Train(steps=12, batch=32, log_every=3, checkpoint_every=6, lr=3e-3, warmup=2)


def short(**changes):
    return Train(**{**SHORT.model_dump(exclude_unset=True), **changes})


JOBS = [
    ("prepared", "prepared", short(steps=60)),  # more than one epoch
    ("paired", "prepared", short(pairing=Optimal(name="optimal"))),
    ("dropped", "pairs", short(drop_longest=0.25)),
    ("pieces", "pairs", short(accumulate=3, recompute=True)),
    ("mean_flow", "pairs", short(objective="mean_flow", accumulate=2)),
]


@pytest.mark.parametrize("size", [2, 4])
def test_the_loss_is_that_of_one_process_and_each_reads_its_share(start, size):  # noqa: F811
    found = together(start, size, JOBS)
    for name, data, settings in JOBS:
        losses, notes = found[name]
        alone = settings.model_copy(update={"accumulate": 1, "recompute": False})
        assert losses == pytest.approx(trained(start, start / name, data, alone), rel=1e-5)
        # The first also reads what the held-out loss needs, and some pairs to tell divergence by.
        whole, split = (stored(start / data, columns) for columns in (None, ["split"]))
        share = (3 * whole if settings.drop_longest else whole + split) / size
        for note in notes[1:]:
            assert note["bytes"] == pytest.approx(share, rel=0.05)
            assert note["said"] == []
        assert any("mean_flow" in line for line in notes[0]["said"]) == (name == "mean_flow")


def _resumed(rank, size, port, folder, jobs):
    """Train, then train again from the checkpoint before the last one."""
    train_as(rank, size, port, folder, jobs)
    if rank == 0:  # the others wait for it where they join the group
        for name, *_ in jobs:
            again = folder / f"{name}-again-{size}" / "scratch"
            shutil.copytree(folder / f"{name}-{size}" / "scratch", again)
            if (again / "divided").exists():
                shutil.rmtree(again / "divided" / "000000000012")
            else:
                (again / "earlier.safetensors").replace(again / "checkpoint.safetensors")
    train_as(rank, size, port + 10, folder, [(f"{n}-again", d, s) for n, d, s in jobs])


def test_a_killed_training_of_four_goes_on_with_the_same_bytes(start):  # noqa: F811
    jobs = [
        (name, "pairs", short(processes=4, shard=name, steps=12, checkpoint_every=6))
        for name in ("replicate", "full")
    ]
    for name, *_ in jobs:
        (start / f"{name}-4").mkdir()
    spawn(_resumed, (4, free_port(), start, jobs), nprocs=4)
    for name, *_ in jobs:
        note = json.loads((start / f"{name}-again-4" / "read-0.json").read_text())
        assert note["resumed"] == [6]
        for file in ("model/model.safetensors", "model/raw.safetensors", "c.csv"):
            one, two = (start / f"{n}-4" / file for n in (name, f"{name}-again"))
            assert one.read_bytes() == two.read_bytes(), file


def _rows(rank, size, meet, folder):
    """Check what a process holds of a coupling, and what it gets of a batch."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=meet, rank=rank, world_size=size)
    from fmcore.training.processes import Group

    group = Group(rank, size)
    part = slice(20 // size * rank, 20 // size * (rank + 1))
    memory = 24_000  # three windows, the last with fewer row groups than processes
    for name in ("pairs", "prepared"):
        coupling = open_coupling(folder / name)
        assert longest(coupling, 0.25, group) == longest(coupling, 0.25)
        streams = [
            batches(coupling, batch=20, seed=3, start=5, memory=memory, group=g, whole=whole)
            for g, whole in ((ALONE, False), (group, False), (group, True))
        ]
        for _, one, own, whole in zip(range(60), *streams):
            for name, value in one.tensors().items():
                assert torch.equal(own.tensors()[name][part], value[part]), name
                assert torch.equal(whole.tensors()[name], value), name
            assert float(own.target.abs().sum()) < float(one.target.abs().sum())
    torch.distributed.destroy_process_group()


def test_each_gets_the_rows_of_its_part_in_any_window(start):  # noqa: F811
    spawn(_rows, (4, f"file://{start / 'meet'}", start), nprocs=4)


def weights_after(settings, network=SMALL, shape=(2,)):
    """Train some steps in memory; return the losses and the weights."""
    torch.set_num_threads(1)
    target = torch.randn(64, *shape, generator=torch.Generator().manual_seed(0))
    state = new_state(build(network, shape, seed=0), settings)
    stream = shuffled_batches(independent(target), batch=settings.batch, seed=0)
    losses = [float(done.loss) for done in fit(state, stream, settings, seed=0)]
    return losses, torch.cat([p.detach().flatten() for p in state.network.parameters()])


@pytest.mark.parametrize("pieces", [2, 5, 32])
def test_pieces_give_the_step_of_the_whole_batch(pieces):
    whole, weights = weights_after(SHORT)
    found, cut = weights_after(short(accumulate=pieces))
    assert found == pytest.approx(whole, rel=1e-6)
    torch.testing.assert_close(cut, weights, rtol=1e-4, atol=1e-6)


UNET = UNet(name="unet", channels=(8, 8), blocks=1, attend=(1,), head=4)
DIT = DiT(name="dit", heads=2, head=8, depth=2)


@pytest.mark.parametrize(("network", "shape"), [(SMALL, (2,)), (UNET, (1, 8, 8)), (DIT, (1, 8, 8))])
def test_recomputing_keeps_less_and_gives_the_same_gradient(network, shape):
    def kept_and_gradient(recompute):
        torch.set_num_threads(1)
        made = build(network, shape, seed=0).train()
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():  # blocks whose last layer is 0 would have no gradient inside
            for p in made.parameters():
                p += 0.05 * torch.randn(p.shape, generator=generator)
        if recompute:
            recompute_blocks(made)
            recompute_blocks(made)
        x = torch.randn(2, 16, *shape, generator=generator)
        saved = []
        own = {p.data_ptr() for p in made.parameters()}

        def keep(tensor):
            saved.append(0 if tensor.data_ptr() in own else tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            loss = flow_matching_loss(made, Batch(x[0], x[1], torch.linspace(0.1, 0.9, 16)))[0]
        loss.mean().backward()
        return sum(saved), [p.grad for p in made.parameters()]

    kept, gradients = kept_and_gradient(False)
    fewer, again = kept_and_gradient(True)
    assert fewer < 0.7 * kept
    for a, b in zip(again, gradients):
        assert (a is None and b is None) or torch.allclose(a, b, rtol=1e-5, atol=1e-7)


def test_fewer_pairs_than_processes_is_one_line():
    from fmcore.training.processes import Group

    some = torch.zeros(3, 2)
    with pytest.raises(ReflowError, match=r"^3 training pairs for 4 processes; lower"):
        Group(0, 4).part(Batch(some, some, torch.zeros(3)))


def test_a_forward_product_is_not_recomputed():
    with pytest.raises(ReflowError, match=r"^train\.recompute: .* forward-mode product"):
        weights_after(short(objective="mean_flow", recompute=True))


def test_the_network_of_a_user_has_blocks_too():
    made = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.ModuleList([torch.nn.Linear(2, 2)]))
    from fmcore.training.recompute import blocks_of

    assert [type(b) for b in blocks_of(made)] == [torch.nn.Linear]
    assert len(blocks_of(build(MLP(width=8, depth=3), (2,), seed=0))) == 3
