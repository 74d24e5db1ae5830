"""Two rounds of stages called as functions, on Gaussians, where every number is known."""

import csv
import json
import math

import pytest
import torch

from fmcore.choices.solvers import HeunToEuler
from fmcore.compare import RoundName, compare
from fmcore.couple import Couple, couple
from fmcore.coupling.read import open_coupling
from fmcore.dataset.densities import Gaussian
from fmcore.evaluate import Evaluate, EvaluatePaths, _budget, _known, _paths, evaluate
from fmcore.features.extractor import FeatureSettings
from fmcore.matching.interpolant import Linear, VarianceExploding
from fmcore.measure.harness import Harness
from fmcore.measure.likelihood import Likelihood
from fmcore.measure.yardstick import YardstickSettings, fit, save
from fmcore.network.build import build
from fmcore.network.mlp import MLP
from fmcore.prepare import prepare
from fmcore.sampling.flow import Flow
from fmcore.settings import ReflowError
from fmcore.solve.adaptive import Adaptive
from fmcore.solve.solver import Solver
from fmcore.train import Train, _held_out, train
from fmcore.training.fit import new_state
from fmcore.training.held_out import held_out_sides
from fmcore.verdict import pictures
from fmcore.verdict.gates import Gates
from fmcore.work.work import Work
from tests.chains import CPU, gaussian_data, scratch_model, silent
from tests.fmcore.matching.test_loss import average_velocity
from tests.oracles import gaussian_velocity, least_loss, straightness

MU, S = [2.0, -1.0], [1.0, 1.0]
SETTINGS = Evaluate(
    nfe=(1, 2, 8),
    solvers=(Solver(name="heun", steps=4), HeunToEuler(name="heun_to_euler", steps=4), Adaptive()),
    solver=Solver(name="heun", steps=32),
    trajectories=2000,
)


@pytest.fixture(scope="module")
def rounds(tmp_path_factory):
    """rf1 and rf2, trained, sampled and evaluated: about twenty seconds."""
    torch.set_num_threads(1)
    root = tmp_path_factory.mktemp("rounds")
    gaussian_data(root / "data", mu=MU, s=S, pairs=20_000)
    network = MLP(width=48, depth=2, time_features=16)
    scratch_model(root / "scratch", dim=2, network=network)
    settings = YardstickSettings(features=FeatureSettings(kind="identity"), samples=1000, splits=2)
    save(root / "yardstick", fit(root / "data", settings, seed=0, log=silent))

    def learn(name, coupling, init, steps, lr):
        out = root / name
        train(
            root / coupling, root / init, out, root / f"train/{name}.csv",
            root / f"train/{name}.json",
            Train(steps=steps, batch=512, lr=lr, ema=0.99, warmup=20), name=name,
            work=Work(scratch=root / "tmp" / name, seed=1),
        )  # fmt: skip
        measure(root, name, coupling, f"evaluate/{name}")

    learn("rf1", "data", "scratch", 1500, 5e-3)
    couple(
        root / "rf1", root / "data", root / "pairs", root / "couple/rf1.json",
        Couple(pairs=20_000, solver=Solver(name="rk4", steps=10)),
        Work(scratch=root / "tmp" / "couple", seed=2),
    )  # fmt: skip
    learn("rf2", "pairs", "rf1", 1000, 2e-3)
    return root


def measure(root, name, coupling, where, *, seed=3, settings=SETTINGS):
    paths = EvaluatePaths(
        root / name, root / "data", root / coupling, root / "yardstick", root / f"{where}.json",
        root / f"fd/{name}.csv", root / f"gap/{name}.csv", root / "pictures" / name,
    )  # fmt: skip
    return evaluate(paths, settings, Work(scratch=root / "tmp", seed=seed))


def result(root, name):
    return json.loads((root / "evaluate" / f"{name}.json").read_text())


def test_the_first_round_has_the_straightness_loss_and_cost_of_theory(rounds):
    found = result(rounds, "rf1")
    s = straightness(1.0) * 2
    assert found["straightness"] == pytest.approx(s, rel=0.06)
    assert found["straightness_per_dim"] == pytest.approx(s / 2, rel=0.06)
    assert found["held_out_loss"] * 2 == pytest.approx(2 * least_loss(1.0), rel=0.06)
    assert found["transport_cost"] == pytest.approx(sum(m**2 for m in MU), rel=0.05)
    before = sum(m**2 + 1 + s**2 for m, s in zip(MU, S, strict=True))
    assert found["transport_cost_before"] == pytest.approx(before, rel=0.03)
    assert abs(found["budget_defect"]) < 0.05
    assert found["ivd"] == pytest.approx(1.0, rel=0.1)  # v(eps, 1) = eps - mu, chord = -mu: E eps^2
    assert found["held_out_ratio"] == pytest.approx(1, abs=0.1)


def test_one_euler_step_of_the_first_round_is_the_mean(rounds):
    """All mass at mu: the identity-feature distance is then the trace of the covariance."""
    found = result(rounds, "rf1")
    assert found["fd_identity/nfe_1"] == pytest.approx(2.0, rel=0.1)
    ratio = 0.5  # of the standard deviation after two Euler steps, s = 1
    assert found["fd_identity/nfe_2"] == pytest.approx(2 * (1 - ratio) ** 2, rel=0.15)


def test_the_second_round_is_straight_and_right_in_one_step(rounds):
    first, second = result(rounds, "rf1"), result(rounds, "rf2")
    assert second["straightness_per_dim"] < 1e-3
    assert second["straightness_rel"] < 0.01 * first["straightness_rel"]
    assert second["fd_identity/nfe_1"] < 0.02
    assert second["energy/nfe_1"] < 0.1 * first["energy/nfe_1"]
    for name in ("transport_cost", "transport_cost_l1", "transport_cost_l4"):
        assert second[name] < 1.03 * first[name], "no convex cost rises"
    costs = [first["transport_cost_before"], first["transport_cost"]]
    spent = first["straightness"] + 2 * first["held_out_loss"]
    assert spent == pytest.approx(costs[0] - costs[1], rel=0.06)


def test_measuring_again_gives_the_same_bytes_and_another_seed_does_not(rounds):
    before = (rounds / "evaluate" / "rf2.json").read_bytes()
    measure(rounds, "rf2", "pairs", "again")
    assert (rounds / "again.json").read_bytes() == before
    other = measure(rounds, "rf2", "pairs", "other", seed=4)
    assert other["energy/nfe_1"] != json.loads(before)["energy/nfe_1"]
    measure(rounds, "rf2", "pairs", "again")


def test_curves_and_pictures(rounds):
    rows = list(csv.DictReader((rounds / "fd" / "rf1.csv").open()))
    named = [(r["sampler"], float(r["nfe"]), r["cut"]) for r in rows]
    fixed = {"euler_1": 1, "euler_2": 2, "euler_8": 8, "heun_4": 8, "heun_to_euler_4": 7}
    assert named[:10] == [(name, n, str(cut)) for name, n in fixed.items() for cut in (0, 1)]
    assert [name for name, *_ in named[10:12]] == ["dopri5", "dopri5"] and named[10][1] > 8
    raw = [(f"raw_euler_{n}", n, str(cut)) for n in (1, 8) for cut in (0, 1)]
    assert named[12:] == raw
    both = [float(r["fd_identity"]) for r in rows[:2]]
    found = result(rounds, "rf1")
    assert found["fd_identity/nfe_1"] == pytest.approx(sum(both) / 2)
    assert found["fd_identity_se/nfe_1"] == pytest.approx(abs(both[0] - both[1]) / 2)
    gaps = list(csv.DictReader((rounds / "gap" / "rf1.csv").open()))
    assert len(gaps) == 32
    mean = sum(float(r["gap"]) for r in gaps) / 32
    assert mean == pytest.approx(result(rounds, "rf1")["straightness"])
    names = {p.name for p in (rounds / "pictures" / "rf1").iterdir()}
    assert names == {"samples.png", "samples.safetensors", "trajectories.png"}


def test_paths_of_both_rounds_are_drawn_in_one_plane_under_their_names(rounds, monkeypatch):
    drawn = []
    monkeypatch.setattr(pictures, "trajectories", lambda *given: drawn.append(given[2:]))
    measure(rounds, "rf1", "data", "plane")
    measure(rounds, "rf2", "pairs", "plane")
    (one, first), (two, second) = drawn
    assert one == two and one.names == ("dimension 1", "dimension 2")
    assert (first, second) == ("rf1: paths (heun 32 steps)", "rf2: paths (heun 32 steps)")


def test_every_solver_is_a_row_with_its_counted_evaluations(rounds):
    found = result(rounds, "rf1")
    assert found["nfe/heun_4"] == 8 and found["nfe/heun_to_euler_4"] == 7
    # The mean over samples, each of which took steps of its own: 2 to begin, 6 for each step.
    assert (found["nfe/dopri5"] * 2000 - 2 * 2000) % 6 == pytest.approx(0, abs=1e-6)
    assert found["fd_identity/heun_4"] < 0.1 * found["fd_identity/nfe_2"]
    assert found["fd_identity/dopri5"] < 0.05
    assert {"fd_identity_se/heun_4", "energy/dopri5", "energy_se/heun_to_euler_4"} <= found.keys()


def test_what_a_round_cost_is_counted_and_cumulated(rounds, tmp_path):
    each = result(rounds, "rf1")["flops_per_evaluation"]
    trained = {r: json.loads((rounds / f"train/{r}.json").read_text()) for r in ("rf1", "rf2")}
    assert trained["rf1"]["flops_training"] == 3 * each * 1500 * 512
    assert trained["rf2"]["flops_training"] == 3 * each * 1000 * 512
    pairs = json.loads((rounds / "couple/rf1.json").read_text())
    assert pairs["flops_pairs"] == each * 40 * (20_000 + 2 * pairs["audited"])
    names = [
        RoundName(name="rf1", coupling="independent"),
        RoundName(name="rf2", coupling="rf1", parent="rf1", needs=("rf1",)),
    ]
    side_by_side(names, rounds, tmp_path)
    found = {r["round"]: r for r in json.loads((tmp_path / "rounds.json").read_text())["rounds"]}
    assert found["rf1"]["flops_training"] == trained["rf1"]["flops_training"]
    assert found["rf1"]["flops_pairs"] == 0
    assert found["rf2"]["flops_training"] == sum(t["flops_training"] for t in trained.values())
    assert found["rf2"]["flops_pairs"] == pairs["flops_pairs"]
    rows = list(csv.DictReader((tmp_path / "samplers.csv").open()))
    assert [(r["round"], r["sampler"]) for r in rows][3] == ("rf1", "heun_4")
    for row in rows:
        assert float(row["flops_per_sample"]) == pytest.approx(each * float(row["nfe"]))
        parts = sum(float(row[f"flops_{k}"]) for k in ("training", "pairs", "sampling"))
        assert float(row["flops_total"]) == pytest.approx(parts)
        assert float(row["flops_sampling"]) == pytest.approx(2000 * float(row["flops_per_sample"]))
    assert (tmp_path / "quality_over_compute.png").stat().st_size > 10_000
    table = (tmp_path / "rounds.md").read_text()
    assert "| round | sampler | NFE | energy |" in table and "| rf2 | heun_4 | 8 |" in table


def side_by_side(names, rounds, out):
    compare(
        names,
        Gates(),
        metrics=rounds,
        fd=rounds / "fd",
        curves=rounds / "gap",
        yardstick=rounds / "yardstick",
        out=out,
    )


def test_the_comparison_puts_the_rounds_side_by_side(rounds, tmp_path):
    names = [
        RoundName(name="rf1", coupling="independent"),
        RoundName(name="rf2", coupling="rf1", parent="rf1"),
    ]
    side_by_side(names, rounds, tmp_path)
    found = json.loads((tmp_path / "rounds.json").read_text())
    assert found["metric"] == "energy" and abs(found["floor"]) < 4 * found["floor_se"] + 1e-3
    by_round = {r["round"]: r for r in found["rounds"]}
    assert by_round["rf2"]["energy"]["1"] == result(rounds, "rf2")["energy/nfe_1"]
    assert found["ship"]["one_step"]["round"] == "rf2"
    assert found["next"] == [line for line in found["next"] if line.startswith("after rf2: stop;")]
    judged = {(g["stage"], g["gate"]) for g in found["gates"]}
    assert {("evaluate@rf1", "budget_defect"), ("evaluate@rf2", "cost_rise")} <= judged
    table = (tmp_path / "rounds.csv").read_text().splitlines()
    assert len(table) == 3 and table[0].startswith("round,coupling,energy@1")
    assert "floor" in (tmp_path / "rounds.md").read_text()
    with pytest.raises(ReflowError, match=r"rf3\.json: no metrics \("):
        names.append(RoundName(name="rf3", coupling="rf2"))
        side_by_side(names, rounds, tmp_path)


@pytest.mark.long
def test_the_likelihood_is_near_that_of_the_law_itself(rounds):
    """The entropy of N(mu, I) in two dimensions is 1 + log(2 pi) nats."""
    likely = SETTINGS.model_copy(update={"likelihood": Likelihood(samples=400)})
    found = measure(rounds, "rf1", "data", "likely/rf1", settings=likely)
    assert found["nll"] == pytest.approx(1 + math.log(2 * math.pi), abs=0.15)
    assert "nll/floor" not in found and "bits_per_dim" not in found  # the law is not recorded


def test_the_ivd_of_an_average_velocity_is_what_one_step_gets_wrong(tmp_path):
    """The exact average over the whole path lands on the target; the velocity at t = 1 does not."""
    mu, s = torch.tensor([1.0, -0.5]), torch.tensor([0.5, 1.5])
    data = gaussian_data(tmp_path / "data", mu=mu.tolist(), s=s.tolist(), pairs=100)
    exact = average_velocity(mu, s)
    average = lambda x, t, label, span: exact(x, t, label, span.clamp(min=1e-4))
    x = torch.randn(100, 2, generator=torch.Generator().manual_seed(0))
    found = {}
    for objective, network in (("mean_flow", average), ("velocity", gaussian_velocity(mu, s))):
        flow = Flow(network, Linear(), objective)
        harness = Harness(flow, x, None, SETTINGS, seed=0, device=torch.device("cpu"))
        path = torch.stack([x, mu + s * x])
        found[objective] = _known(harness, data, path)["ivd"]
    assert found["mean_flow"] < 1e-6 and found["velocity"] > 0.1


def test_network_calls_of_one_size_measure_all_paths_and_held_out_pairs(tmp_path):
    """A call of all paths at once, or of 1,024 images, takes memory that no setting bounds."""
    data, rows = gaussian_data(tmp_path / "data", mu=MU, s=S, pairs=4000), set()

    def network(x, t):
        rows.add(len(x))
        return x

    x = torch.randn(300, 2)
    flow = Flow(network, Linear(), tile=64)
    path = torch.stack([x, x, x])
    settings = SETTINGS.model_copy(update={"solver": Solver(name="heun", steps=2)})
    harness = Harness(flow, x, None, settings, seed=0, device=CPU)
    assert _known(harness, data, path)["ivd"] > 0
    assert _budget(harness, {}, data, path)["held_out_pairs"] > 64
    assert rows == {64}
    trained = build(MLP(width=8, depth=1), (2,), seed=0)
    trained.tile = 128
    state = new_state(trained, Train(steps=1))
    state.ema.register_forward_pre_hook(lambda _, given: rows.add(len(given[0])))
    sides = held_out_sides(open_coupling(data), 1024)
    _held_out(state, sides, Train(steps=1), work=Work(scratch=tmp_path), limit=4096)
    assert rows == {64, 128}


@pytest.mark.parametrize(
    "twice", [{"sde": ({"steps": 8}, {"steps": 8})}, {"solvers": ({"name": "rk4"},) * 2}]
)
def test_two_samplers_of_one_name_are_refused_when_the_settings_are_read(twice):
    """Both would write rows of that name, which compare could not tell apart hours later."""
    (place,) = twice
    with pytest.raises(ValueError, match=f"{place}: two of them are called"):
        Evaluate.model_validate(twice)


def test_step_counts_that_take_as_many_evaluations_are_refused():
    """2 steps are guided once, 3 never: both would be the row of NFE 3, and one would be lost."""
    guidance = {"strength": 3.0, "within": (0.45, 0.55)}
    with pytest.raises(ValueError, match="nfe: 2 and 3 steps both take 3 evaluations"):
        Evaluate.model_validate({"nfe": (2, 3, 4), "guidance": guidance})
    Evaluate.model_validate({"nfe": (2, 4, 8, 8), "guidance": guidance})
    Evaluate.model_validate({"nfe": (2, 3, 4), "guidance": 3.0})


@pytest.mark.parametrize(
    "interpolant", [Linear(), VarianceExploding(name="variance_exploding")], ids=lambda i: i.name
)
def test_straight_paths_to_a_gaussian_have_no_excess_energy_also_from_a_wide_source(
    tmp_path, interpolant
):
    """The map sigma(1) z -> mu + s z is the optimal one, so the energy of its chords is W2^2."""
    law = Gaussian(name="gaussian", mean=[2.0, -1.0], std=[0.5, 1.5], samples=100)
    prepare(tmp_path / "data", law, seed=0)
    z = torch.randn(4000, 2, generator=torch.Generator().manual_seed(0))
    flow = Flow(lambda x, t: 0 * x, interpolant)
    harness = Harness(flow, z, None, SETTINGS, seed=0, device=torch.device("cpu"))
    ends = [interpolant.noise_scale * z, torch.tensor(law.mean) + torch.tensor(law.std) * z]
    steps = torch.linspace(0, 1, SETTINGS.solver.steps + 1)
    path = torch.stack([ends[0] + s * (ends[1] - ends[0]) for s in steps])
    found = _known(harness, tmp_path / "data", path)
    assert found["npe"] < 4 * found["npe_se"] < 0.2


def test_the_number_of_paths_names_their_grid():
    path = torch.randn(3, 5, 2)
    for solver, name in (
        (Solver(name="rk4", steps=2), "rk4_2"), (Solver(steps=2, shift=3), "shift_3_heun_2"),
        (Solver(times=(1.0, 0.2, 0.0)), "times_heun_2"),
    ):  # fmt: skip
        found = [key for key in _paths(path, solver) if key.startswith("paths")]
        assert found == [f"paths/{name}"]
