"""A real sample that is held out is held out everywhere: by its content, not by its place."""

import pandas as pd
import pytest
import torch

from fmcore.couple import couple
from fmcore.coupling.noise import NOT_REAL, identities, is_held_out
from fmcore.coupling.read import open_coupling, read
from fmcore.dataset.densities import TwoMoons
from fmcore.dataset.public import Digits
from fmcore.dataset.samples import Data, Samples
from fmcore.features.extractor import FeatureSettings, levels
from fmcore.measure import real, yardstick
from fmcore.measure.yardstick import YardstickSettings
from fmcore.network.build import build
from fmcore.network.mlp import MLP
from fmcore.network.store import save
from fmcore.prepare import prepare
from fmcore.sampling.pairs import Couple
from fmcore.settings import ReflowError
from fmcore.solve.solver import Solver
from fmcore.training.batches import batches
from fmcore.work.work import Work
from tests.chains import gaussian_data, silent

HALF = {"generated": 0.5, "inverted": 0.5}
ONE_STEP = Solver(name="euler", steps=1)


def rows(x):
    """Return the samples as a set of their bytes."""
    return {row.numpy().tobytes() for row in x.flatten(1)}


def pairs_of(root, data, shape, name="pairs", **settings):
    """Sample a coupling of an untrained model, half of it inverted; return its folder."""
    network = build(MLP(width=8, depth=1), shape, seed=0)
    if not (root / "model").exists():
        save(root / "model", network, about={"round": "rf1"})
    chosen = Couple(**{"pairs": 4000, "solver": ONE_STEP, "mix": HALF, **settings})
    couple(
        root / "model", data, root / name, root / f"{name}.json", chosen,
        Work(scratch=root / f"{name}.tmp", seed=1),
    )  # fmt: skip
    return root / name


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    torch.set_num_threads(1)
    root = tmp_path_factory.mktemp("digits")
    prepare(root / "data", Digits(name="digits"), seed=0)
    pairs_of(root, root / "data", (1, 8, 8))
    return root


def test_no_held_out_sample_trains_in_a_later_coupling(digits):
    data, made = open_coupling(digits / "data"), open_coupling(digits / "pairs")
    real, held = rows(read(data).target), rows(read(data, split="held_out").target)
    seen = rows(read(made, split="train").target) & real
    inverted = rows(read(made, split="held_out").target) & real
    assert len(seen) > 1000 and len(inverted) > 50 and len(held) > 64
    assert not held & seen, "a held-out real sample trains the next round"
    assert not inverted & seen, "a held-out pair's target also trains"
    assert inverted <= held


def test_nothing_that_a_student_trains_on_is_held_out(digits):
    """Students read the same stream of batches as other rounds, one epoch of it here."""
    held = rows(read(open_coupling(digits / "data"), split="held_out").target)
    for _, batch in zip(range(15), batches(open_coupling(digits / "pairs"), batch=256, seed=0)):
        assert not rows(batch.target) & held and not bool(batch.held_out.any())


def test_a_pair_says_which_real_sample_it_has(digits):
    made, real = pd.read_parquet(digits / "pairs"), read(open_coupling(digits / "data"))
    assert (made.real_id.notna() == (made.kind == "inverted")).all()
    number = dict(zip(real.real_id.tolist(), rows_of(real.target), strict=True))
    inverted = made[made.kind == "inverted"]
    assert all(number[int(i)] == t.tobytes() for i, t in zip(inverted.real_id, inverted.target))
    generated = made[made.kind == "generated"]
    assert ((generated.split == "held_out") == (generated.pair_id % 20 == 19)).all()


def rows_of(x):
    """Return the bytes of each sample."""
    return [row.numpy().tobytes() for row in x.flatten(1)]


class Repeated(Data):
    """Each of 100 digits twenty times."""

    def read(self, seed: int) -> Samples:
        """Return 2,000 samples."""
        samples = Digits(name="digits").read(seed)
        return Samples(samples.target[:100].repeat(20, 1, 1, 1), None, image=True)


def test_copies_of_a_sample_are_on_one_side(tmp_path):
    prepare(tmp_path / "data", Repeated(), seed=0)
    data = open_coupling(tmp_path / "data")
    train, held = (rows(read(data, split=split).target) for split in ("train", "held_out"))
    assert len(train) + len(held) == 100 and held and not train & held


def test_the_same_samples_are_held_out_in_any_order_and_any_larger_data(tmp_path):
    for name, seed in (("one", 0), ("other", 5)):
        prepare(tmp_path / name, Digits(name="digits"), seed=seed)
    first, second = (
        rows(read(open_coupling(tmp_path / name), split="held_out").target)
        for name in ("one", "other")
    )
    assert first == second
    points = TwoMoons(name="two_moons", samples=4000).read(0).target
    part, whole = (is_held_out(torch.arange(n).numpy(), identities(points[:n])) for n in (90, 4000))
    assert (whole[:90] == part).all()
    assert whole.mean() == pytest.approx(0.05, abs=4 * (0.05 * 0.95 / 4000) ** 0.5)


def test_pairs_without_a_real_sample_are_held_out_by_their_number():
    ids = torch.arange(60).numpy()
    real = torch.full((60,), NOT_REAL).numpy()
    assert is_held_out(ids, real).nonzero()[0].tolist() == [19, 39, 59]
    assert is_held_out(ids).nonzero()[0].tolist() == [19, 39, 59]


def test_a_grown_mixture_keeps_its_shards(tmp_path):
    torch.set_num_threads(1)
    data = gaussian_data(tmp_path / "data", mu=[1.0, 0.0], s=[1.0, 2.0], pairs=90)
    small = pairs_of(tmp_path, data, (2,), "small", pairs=128, shard=64)
    grown = pairs_of(tmp_path, data, (2,), "grown", pairs=200, shard=64, batch=7)
    for name in ("part-00000.parquet", "part-00001.parquet"):
        assert (small / name).read_bytes() == (grown / name).read_bytes()


def test_inverted_pairs_of_data_without_identities_are_refused(tmp_path, monkeypatch):
    data = gaussian_data(tmp_path / "data", mu=[0.0], s=[1.0], pairs=50)
    whole = read(open_coupling(data))
    older = type(whole)(whole.pair_id, whole.target, whole.source, None, independent=True)
    monkeypatch.setattr("fmcore.sampling.sampler.read", lambda _, **__: older)
    with pytest.raises(ReflowError, match="earlier version.*run the stage prepare again"):
        pairs_of(tmp_path, data, (1,))


def test_the_classifier_never_sees_what_is_held_out(digits, monkeypatch):
    seen = {}

    def fit(images, labels, settings, seed, log):
        seen["images"] = images
        return classifier(images, labels, settings, seed, log)

    classifier = real.fit_classifier
    monkeypatch.setattr(real, "fit_classifier", fit)
    settings = YardstickSettings(features=FeatureSettings(epochs=15), samples=898, splits=2)
    found = yardstick.fit(digits / "data", settings, seed=0, log=silent)
    data = open_coupling(digits / "data")
    assert rows(seen["images"]) == rows(levels(read(data, split="train").target))
    assert found.about["classifier_accuracy"] > 0.9
