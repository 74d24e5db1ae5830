"""Couplings beyond the plain one: inverted and mixed pairs, adaptive solvers, labels, filters."""

import json

import numpy as np
import pandas as pd
import pytest
import torch

from fmcore.couple import couple
from fmcore.coupling.noise import gaussian_noise, uniform
from fmcore.coupling.read import open_coupling, read
from fmcore.coupling.verify import verify
from fmcore.coupling.write import About, finish, table, write_shard
from fmcore.network.build import build
from fmcore.network.mlp import MLP
from fmcore.network.store import load, save
from fmcore.sampling.pairs import Couple
from fmcore.settings import ReflowError
from fmcore.solve.adaptive import Adaptive
from fmcore.solve.solver import Solver
from fmcore.training.batches import batches, longest
from fmcore.work.work import Work
from tests.chains import CPU, gaussian_data, silent

FINE = Solver(name="rk4", steps=12)


def labelled(folder, n=60, classes=3):
    """Real data in two dimensions, whose label is written in its first coordinate."""
    about = About(kind="independent", shape=[2], pairs=n, seed=0)
    label = torch.arange(n) % classes
    target = torch.stack(
        [label.float(), torch.randn(n, generator=torch.Generator().manual_seed(1))]
    )
    write_shard(folder, 0, table(about, np.arange(n), target.T.contiguous(), label=label))
    finish(folder, about, 1)


@pytest.fixture
def start(tmp_path):
    torch.set_num_threads(1)
    labelled(tmp_path / "data")
    network = build(MLP(width=16, depth=2, time_features=8, classes=3), (2,), seed=0)
    generator = torch.Generator().manual_seed(3)
    for p in network.parameters():
        p.data += 0.2 * torch.randn(p.shape, generator=generator)
    save(tmp_path / "model", network, about={"round": "rf1"})
    return tmp_path


def run(start, name, settings, *, log=silent):
    out, metrics = start / name / "coupling", start / name / "metrics.json"
    scratch = start / name / "scratch"
    couple(
        start / "model", start / "data", out, metrics, settings,
        Work(scratch=scratch, seed=11, log=log),
    )  # fmt: skip
    return {p.name: p.read_bytes() for p in out.iterdir()}, json.loads(metrics.read_text())


def test_inverted_pairs_hold_real_targets_and_the_sources_that_make_them(start):
    settings = Couple(pairs=60, solver=FINE, mix={"inverted": 1.0})
    _, found = run(start, "a", settings)
    pairs, real = read(open_coupling(start / "a" / "coupling")), read(open_coupling(start / "data"))
    assert torch.equal(pairs.target, real.target) and torch.equal(pairs.label, real.label)
    from fmcore.sampling.flow import Flow

    flow = Flow.of(load(start / "model"))
    back = flow.sample(pairs.source, FINE, device=CPU, label=pairs.label).x
    torch.testing.assert_close(back, real.target, atol=2e-2, rtol=2e-2)
    assert found["noise_repeats"] == 0 and found["solver_gap_rms"] < 1e-2
    assert verify(start / "a" / "coupling").about.kind == "inverted"


def test_a_mixture_has_both_kinds_in_its_ratio_and_any_batch_gives_its_bytes(start):
    settings = Couple(pairs=900, shard=400, solver=FINE, mix={"generated": 0.7, "inverted": 0.3})
    whole, _ = run(start, "a", settings)
    assert run(start, "b", settings.model_copy(update={"batch": 77}))[0] == whole
    frame = pd.read_parquet(start / "a" / "coupling")
    inverted = frame.kind == "inverted"
    assert inverted.mean() == pytest.approx(0.3, abs=0.05)
    assert inverted[frame.split == "held_out"].mean() == pytest.approx(0.3, abs=0.15)
    noise = gaussian_noise(11, frame.pair_id.to_numpy(), (2,)).numpy()
    drawn = np.stack(frame.source)
    assert (drawn[~inverted] == noise[~inverted]).all() and not (drawn == noise)[inverted].any()
    real = read(open_coupling(start / "data")).target.numpy()
    assert (np.stack(frame.target)[inverted] == real[frame.pair_id[inverted] % 60]).all()


def test_labels_are_drawn_as_the_data_has_them(start):
    run(start, "a", Couple(pairs=3000, solver=Solver(name="euler", steps=1)))
    frame = pd.read_parquet(start / "a" / "coupling")
    counts = frame.label.value_counts(normalize=True)
    assert counts.to_numpy() == pytest.approx([1 / 3] * 3, abs=0.04)
    assert abs(np.corrcoef(frame.label, np.stack(frame.source)[:, 0])[0, 1]) < 0.05


def test_an_adaptive_solver_records_what_each_pair_cost(start):
    settings = Couple(pairs=300, shard=128, solver=Adaptive(name="dopri5"), audit_every=10)
    whole, found = run(start, "a", settings)
    assert run(start, "b", settings.model_copy(update={"batch": 50}))[0] == whole
    frame = pd.read_parquet(start / "a" / "coupling")
    assert frame.nfe.min() >= 8 and found["nfe"] == pytest.approx(frame.nfe.mean())
    exact = Couple(pairs=300, solver=Solver(name="rk4", steps=200), audit_every=10)
    run(start, "c", exact)
    gap = np.stack(frame.target) - np.stack(pd.read_parquet(start / "c" / "coupling").target)
    assert np.abs(gap).max() < 5e-3


def test_guidance_is_baked_in_recorded_and_refused_without_classes(start):
    plain, _ = run(start, "a", Couple(pairs=50, solver=FINE))
    guided, _ = run(start, "b", Couple(pairs=50, solver=FINE, guidance=2.0))
    a, b = (open_coupling(start / n / "coupling").about for n in "ab")
    assert (a.guidance, b.guidance) == (1.0, 2.0) and b.nfe == 2 * a.nfe
    assert plain["part-00000.parquet"] != guided["part-00000.parquet"]
    save(start / "model", build(MLP(width=8, depth=1), (2,), seed=0), about={"round": "rf1"})
    with pytest.raises(ReflowError, match="needs a flow with classes"):
        run(start, "c", Couple(pairs=50, guidance=2.0))


def test_shares_that_do_not_add_up_are_refused():
    with pytest.raises(ValueError, match="add up to 1"):
        Couple(pairs=5, mix={"generated": 0.7, "inverted": 0.2})


def test_a_solver_with_other_evaluations_on_the_way_back_makes_pairs_of_one_kind():
    mix, solver = {"generated": 0.5, "inverted": 0.5}, {"name": "heun_to_euler", "steps": 3}
    with pytest.raises(ValueError, match="takes 5 evaluations from source to target and 6 back"):
        Couple.model_validate({"pairs": 10, "mix": mix, "solver": solver})
    Couple.model_validate({"pairs": 10, "mix": {"inverted": 1.0}, "solver": solver})
    Couple.model_validate({"pairs": 10, "mix": mix, "solver": {"name": "ab4", "steps": 3}})
    way = {"name": "fitted", "times": [1.0, 0.0], "weights": [[-1.0]]}
    with pytest.raises(ValueError, match="from source to target only"):
        Couple.model_validate({"pairs": 10, "mix": {"inverted": 1.0}, "solver": way})


def test_a_refused_coupling_stays_in_the_scratch(start):
    seen = []

    def refuse(values):
        seen.append(values)
        raise ReflowError("no")

    out = start / "a"
    with pytest.raises(ReflowError, match="no"):
        couple(
            start / "model", start / "data", out / "coupling", out / "m.json",
            Couple(pairs=50, solver=FINE), Work(scratch=out / "scratch", accept=refuse),
        )  # fmt: skip
    assert seen[0]["pairs"] == 50 and not (out / "coupling").exists()
    assert (out / "scratch" / "shards" / "part-00000.parquet").exists()


def test_the_longest_pairs_can_be_left_out(start):
    run(start, "a", Couple(pairs=1000, shard=300, solver=FINE))
    coupling = open_coupling(start / "a" / "coupling")
    limit = longest(coupling, 0.1)
    pairs = read(coupling, split="train")
    lengths = (pairs.target - pairs.source).norm(dim=1)
    assert float((lengths >= limit).float().mean()) == pytest.approx(0.1, abs=2 / len(pairs))
    seen = set()
    for _, batch in zip(range(18), batches(coupling, batch=50, seed=0, shorter_than=limit)):
        assert bool(((batch.target - batch.source).norm(dim=1) < limit).all())
        seen |= set(batch.pair_id.tolist())
    assert len(seen) >= 0.88 * len(pairs) and longest(coupling, 0.0) is None


def test_uniform_numbers_are_a_function_of_seed_and_pair():
    ids = np.arange(2000)
    u = uniform(5, ids)
    assert (uniform(5, ids[700:]) == u[700:]).all() and (uniform(6, ids) != u).any()
    assert u.mean() == pytest.approx(0.5, abs=0.02) and u.var() == pytest.approx(1 / 12, abs=0.01)
    assert abs(np.corrcoef(u, uniform(5, ids, draw=1))[0, 1]) < 0.06
    assert abs(np.corrcoef(u, gaussian_noise(5, ids, (1,))[:, 0])[0, 1]) < 0.06


def test_data_without_labels_makes_pairs_without(tmp_path):
    torch.set_num_threads(1)
    gaussian_data(tmp_path / "data", mu=[0.0, 0.0], s=[1.0, 1.0], pairs=50)
    save(tmp_path / "model", build(MLP(width=8, depth=1), (2,), seed=0), about={"round": "r"})
    run(tmp_path, "a", Couple(pairs=40, solver=FINE))
    assert "label" not in pd.read_parquet(tmp_path / "a" / "coupling").columns
