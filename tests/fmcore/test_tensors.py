"""Reflow on tensors in memory: the numbers of the verbs, without a project."""

import math
from dataclasses import replace

import pytest
import torch

import fmcore
from fmcore.couple import Couple, couple
from fmcore.coupling.verify import verify
from fmcore.scale import Scale
from fmcore.train import train
from fmcore.training.batch import Optimal
from fmcore.work.work import Work
from tests.chains import gaussian_data, scratch_model
from tests.oracles import gaussian_velocity, least_loss, straightness

MU, S = torch.tensor([2.0, -1.0]), torch.tensor([1.0, 0.5])
SMALL = fmcore.MLP(width=32, depth=1, time_features=8, norm="none")
SHORT = fmcore.Train(steps=60, batch=64, lr=5e-3, warmup=5, ema=0.9, log_every=20)


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


def gaussian(n=2000):
    return MU + S * torch.randn(n, 2, generator=torch.Generator().manual_seed(0))


def weights(flow):
    return flow.made_of[0].network.state_dict()


def test_two_rounds_on_tensors_straighten_the_paths():
    settings = fmcore.Train(steps=300, batch=256, lr=1e-2, warmup=10, ema=0.97)
    rf1 = fmcore.fit_flow(fmcore.independent(gaussian()), settings, network=SMALL)
    pairs = fmcore.rectify(rf1, 2000, fmcore.Solver(name="rk4", steps=8), seed=1)
    rf2 = fmcore.fit_flow(pairs, settings, init=rf1)
    bends = []
    for flow in (rf1, rf2):
        found = flow.sample(torch.randn(500, 2), fmcore.Solver(steps=16), keep_trajectory=True)
        bends.append(fmcore.straightness_rel(found.trajectory))
    assert bends[1] < 0.1 * bends[0]
    assert rf1.score and not rf2.score


def test_progress_is_told_to_a_callback_and_changes_nothing():
    said = []
    pairs, settings = fmcore.independent(gaussian(300)), fmcore.Train(steps=25, log_every=10)
    network = fmcore.MLP(width=8, depth=1)
    told = fmcore.fit_flow(
        pairs, settings, network=network, log=lambda values, step: said.append((step, values))
    )
    assert [step for step, _ in said] == [10, 20, 25] and all(v["loss"] > 0 for _, v in said)
    silent = fmcore.fit_flow(pairs, settings, network=network)
    torch.testing.assert_close(weights(told), weights(silent), rtol=0, atol=0)


def test_a_flow_fitted_in_memory_is_the_model_of_the_verb_to_the_bit(tmp_path):
    gaussian_data(tmp_path / "data", mu=MU.tolist(), s=S.tolist(), pairs=1000)
    scratch_model(tmp_path / "init", dim=2, network=SMALL)
    out = tmp_path / "model"
    train(
        tmp_path / "data", tmp_path / "init", out, tmp_path / "c.csv", tmp_path / "m.json", SHORT,
        name="rf1", work=Work(scratch=tmp_path / "scratch", seed=5),
    )  # fmt: skip
    pairs = fmcore.read_coupling(tmp_path / "data", split="train")
    start = fmcore.load_flow(tmp_path / "init")
    before = {k: v.clone() for k, v in weights(start).items()}
    flow = fmcore.fit_flow(pairs, SHORT, init=start, seed=5)
    for name, value in weights(fmcore.load_flow(out)).items():
        assert torch.equal(weights(flow)[name], value)
        assert torch.equal(weights(start)[name], before[name]), "the start must not be trained"


def test_rectified_pairs_are_those_of_the_verb_to_the_bit(tmp_path):
    gaussian_data(tmp_path / "data", mu=MU.tolist(), s=S.tolist(), pairs=100)
    scratch_model(tmp_path / "model", dim=2, network=SMALL)
    solver = fmcore.Solver(name="heun", steps=3)
    couple(
        tmp_path / "model", tmp_path / "data", tmp_path / "pairs", tmp_path / "m.json",
        Couple(pairs=300, solver=solver), Work(scratch=tmp_path / "scratch", seed=7),
    )  # fmt: skip
    stored = fmcore.read_coupling(tmp_path / "pairs")
    pairs = fmcore.rectify(fmcore.load_flow(tmp_path / "model"), 300, solver, seed=7)
    assert torch.equal(pairs.source, stored.source) and torch.equal(pairs.target, stored.target)


def test_guidance_in_pairs_stays_with_the_flow_that_learns_them(tmp_path):
    x, label = gaussian(100), torch.arange(100) % 2
    network = SMALL.model_copy(update={"classes": 2})
    once, short = fmcore.Solver(name="euler", steps=2), SHORT.model_copy(update={"steps": 2})
    rf1 = fmcore.fit_flow(fmcore.independent(x, label), short, network=network)
    pairs = fmcore.rectify(rf1, 100, once, label=label, guidance=2.0)
    rf2 = fmcore.fit_flow(pairs, short, init=rf1)
    further = fmcore.rectify(rf2, 100, once, label=label)
    fmcore.write_coupling(tmp_path / "pairs", further)
    rf3 = fmcore.fit_flow(fmcore.read_coupling(tmp_path / "pairs"), short, init=rf2)
    assert [flow.guided for flow in (rf1, rf2, rf3)] == [1.0, 2.0, 2.0]
    for flow in (rf2, rf3):
        with pytest.raises(fmcore.ReflowError, match="guidance 3: guidance 2 is in the pairs"):
            fmcore.rectify(flow, 100, once, label=label, guidance=3.0)
    assert fmcore.rectify(rf1, 100, once, label=label).guided == 1.0


def test_guidance_that_would_do_nothing_is_refused():
    once, label = fmcore.Solver(name="euler", steps=1), torch.arange(4) % 2
    plain = fmcore.Flow(lambda x, t: 0 * x, fmcore.Linear())
    with_classes = fmcore.Flow(lambda x, t, label: 0 * x, fmcore.Linear(), classes=2)
    for flow, given, says in (
        (plain, None, "no classes"), (plain, label, "no classes"), (with_classes, None, "no label"),
    ):  # fmt: skip
        with pytest.raises(fmcore.ReflowError, match=f"guidance 3 .* {says}"):
            fmcore.rectify(flow, torch.zeros(4, 2), once, label=given, guidance=3.0)
    found = fmcore.rectify(with_classes, torch.zeros(4, 2), once, label=label, guidance=3.0)
    assert found.guided == 3.0


def test_each_round_is_sampled_from_fresh_noise_unless_a_seed_is_given():
    once, short = fmcore.Solver(name="euler", steps=1), SHORT.model_copy(update={"steps": 2})
    rf1 = fmcore.fit_flow(fmcore.independent(gaussian(100)), short, network=SMALL)
    pairs = fmcore.rectify(rf1, 50, once)
    rf2 = fmcore.fit_flow(pairs, short, init=rf1)
    assert torch.equal(fmcore.rectify(rf1, 50, once).source, pairs.source)
    assert not torch.equal(fmcore.rectify(rf2, 50, once).source, pairs.source)
    same = [fmcore.rectify(flow, 50, once, seed=3).source for flow in (rf1, rf2)]
    assert torch.equal(*same)


def test_the_longest_pairs_are_left_out():
    source = torch.randn(400, 2, generator=torch.Generator().manual_seed(1))
    target = 0.9 * source
    far = fmcore.coupled(torch.cat([target[:380], target[380:] + 1e6]), source)
    kept = fmcore.fit_flow(
        far, SHORT.model_copy(update={"drop_longest": 0.1}), network=SMALL, seed=2
    )
    moved = kept.sample(source, fmcore.Solver(steps=2)).x - source
    assert float(moved.norm(dim=1).mean()) < 10


@pytest.mark.parametrize("label", [None, torch.arange(300) % 3])
def test_pairs_on_disk_are_the_pairs_in_memory(tmp_path, label):
    source = torch.randn(300, 1, 4, 4)
    pairs = fmcore.coupled(2 * source + 1, source, label)
    fmcore.write_coupling(tmp_path / "own", pairs)
    about = verify(tmp_path / "own").about
    assert (about.kind, about.shape, about.image) == ("imported", [1, 4, 4], True)
    found = fmcore.read_coupling(tmp_path / "own")
    assert torch.equal(found.source, source) and torch.equal(found.target, pairs.target)
    assert (found.label is None) == (label is None)
    assert label is None or torch.equal(found.label, label)
    assert len(fmcore.read_coupling(tmp_path / "own", split="held_out")) == 15
    with pytest.raises(fmcore.ReflowError, match="not empty"):
        fmcore.write_coupling(tmp_path / "own", pairs)


def test_latents_and_states_on_disk_are_what_they_are_in_memory(tmp_path):
    source = torch.randn(40, 4, 3, 3)
    states = torch.randn(40, 3, 4, 3, 3)
    pairs = replace(fmcore.coupled(2 * source, source), trajectory=states)
    fmcore.write_coupling(tmp_path / "own", pairs)
    about = verify(tmp_path / "own").about
    assert (about.image, about.form.store.pieces) == (False, 4)
    assert torch.equal(fmcore.read_coupling(tmp_path / "own").trajectory, states)


def test_targets_on_disk_are_an_independent_coupling(tmp_path):
    fmcore.write_coupling(tmp_path / "data", fmcore.independent(gaussian(200)))
    assert fmcore.open_coupling(tmp_path / "data").independent
    stream = fmcore.batches(fmcore.open_coupling(tmp_path / "data"), batch=50, seed=3)
    first, second = next(stream), next(stream)
    assert not torch.equal(first.source, second.source)
    pairs = fmcore.read_coupling(tmp_path / "data", split="train")
    again = fmcore.shuffled_batches(pairs, batch=50, seed=3)
    for stored in (first, second):
        memory = next(again)
        assert torch.equal(stored.target, memory.target)
        assert torch.equal(stored.source, memory.source)


def test_real_samples_in_units_of_a_model_are_not_written_without_their_identity(tmp_path):
    own, scale = fmcore.independent(gaussian(20)), Scale((2.0,), (3.0,))
    with pytest.raises(fmcore.ReflowError, match=r"held out by their content in own units"):
        fmcore.write_coupling(tmp_path / "x", own, scale=scale)
    assert not (tmp_path / "x").exists()


def test_a_training_loop_of_ones_own_reaches_the_least_loss(tmp_path):
    """Plain torch: the coupling's reader, a law of t and the loss, each used by itself."""
    fmcore.write_coupling(tmp_path / "data", fmcore.independent(gaussian(4000)))
    network = torch.nn.Sequential(torch.nn.Linear(3, 64), torch.nn.SiLU(), torch.nn.Linear(64, 2))
    optimiser = torch.optim.Adam(network.parameters(), lr=1e-2)
    generator = torch.Generator().manual_seed(0)

    def velocity(x, t):
        return network(torch.cat([x, t[:, None]], dim=1))

    losses = []
    stream = fmcore.batches(fmcore.open_coupling(tmp_path / "data"), batch=512, seed=0)
    for _, pairs in zip(range(300), stream):
        t = fmcore.Uniform().spread(torch.rand(len(pairs), generator=generator))
        batch = fmcore.Batch(pairs.target, pairs.source, t)
        loss, _ = fmcore.flow_matching_loss(velocity, batch)
        optimiser.zero_grad()
        loss.mean().backward()
        optimiser.step()
        losses.append(float(loss.detach().mean()))
    least = sum(least_loss(float(s)) for s in S) / 2
    assert sum(losses[-50:]) / 50 == pytest.approx(least, rel=0.1)


def test_interpolant_and_velocity_by_hand_give_the_same_loss():
    """As users of torchcfm write it: x_t and u_t, a network, a mean square."""
    target, source, t = gaussian(64), torch.randn(64, 2), torch.rand(64)
    network = gaussian_velocity(MU, S)
    x, u = fmcore.interpolate(fmcore.Cosine(), target, source, t)
    _, ours = fmcore.flow_matching_loss(network, fmcore.Batch(target, source, t), fmcore.Cosine())
    assert torch.equal((network(x, t) - u).square().mean(), ours)


def test_a_velocity_from_elsewhere_is_a_flow():
    """The exact velocity of a Gaussian, as another library has it: t = 0 is its noise."""
    exact = gaussian_velocity(MU, S)

    def theirs(t, x):
        return -exact(x, 1 - t)

    flow = fmcore.Flow(lambda x, t: -theirs(1 - t, x), fmcore.Linear())
    source = torch.randn(4000, 2, generator=torch.Generator().manual_seed(3))
    pairs = fmcore.rectify(flow, source, fmcore.Solver(name="rk4", steps=20))
    torch.testing.assert_close(pairs.target, MU + S * source, atol=1e-3, rtol=0)
    path = flow.sample(source, fmcore.Solver(steps=64), keep_trajectory=True).trajectory
    expected = sum(straightness(float(s)) for s in S)
    assert fmcore.straightness(path) == pytest.approx(expected, rel=0.05)
    with pytest.raises(fmcore.ReflowError, match="give the sources"):
        fmcore.rectify(flow, 10)
    with pytest.raises(fmcore.ReflowError, match="a flow made by fit_flow or load_flow"):
        fmcore.fit_flow(pairs, SHORT, init=flow)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"processes": 2}, "one process"),
        ({"pairing": Optimal(name="optimal")}, "pairs has pairs of its own, which it would undo"),
        ({"start_from": "raw"}, "start_from raw: .* that `init` has"),
        ({"pieces": 2}, "train.pieces 2: pairs keeps 1 pieces"),
        ({"flip": True}, "train.flip: mirrors images"),
        ({"lr": 1e9, "clip": 1e9, "warmup": 0}, "diverged|rose to"),
    ],
)
def test_what_cannot_be_trained_is_refused(changes, says):
    pairs = fmcore.coupled(gaussian(200), torch.randn(200, 2))
    with pytest.raises(fmcore.ReflowError, match=says):
        fmcore.fit_flow(pairs, SHORT.model_copy(update=changes), network=SMALL)


def test_independent_pairs_have_none_to_drop():
    settings = SHORT.model_copy(update={"drop_longest": 0.2})
    with pytest.raises(fmcore.ReflowError, match="no fixed pairs to drop"):
        fmcore.fit_flow(fmcore.independent(gaussian(200)), settings, network=SMALL)


def test_shapes_that_do_not_fit_are_refused():
    with pytest.raises(fmcore.ReflowError, match=r"\[3, 2\] and \[2, 2\]"):
        fmcore.coupled(torch.zeros(3, 2), torch.zeros(2, 2))
    flow = fmcore.fit_flow(
        fmcore.independent(gaussian(50)), SHORT.model_copy(update={"steps": 1}), network=SMALL
    )
    with pytest.raises(fmcore.ReflowError, match=r"shape \[2\], those of the pairs \[3\]"):
        fmcore.fit_flow(fmcore.independent(torch.zeros(50, 3)), SHORT, init=flow)
    broken = fmcore.Flow(lambda x, t: x * math.nan, fmcore.Linear())
    with pytest.raises(fmcore.ReflowError, match="diverges"):
        fmcore.rectify(broken, torch.zeros(4, 2))
