"""Students on a coupling: one step, k steps, MeanFlow; objectives and labels through training."""

import json
import math
import re

import numpy as np
import pytest
import torch

from fmcore.coupling.noise import gaussian_noise
from fmcore.coupling.read import open_coupling, read
from fmcore.coupling.write import About, finish, table, write_shard
from fmcore.matching.interpolant import Cosine, Linear, VariancePreserving
from fmcore.matching.loss import Loss
from fmcore.matching.times import Grid, Point
from fmcore.network.build import build
from fmcore.network.mlp import MLP
from fmcore.network.store import load, save
from fmcore.sampling.flow import Flow
from fmcore.settings import ReflowError
from fmcore.solve.solver import Solver
from fmcore.tensors import fit_flow
from fmcore.tensors import independent as independent_pairs
from fmcore.train import Train, train
from fmcore.training.batch import Independent, Optimal
from fmcore.work.work import Work
from tests.chains import CPU, gaussian_data

MU, S = torch.tensor([1.0, -0.5]), torch.tensor([0.5, 1.5])
BASE = dict(steps=500, batch=256, lr=1e-2, warmup=10, ema=0.98, checkpoint_every=500)


def curved_coupling(folder, n=6000):
    """Pairs of a nonlinear map: target = mu + s source + sin(source), coordinates swapped."""
    source = gaussian_noise(0, np.arange(n), (2,))
    target = MU + S * source + torch.sin(source).flip(1)
    about = About(kind="generated", shape=[2], pairs=n, seed=0, nfe=4)
    gap = np.full(n, np.nan, dtype=np.float32)
    write_shard(folder, 0, table(about, np.arange(n), target, source, solver_gap=gap))
    finish(folder, about, 1)


@pytest.fixture
def start(tmp_path):
    torch.set_num_threads(1)
    curved_coupling(tmp_path / "coupling")
    network = MLP(width=48, depth=2, time_features=8, norm="none")
    save(tmp_path / "init", build(network, (2,), seed=0), about={"round": "scratch"})
    return tmp_path


def trained(start, name, settings, *, coupling="coupling", init="init"):
    out = start / name
    train(
        start / coupling, start / init, out, out / "curve.csv", out / "metrics.json", settings,
        name=name, work=Work(scratch=start / f"{name}_scratch", seed=5),
    )  # fmt: skip
    return Flow.of(load(out)), json.loads((out / "metrics.json").read_text())


def error(start, flow, steps):
    """RMS distance of the samples to the targets that the coupling gives their sources."""
    pairs = read(open_coupling(start / "coupling"), limit=2000)
    found = flow.sample(pairs.source, Solver(name="euler", steps=steps), device=CPU).x
    return float((found - pairs.target).square().mean().sqrt())


def test_a_one_step_student_learns_the_coupling_and_only_one_step(start):
    student, metrics = trained(start, "student", Train(time=Point(name="point"), **BASE))
    assert error(start, student, 1) < 0.1 and metrics["held_out_loss"] < 0.02
    huber = Train(time=Point(name="point"), loss=Loss(name="pseudo_huber"), **BASE)
    assert error(start, trained(start, "huber", huber)[0], 1) < 0.1
    assert error(start, student, 8) > 2 * error(start, student, 1)


def test_students_go_from_two_steps_to_one(start):
    """Progressive: each round halves the steps and starts from the one before."""
    two, _ = trained(start, "two", Train(time=Grid(name="grid", steps=2), **BASE))
    one = Train(time=Grid(name="grid", steps=1), **{**BASE, "steps": 200})
    flow, _ = trained(start, "one", one, init="two")
    assert error(start, flow, 1) < error(start, two, 1)


@pytest.mark.long
def test_mean_flow_takes_one_step_where_the_velocity_collapses(start):
    """On independent pairs one step of v lands on the mean, of its average on the data."""
    gaussian_data(start / "data", mu=MU.tolist(), s=S.tolist(), pairs=6000)
    x = gaussian_noise(9, np.arange(500), (2,))

    def gap(flow):
        one = flow.sample(x, Solver(name="euler", steps=1), device=CPU).x
        return float((one - MU - S * x).square().mean().sqrt())

    plain, _ = trained(start, "plain", Train(**BASE), coupling="data")
    network = MLP(width=48, depth=2, time_features=8, norm="none", time_frequency=4.0)
    save(start / "slow", build(network, (2,), seed=0), about={"round": "scratch"})
    settings = {**BASE, "steps": 1200, "lr": 3e-3}
    loss = Loss(normalised=True)
    mean = Train(objective="mean_flow", loss=loss, spans=0.5, **settings)
    flow, metrics = trained(start, "mean", mean, coupling="data", init="slow")
    assert gap(plain) > 0.9 and gap(flow) < 0.35
    assert load(start / "mean").network.settings.spans
    assert metrics["held_out_loss"] == pytest.approx(math.pi / 4 * float(S.sum()), rel=0.15)


@pytest.fixture(scope="module")
def crossing():
    """Independent pairs, whose paths cross, and some noise."""
    torch.set_num_threads(1)
    pairs = independent_pairs(MU + S * gaussian_noise(1, np.arange(4000), (2,)))
    x = gaussian_noise(9, np.arange(400), (2,))
    return pairs, x


@pytest.mark.parametrize("rule", ["improved", "shortcut", "consistency", "lagrangian"])
def test_each_rule_learns_the_map_of_curved_paths(crossing, rule):
    """One step of v would land on the mean, 1.1 from where the flow ends, as S says."""
    pairs, x = crossing
    network = MLP(width=32, depth=2, time_features=8, norm="none", time_frequency=4.0)
    told = {"objective": "mean_flow", "map": rule, "spans": 0.5}
    settings = Train.model_validate({**BASE, **told, "steps": 150, "batch": 128})
    flow = fit_flow(pairs, settings, network=network, log=lambda *_: None)
    assert flow.made_of[0].config["map"]["name"] == rule

    def gap(steps):
        found = flow.sample(x, Solver(name="euler", steps=steps), device=CPU).x
        return float((found - MU - S * x).square().mean().sqrt())

    assert float((S * x).square().mean().sqrt()) > 1
    assert gap(1) < 0.4
    assert rule == "consistency" or gap(4) < 0.4  # whose further steps need straight paths


def test_a_step_of_a_consistency_model_goes_a_part_of_the_way_to_its_end():
    """Its spans all reach t = 0; an inversion asks for none, which is the velocity."""
    asked = []

    def network(x, t, label, span):
        asked.append((float(t[0]), float(span[0])))
        return x

    x = torch.ones(3, 2)
    flow = Flow(network, Linear(), "mean_flow", to_end=True)
    flow.sample(x, Solver(name="euler", steps=4), device=CPU)
    assert asked == [(t, t) for t in (1.0, 0.75, 0.5, 0.25)]
    asked.clear()
    flow.invert(x, Solver(name="euler", steps=2), device=CPU)
    assert [span for _, span in asked] == [0, 0]


@pytest.mark.parametrize(
    "interpolant", [Cosine(), VariancePreserving(name="variance_preserving")], ids=lambda i: i.name
)
def test_denoising_reaches_the_gaussian(start, interpolant):
    """Score matching and velocity matching: one field, whichever way it is learned."""
    gaussian_data(start / "data", mu=MU.tolist(), s=S.tolist(), pairs=6000)
    settings = Train(objective="noise", interpolant=interpolant, **{**BASE, "steps": 1200})
    flow, _ = trained(start, "noise", settings, coupling="data")
    x = gaussian_noise(3, np.arange(3000), (2,))
    found = flow.sample(x, Solver(name="heun", steps=40), device=CPU).x
    torch.testing.assert_close(found.mean(0), MU, atol=0.15, rtol=0)
    torch.testing.assert_close(found.std(0), S, atol=0.1, rtol=0.1)
    assert flow.score and not trained(start, "x", Train(**{**BASE, "steps": 1}))[0].score


@pytest.mark.parametrize(
    ("loss", "learns"),
    [
        (Loss(name="pseudo_huber"), "pseudo_huber .* about the median velocity"),
        (Loss(normalised=True), "normalised .* the nearest velocity"),
        (Loss(), None),
    ],
)
def test_a_loss_that_learns_no_mean_warns_on_independent_pairs_and_is_recorded(start, loss, learns):
    gaussian_data(start / "data", mu=MU.tolist(), s=S.tolist(), pairs=300)
    settings, said = Train(**{**BASE, "steps": 2}, loss=loss), []
    out = start / "out"
    for coupling in ("data", "coupling"):
        work = Work(scratch=start / f"{coupling}_scratch", seed=5, warn=said.append)
        train(
            start / coupling, start / "init", out, out / "curve.csv", out / "metrics.json",
            settings, name="rf1", work=work,
        )  # fmt: skip
        config = load(out).config
        assert config["learns_mean"] is loss.learns_mean is (learns is None)
        assert config["loss"]["name"] == loss.name
        assert json.loads((out / "metrics.json").read_text())["learns_mean"] == int(learns is None)
        independent = coupling == "data"
        assert Flow.of(load(out)).score is (independent and learns is None)
        assert len(said) == int(learns is not None)  # once: not on the pairs of a flow
    if learns is not None:
        assert re.search(f"{learns}, not the mean .* use loss mse here", said[0])
        assert "\n" not in said[0]
        with pytest.warns(UserWarning, match=learns):
            fit_flow(independent_pairs(torch.zeros(300, 2)), settings)


@pytest.mark.long
def test_optimal_pairing_lowers_the_loss_and_costs_the_score(start):
    gaussian_data(start / "data", mu=MU.tolist(), s=S.tolist(), pairs=6000)
    short = {**BASE, "steps": 300}
    _, free = trained(start, "free", Train(**short), coupling="data")
    paired = Train(pairing=Optimal(name="optimal"), **short)
    flow, metrics = trained(start, "paired", paired, coupling="data")
    assert metrics["loss"] < 0.5 * free["loss"] and not flow.score
    with pytest.raises(ReflowError, match="has pairs of its own"):
        trained(start, "bad", paired)


def test_what_makes_no_sense_is_refused(start):
    with pytest.raises(ReflowError, match="mirrors images"):
        trained(start, "a", Train(flip=True, **BASE))
    gaussian_data(start / "data", mu=MU.tolist(), s=S.tolist(), pairs=100)
    with pytest.raises(ReflowError, match="no fixed pairs to drop"):
        trained(start, "b", Train(drop_longest=0.1, **BASE), coupling="data")


@pytest.mark.parametrize(
    "pairing",
    [Independent(), pytest.param(Optimal(name="optimal"), marks=pytest.mark.long)],
    ids=lambda pairing: pairing.name,
)
def test_labels_steer_a_trained_flow(start, pairing):
    n = 3000
    label = torch.arange(n) % 2
    target = torch.stack([4.0 * label - 2, torch.zeros(n)], dim=1)
    target = target + 0.3 * gaussian_noise(1, np.arange(n), (2,))
    about = About(kind="independent", shape=[2], pairs=n, seed=0)
    write_shard(start / "named", 0, table(about, np.arange(n), target, label=label))
    finish(start / "named", about, 1)
    network = MLP(width=48, depth=2, time_features=8, norm="none", classes=2)
    save(start / "classes", build(network, (2,), seed=0), about={"round": "scratch"})
    flow, _ = trained(
        start, "flow", Train(**BASE, pairing=pairing), coupling="named", init="classes"
    )
    x = gaussian_noise(3, np.arange(400), (2,))
    for name, centre in ((0, -2.0), (1, 2.0)):
        own = torch.full((400,), name)
        found = flow.sample(x, Solver(name="heun", steps=20), device=CPU, label=own).x
        assert float(found[:, 0].mean()) == pytest.approx(centre, abs=0.3)
        assert float(found[:, 0].std()) < 0.8
    free = flow.sample(x, Solver(name="heun", steps=20), device=CPU).x
    assert 0.3 < float((free[:, 0] > 0).float().mean()) < 0.7
