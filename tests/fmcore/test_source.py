"""From one data set to another: `source` is a data set, not noise."""

import json
from contextlib import nullcontext

import numpy as np
import pandas as pd
import pytest
import torch
from pydantic import TypeAdapter

import fmcore
from fmcore.calibrate import calibrate
from fmcore.couple import couple
from fmcore.coupling.read import open_coupling, read
from fmcore.coupling.source import SAMPLES, turns
from fmcore.coupling.verify import verify
from fmcore.dataset.densities import EightGaussians, Gaussian, TwoMoons
from fmcore.dataset.public import Digits
from fmcore.evaluate import Evaluate, EvaluatePaths, evaluate
from fmcore.features.extractor import FeatureSettings
from fmcore.initialise import initialise
from fmcore.matching.interpolant import VarianceExploding
from fmcore.measure.likelihood import Likelihood
from fmcore.measure.yardstick import YardstickSettings
from fmcore.network.mlp import MLP
from fmcore.network.store import load
from fmcore.outside.imported import Imported, importer_of
from fmcore.outside.kinds import Import
from fmcore.prepare import prepare
from fmcore.sampling.flow import Flow
from fmcore.sampling.pairs import Couple
from fmcore.scale import Standardise
from fmcore.settings import ReflowError
from fmcore.solve.solver import Solver
from fmcore.train import Train, train
from fmcore.training.batch import Optimal
from fmcore.training.batches import batches
from fmcore.work.work import Work

MOONS = TwoMoons(name="two_moons", samples=3000, size=3)
RING = EightGaussians(name="eight_gaussians", samples=2000)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Moons as targets, eight Gaussians as sources."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("transfer") / "data"
    prepare(folder, MOONS, RING, seed=0)
    return folder


def test_real_sources_from_outside_are_held_out_as_the_prepared_ones(tmp_path):
    scaled = MOONS.model_copy(update={"scale": Standardise(name="standardise")})
    prepare(tmp_path / "data", scaled, RING, seed=0)
    pool = open_coupling(tmp_path / "data").source
    np.savez(tmp_path / "p.npz", target=pool.samples.flip(0).numpy(), source=pool.samples.numpy())
    how = {"kind": "npz", "path": str(tmp_path / "p.npz"), "real": "source", "units": "model"}
    settings = Imported(of=TypeAdapter(Import).validate_python(how)).settled()
    rows = importer_of(tmp_path / "data", settings).shard(0)
    assert rows["real_id"].to_pylist() == pool.real_id.tolist()


@pytest.fixture(scope="module")
def chain(data):
    """Two rounds from the eight Gaussians to the moons; return the folder and both metrics."""
    root = data.parent
    settings = YardstickSettings(features=FeatureSettings(kind="identity"), samples=700, splits=2)
    calibrate(data, root / "yardstick", settings, Work(scratch=root / "tmp"))
    network = MLP(width=64, depth=2, time_features=32, norm="none")
    initialise(data, root / "scratch", network, seed=0)
    found = {}
    for name, coupling, init, steps, lr in (
        ("rf1", data, "scratch", 700, 1e-2),
        ("rf2", root / "pairs", "rf1", 500, 3e-3),
    ):
        if name == "rf2":
            settings = Couple(pairs=4000, solver=Solver(name="rk4", steps=8))
            work = Work(scratch=root / "tmp_pairs", seed=3)
            couple(root / "rf1", data, root / "pairs", root / "pairs.json", settings, work)
        train(
            coupling, root / init, root / name, root / f"{name}.csv", root / f"train_{name}.json",
            Train(steps=steps, batch=256, lr=lr, warmup=20, ema=0.99), name=name,
            work=Work(scratch=root / f"tmp_{name}", seed=1),
        )  # fmt: skip
        paths = EvaluatePaths(
            root / name, data, coupling, root / "yardstick", root / f"{name}.json",
            root / f"{name}_fd.csv", root / f"{name}_gap.csv", root / f"pictures_{name}",
        )  # fmt: skip
        wanted = Evaluate(
            nfe=(1, 16), trajectories=1000, reconstructions=0, likelihood=Likelihood(samples=32)
        )
        found[name] = evaluate(paths, wanted, Work(scratch=root / f"tmp_e_{name}"))
    return root, found


def near(x, rows):
    """Return whether each of x [N, d] is one of the rows [M, d]."""
    return torch.cdist(x.double(), rows.double()).min(1).values < 1e-6


def test_the_sources_are_the_real_samples_and_have_identities(data):
    pairs, sources = read(open_coupling(data)), read(open_coupling(data / SAMPLES))
    assert len(sources) == 2000 and verify(data).about.source["name"] == "eight_gaussians"
    assert bool(near(pairs.source, sources.target).all())
    assert bool((pairs.source.norm(dim=1) - 4).abs().lt(3).all())
    frame = pd.read_parquet(data)
    assert len(frame) == 3000 and "source" not in frame.columns


def test_target_and_source_are_paired_independently(data):
    pairs = read(open_coupling(data))
    both = torch.cat([pairs.target, pairs.source], dim=1).numpy()
    assert np.abs(np.corrcoef(both.T)[:2, 2:]).max() < 5 / len(pairs) ** 0.5


def test_training_draws_a_new_source_each_step_and_never_a_held_out_one(data):
    held = read(open_coupling(data / SAMPLES), split="held_out").target
    coupling = open_coupling(data)
    seen = []
    for _, batch in zip(range(30), batches(coupling, batch=512, seed=1), strict=False):
        assert not bool(near(batch.source, held).any())
        seen.append(batch)
    again = next(iter(batches(coupling, batch=512, seed=1, start=7)))
    assert torch.equal(again.source, seen[7].source) and torch.equal(again.target, seen[7].target)
    assert not torch.equal(seen[0].source, seen[1].source)
    fixed = read(coupling, split="held_out")
    assert bool(near(fixed.source, held).all()), "a held-out pair has a held-out source"


def test_each_source_is_drawn_once_in_turn():
    ids = np.arange(250)
    rows = turns(5, ids, 100)
    assert all(len(set(part.tolist())) == len(part) for part in rows.split(100))
    assert torch.equal(turns(5, ids[130:], 100), rows[130:])
    assert not torch.equal(turns(6, ids, 100), rows)


def test_w2_falls_and_no_cost_rises(chain):
    _, found = chain
    one, two = found["rf1"], found["rf2"]
    assert two["w2_n700/nfe_1"] < one["w2_n700/nfe_1"] / 2
    assert two["straightness_rel"] < one["straightness_rel"] / 5
    for metrics in (one, two):
        assert metrics["cost_rise"] < 2 * metrics["cost_rise_se"]
    assert one["cost_rise"] < -0.1, "independent pairs cost more than the flow's"
    assert one["w2_n700/nfe_16"] < 2 * one["w2_n700/floor"]


def test_pairs_start_from_real_sources_and_those_held_out_stay_so(chain):
    root, _ = chain
    sources, pairs = (
        read(open_coupling(root / "data" / SAMPLES)),
        read(open_coupling(root / "pairs")),
    )
    assert bool(near(pairs.source, sources.target).all())
    assert torch.equal(pairs.source[:2000].sort(0).values, sources.target.sort(0).values)
    held = read(open_coupling(root / "data" / SAMPLES), split="held_out").target
    train = read(open_coupling(root / "pairs"), split="train").source
    assert len(held) > 50 and not bool(near(train, held).any())


def test_what_is_known_of_noise_alone_is_not_measured(chain):
    root, found = chain
    pairs = json.loads((root / "pairs.json").read_text())
    assert "noise_z" not in pairs and "noise_repeats" not in pairs
    assert not any("nll" in key for key in found["rf1"])
    flow = Flow.of(load(root / "rf1"))
    assert not flow.score and load(root / "rf2").config["source"]["name"] == "eight_gaussians"


def test_shards_are_kept_when_a_coupling_grows_and_any_batch_gives_its_bytes(chain):
    root, _ = chain
    whole = {}
    for name, pairs, batch in (("small", 2100, 1024), ("grown", 2500, 77)):
        settings = Couple(pairs=pairs, shard=700, batch=batch, solver=Solver(steps=2))
        work = Work(scratch=root / f"tmp_{name}", seed=9)
        couple(root / "rf1", root / "data", root / name, root / f"{name}.json", settings, work)
        whole[name] = {p.name: p.read_bytes() for p in (root / name).glob("*.parquet")}
    assert len(whole["small"]) == 3
    assert all(whole["grown"][name] == shard for name, shard in whole["small"].items())


def test_inverted_pairs_of_a_transfer_go_by_their_target(chain):
    root, _ = chain
    settings = Couple(pairs=900, solver=Solver(steps=2), mix={"generated": 0.5, "inverted": 0.5})
    couple(root / "rf1", root / "data", root / "mixed", root / "mixed.json", settings,
           Work(scratch=root / "tmp_mixed", seed=4))  # fmt: skip
    frame = pd.read_parquet(root / "mixed")
    targets, sources = (
        set(read(open_coupling(path)).real_id.tolist())
        for path in (root / "data", root / "data" / SAMPLES)
    )
    for kind, known in (("generated", sources), ("inverted", targets)):
        assert set(frame[frame.kind == kind].real_id.astype(int)) <= known
    assert ((frame.split == "held_out") == (frame.real_id % 20 == 19)).all()


@pytest.mark.parametrize(
    ("target", "source", "message"),
    [
        (MOONS, Digits(name="digits"), r"source: samples of shape \[1, 8, 8\].*have \[2\]"),
        (MOONS, RING.model_copy(update={"scale": Standardise(name="standardise")}), "data.scale"),
    ],
)
def test_sources_that_do_not_fit_are_refused_in_one_line(tmp_path, target, source, message):
    with pytest.raises(ReflowError, match=message) as error:
        prepare(tmp_path / "d", target, source, seed=0)
    assert "\n" not in str(error.value)


def test_an_interpolant_that_does_not_end_at_the_source_is_refused(chain):
    root, _ = chain
    settings = Train(steps=5, batch=8, interpolant=VarianceExploding(name="variance_exploding"))
    with pytest.raises(ReflowError, match="would not start from the samples of `source`"):
        train(root / "data", root / "scratch", root / "v", root / "v.csv", root / "v.json",
              settings, name="v", work=Work(scratch=root / "tmp_v"))  # fmt: skip


def test_both_sides_have_the_scale_of_the_targets(tmp_path):
    scaled = TwoMoons(name="two_moons", samples=500, scale=Standardise(name="standardise"))
    prepare(tmp_path / "d", scaled, RING, seed=0)
    opened = open_coupling(tmp_path / "d")
    own = RING.read(fmcore.settings.derive_seed(0, "source")).target
    torch.testing.assert_close(
        opened.about.units.inverse(opened.source.samples), own, rtol=0, atol=1e-5
    )


def test_between_gaussians_the_flow_is_the_optimal_map(tmp_path):
    """N(0, 1) x 2 + 1 to N(-1, .5): minibatch optimal pairs give the straight map in one round."""
    torch.set_num_threads(1)
    target = Gaussian(name="gaussian", mean=[-1.0], std=[0.5], samples=4000)
    source = Gaussian(name="gaussian", mean=[1.0], std=[2.0], samples=4000)
    x, y = target.read(1).target, source.read(2).target
    settings = Train(steps=400, batch=256, lr=1e-2, warmup=20, ema=0.98,
                     pairing=Optimal(name="optimal"))  # fmt: skip
    network = MLP(width=32, depth=2, time_features=16, norm="none")
    flow = fmcore.fit_flow(fmcore.independent(x, source=y), settings, network=network)
    assert not flow.score
    start = torch.tensor([[-1.0], [0.0], [1.0], [2.0], [3.0]])
    end = flow.sample(start, Solver(name="euler", steps=1)).x
    torch.testing.assert_close(end, -1 + (start - 1) / 4, atol=0.15, rtol=0)
    with pytest.raises(ReflowError, match="give the sources"):
        fmcore.rectify(flow, 10)
    pairs = fmcore.rectify(flow, y)
    again = fmcore.fit_flow(
        pairs,
        settings.model_copy(update={"steps": 5, "pairing": Train(steps=1).pairing}),
        init=flow,
    )
    assert again.made_of[0].config["source"] == {"name": "tensor"}
    with pytest.raises(ReflowError, match="one shape"):
        fmcore.independent(x, source=torch.zeros(5, 2))


def test_pairs_from_outside_start_where_the_data_does(data, tmp_path):
    target, source = MOONS.read(0).target[:600], RING.read(1).target[:600]
    for name, own in (("right", source), ("elsewhere", source + 6), ("swapped", target + 9)):
        np.savez(tmp_path / f"{name}.npz", target=target.numpy(), source=own.numpy())
        of = TypeAdapter(Import).validate_python(
            {"kind": "npz", "path": str(tmp_path / f"{name}.npz")}
        )
        settings, out = Imported(of=of).settled(), tmp_path / name
        work = Work(scratch=tmp_path / f"{name}-scratch")
        refused = pytest.raises(ReflowError, match=r"sources of the pairs lie .* from those of")
        with nullcontext() if name == "right" else refused:
            couple(tmp_path / "no-model", data, out, tmp_path / f"{name}.json", settings, work)
    found = read(open_coupling(tmp_path / "right"))
    assert torch.equal(found.source, source)
    ring, moons = RING.read(2).target.repeat(3, 1), MOONS.read(0).target.repeat(2, 1)
    by_mode = ring[ring[:, 0].argsort()]  # 6,000, of which the first lie on one side
    np.savez(tmp_path / "sorted.npz", target=moons.numpy(), source=by_mode.numpy())
    of = TypeAdapter(Import).validate_python({"kind": "npz", "path": str(tmp_path / "sorted.npz")})
    importer_of(data, Imported(of=of).settled())
