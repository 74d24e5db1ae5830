"""Features and the yardstick: what a distance is read against."""

import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from fmcore.calibrate import calibrate
from fmcore.checked import read_json, sealed
from fmcore.coupling.read import open_coupling, read
from fmcore.coupling.write import About, finish, table, write_shard
from fmcore.dataset.densities import EightGaussians
from fmcore.dataset.public import Digits
from fmcore.evaluate import _against_floor
from fmcore.features.extractor import (
    FeatureSettings,
    extract,
    fingerprint,
    fit_classifier,
    load_extractor,
    quantise,
)
from fmcore.measure import yardstick
from fmcore.measure.distances import disjoint
from fmcore.measure.floor import most_classes, shared
from fmcore.measure.yardstick import YardstickSettings
from fmcore.prepare import prepare
from fmcore.settings import ReflowError, derive_seed
from fmcore.verdict.cuts import SamplerCuts
from fmcore.verdict.errors import paired, summary
from fmcore.verdict.gates import Gates, judge
from fmcore.work.work import Work
from tests.chains import gaussian_data, silent


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("digits") / "independent"
    prepare(folder, Digits(name="digits"), seed=0)
    return folder


@pytest.fixture(scope="module")
def fitted(digits):
    settings = YardstickSettings(features=FeatureSettings(epochs=15), samples=898, splits=2)
    return yardstick.fit(digits, settings, seed=0, log=silent)


def test_the_prepared_data_is_whole_and_in_an_order_of_its_own(digits):
    pairs = read(open_coupling(digits))
    assert len(pairs) == 1797
    assert pairs.label[:10].tolist() != list(range(10))
    assert torch.bincount(pairs.label).min() > 170


def test_the_classifier_knows_digits_it_never_saw(digits):
    pairs = read(open_coupling(digits))
    network = fit_classifier(
        pairs.target[:1400], pairs.label[:1400], FeatureSettings(epochs=15), 0, silent
    )
    right = network(quantise(pairs.target[1400:])).argmax(1) == pairs.label[1400:]
    assert float(right.float().mean()) > 0.95


def test_the_classifier_is_a_function_of_the_seed(digits):
    pairs = read(open_coupling(digits))
    settings = FeatureSettings(epochs=1)
    prints = [
        fingerprint(fit_classifier(pairs.target, pairs.label, settings, seed, silent))
        for seed in (1, 1, 2)
    ]
    assert prints[0] == prints[1] != prints[2]


def test_distances_rank_damage_and_the_floor_is_low(digits, fitted):
    pairs = read(open_coupling(digits))
    generator = torch.Generator().manual_seed(0)
    order = torch.randperm(len(pairs), generator=generator)[: fitted.samples]
    order = order.repeat(2)[: fitted.samples]
    real = pairs.target[order]
    noise = torch.randn(real.shape, generator=generator)
    found = [
        summary(fitted.measure(x))["fd_clf"]
        for x in (real, real + 0.4 * noise, real + noise, 2 * torch.rand_like(real) - 1)
    ]
    assert found == sorted(found)
    assert 2 * fitted.about["floor"]["fd_clf"] < found[1] < found[2] / 2


def test_images_are_compared_as_a_file_would_hold_them():
    x = torch.tensor([-3.0, -1.0, 0.001, 1.0, 7.0])
    q = quantise(x)
    assert q.min() == -1 and q.max() == 1
    torch.testing.assert_close(quantise(q), q)
    assert float((q[2] - x[2]).abs()) < 1 / 255


def test_a_yardstick_survives_the_disk_and_refuses_another_extractor(tmp_path, fitted):
    yardstick.save(tmp_path / "y", fitted)
    again = yardstick.load(tmp_path / "y")
    x = torch.rand(fitted.samples, 1, 8, 8)
    assert again.measure(x) == fitted.measure(x)
    assert again.name == "fd_clf"
    about = read_json(tmp_path / "y" / "yardstick.json")
    text = json.dumps(sealed({**about, "fingerprint": "x"}))
    (tmp_path / "y" / "yardstick.json").write_text(text)
    with pytest.raises(ReflowError, match="not the extractor"):
        yardstick.load(tmp_path / "y")
    (tmp_path / "y" / "extractor" / "model.safetensors").write_bytes(b"")
    with pytest.raises(ReflowError, match="damaged"):
        load_extractor(tmp_path / "y" / "extractor")


def test_labels_missing_where_they_are_needed(tmp_path):
    data = gaussian_data(tmp_path / "data", mu=[0.0, 0.0], s=[1.0, 1.0], pairs=100)
    with pytest.raises(ReflowError, match="needs images with labels.*identity"):
        yardstick.fit(data, YardstickSettings(), seed=0, log=silent)


def test_too_few_samples(tmp_path):
    about = About(kind="independent", shape=[2], pairs=2, seed=0)
    write_shard(tmp_path / "d", 0, table(about, np.arange(2), torch.zeros(2, 2)))
    finish(tmp_path / "d", about, 1)
    settings = YardstickSettings(features=FeatureSettings(kind="identity"))
    with pytest.raises(ReflowError, match="cannot be cut in two halves"):
        yardstick.fit(tmp_path / "d", settings, seed=0, log=silent)


def test_vectors_get_transport_distances_with_their_floor(tmp_path):
    data = gaussian_data(tmp_path / "data", mu=[2.0, -1.0], s=[1.0, 0.5], pairs=4000)
    settings = YardstickSettings(features=FeatureSettings(kind="identity"), samples=1000, splits=2)
    made = yardstick.fit(data, settings, seed=0, log=silent)
    x = torch.randn(made.samples, 2, generator=torch.Generator().manual_seed(5))
    good = summary(made.measure(torch.tensor([2.0, -1.0]) + torch.tensor([1.0, 0.5]) * x))
    collapsed = summary(made.measure(torch.tensor([2.0, -1.0]) + 0 * x))
    assert set(good) >= {"fd_identity", "w2_n1000", "sliced_w2_n1000", "energy", "energy_se"}
    for name, floor in made.floor.items():
        if name.endswith("_se"):
            continue
        assert abs(good[name] - floor) < abs(floor) + 0.1
        if name in {"recall", "coverage"}:
            assert collapsed[name] < 0.1
        elif name not in {"precision", "density", "nearest_train"}:  # one good point pleases these
            assert collapsed[name] > 0.3
    assert collapsed["fd_identity"] == pytest.approx(1 + 0.25, rel=0.1)
    assert torch.equal(extract(None, x), x)


def test_a_class_that_is_wrong_shows_in_its_own_distance(digits, fitted):
    pairs = read(open_coupling(digits))
    generator = torch.Generator().manual_seed(3)
    order = torch.randperm(len(pairs), generator=generator)[: fitted.samples // 2].repeat(2)
    x, label = pairs.target[order], pairs.label[order]
    good = summary(fitted.measure(x, label))
    noisy = torch.where((label == 3)[:, None, None, None], torch.randn(x.shape).clamp(-1, 1), x)
    bad = summary(fitted.measure(noisy, label))
    names = [f"fd_clf_class_{k}" for k in range(10)]
    assert set(names) <= set(good) and set(names) <= set(fitted.about["floor"])
    assert bad["fd_clf_class_3"] > 5 * good["fd_clf_class_3"]
    assert all(bad[n] == good[n] for n in names if n != "fd_clf_class_3")
    assert not any("class" in name for cut in fitted.measure(x) for name in cut)


def test_a_rare_class_does_not_spoil_the_others():
    label = torch.tensor([0] * 100 + [1] * 80 + [2] * 5 + [3] * 60)
    halves = [(torch.arange(0, 245, 2), torch.arange(1, 245, 2))]
    assert shared(label, halves, 10) == ([0, 1, 3], 30)
    assert shared(label, halves, 2) == ([0, 1], 40)
    assert shared(torch.arange(245) % 5, halves, 10) == ([0, 1, 2, 3, 4], 24)
    assert shared(torch.arange(245), halves, 10) == ([], 0)
    assert shared(None, halves, 10) == ([], 0)


def test_the_statistics_of_classes_have_bounded_memory():
    assert most_classes(2048, 8) == 32 and most_classes(64, 8) >= 1000
    for width, cuts in ((2048, 8), (512, 4), (64, 8), (2, 100)):
        held = most_classes(width, cuts) * 8 * width**2 * (cuts if width <= 512 else 1)
        assert 0 < held <= 2**30


def test_conditions_are_no_classes(tmp_path):
    about = About(kind="independent", shape=[2], pairs=400, seed=0, conditions={"count": 2})
    label = torch.arange(400) % 2
    x = torch.randn(400, 2, generator=torch.Generator().manual_seed(1))
    write_shard(tmp_path / "data", 0, table(about, np.arange(400), x, label=label))
    finish(tmp_path / "data", about, 1)
    settings = YardstickSettings(features=FeatureSettings(kind="identity"), samples=50, splits=2)
    made = yardstick.fit(tmp_path / "data", settings, seed=0, log=silent)
    assert made.about["class_n"] == 0 and not any("class_" in name for name in made.floor)


def test_eight_gaussians_have_modes(tmp_path):
    folder = tmp_path / "data"
    law = EightGaussians(name="eight_gaussians", samples=2000)
    prepare(folder, law, seed=0)
    settings = YardstickSettings(features=FeatureSettings(kind="identity"), samples=500, splits=1)
    made = yardstick.fit(folder, settings, seed=0, log=silent)
    assert made.about["floor"]["mode_share"] > 0.97
    (one,) = made.measure(law.modes()[:1].float().repeat(500, 1))
    assert one["mode_weights_tv"] == pytest.approx(7 / 8)


def test_reference_and_floor_are_disjoint_halves_of_the_data(tmp_path):
    rows, others = disjoint(100, 50, 3)
    assert sorted([*rows.tolist(), *others.tolist()]) == list(range(100))
    assert not torch.equal(rows, disjoint(100, 50, 4)[0])


def test_a_cut_is_a_random_half_and_what_trained_holds_nothing_back(tmp_path):
    gaussian_data(tmp_path / "data", mu=[1.0, 2.0], s=[1.0, 0.5], pairs=100)
    settings = YardstickSettings(features=FeatureSettings(kind="identity"), samples=50, splits=3)
    fitted = yardstick.fit(tmp_path / "data", settings, seed=0, log=silent)
    coupling = open_coupling(tmp_path / "data")
    whole = read(coupling).target
    for i, cut in enumerate(fitted.cuts):
        rows, _ = disjoint(100, 50, derive_seed(0, "halves", i))
        assert torch.equal(cut.features, whole[rows]) and torch.equal(cut.points, whole[rows])
        torch.testing.assert_close(cut.stats.mean, whole[rows].double().mean(0))
    assert torch.equal(fitted.train, read(coupling, split="train").target)
    held = read(coupling, split="held_out").target
    floor = torch.cdist(held.double(), fitted.train.double()).min(1).values
    assert fitted.floor["nearest_train"] == pytest.approx(float(floor.mean()))


def test_the_metrics_of_the_cuts_are_their_own(tmp_path):
    """A group that is wrong is wrong in its own cut alone."""
    gaussian_data(tmp_path / "data", mu=[0.0, 0.0], s=[1.0, 1.0], pairs=400)
    settings = YardstickSettings(features=FeatureSettings(kind="identity"), samples=100, splits=3)
    made = yardstick.fit(tmp_path / "data", settings, seed=0, log=silent)
    x = torch.randn(300, 2, generator=torch.Generator().manual_seed(0))
    good = made.measure(x)
    x[100:200] += 5
    bad = made.measure(x)
    assert [a == b for a, b in zip(good, bad, strict=True)] == [True, False, True]
    assert bad[1]["energy"] > 5 and len(good) == 3
    assert summary(good)["energy_se"] > 0 and "fd_identity_inf_se" not in summary(good)


def test_one_blob_does_not_pass_for_eight_gaussians(tmp_path):
    """Mean and covariance of a single Gaussian are those of the data; its energy is not."""
    law = EightGaussians(name="eight_gaussians", samples=2000)
    prepare(tmp_path / "data", law, seed=0)
    settings = YardstickSettings(
        features=FeatureSettings(kind="identity"), samples=500, splits=4, floor_cuts=8,
        w2_samples=50,
    )  # fmt: skip
    made = yardstick.fit(tmp_path / "data", settings, seed=0, log=silent)
    assert made.name == "energy"
    fresh = law.read(1).target
    draw = torch.randn(2000, 2, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    root = torch.linalg.cholesky(fresh.double().T.cov())
    blob = made.measure((fresh.double().mean(0) + draw @ root.T).float())
    true = made.measure(fresh)
    energy, share, frechet = (
        [[cut[name] for cut in side] for side in (blob, true)]
        for name in ("energy", "mode_share", "fd_identity")
    )
    assert paired(*energy).p < 0.01 and paired(*reversed(share)).p < 0.01
    assert sum(energy[0]) / 4 > made.floor["energy"] + 10 * made.floor["energy_se"]
    assert not paired(*frechet).p < 0.01, "mean and covariance alone do not tell them apart"


def calibrated(folder, data, **settings):
    """Return what calibrate says, and what it warns of."""
    said, warned = [], []
    chosen = YardstickSettings(
        features=FeatureSettings(kind="identity"),
        **{"samples": 40, "floor_cuts": 8, "w2_samples": 10, **settings},
    )
    work = Work(scratch=folder / "tmp")
    calibrate(data, folder / "yardstick", chosen, work, say=said.append, warn=warned.append)
    return said, warned


def test_calibrate_says_what_judges_and_what_it_resolves(tmp_path):
    data = gaussian_data(tmp_path / "data", mu=[0.0, 0.0], s=[1.0, 1.0], pairs=80)
    (said,), warned = calibrated(tmp_path / "a", data, splits=4)
    resolves = yardstick.load(tmp_path / "a" / "yardstick").about["resolves"]
    assert said.startswith("rounds are judged by energy of 40 samples a cut; real against real")
    near = "near it a paired test over 4 cuts sees differences above"
    assert said.endswith(f"{near} {resolves:.2g}")
    assert not warned and resolves > 0
    (said,), _ = calibrated(tmp_path / "b", data, splits=1)
    assert said.endswith("a single cut has no error: raise yardstick.splits to compare by a test")
    (said,), _ = calibrated(tmp_path / "c", data, splits=4, floor_cuts=1)
    assert said.endswith("a floor of one cut does not say what a test resolves: raise floor_cuts")
    many = gaussian_data(tmp_path / "many", mu=[0.0, 0.0], s=[1.0, 1.0], pairs=4400)
    (said,), _ = calibrated(tmp_path / "d", many, splits=1, floor_cuts=1, samples=2200)
    assert said.startswith("rounds are judged by energy of 2,000 samples a cut;"), "not of 2,200"


def test_raw_pixels_of_images_draw_a_warning(tmp_path):
    about = About(kind="independent", shape=[1, 4, 4], pairs=80, seed=0, image=True)
    x = torch.rand(80, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    write_shard(tmp_path / "d", 0, table(about, np.arange(80), x))
    finish(tmp_path / "d", about, 1)
    said, warned = calibrated(tmp_path / "y", tmp_path / "d", splits=2)
    assert "judged by fd_identity" in said[0]
    assert len(warned) == 1 and "lite0, or classifier" in warned[0]


def test_what_is_missing_and_what_comes_back_is_measured_at_the_best_nfe():
    """Recall half of its floor, samples at a fourth of the distance of held-out data."""
    good = [{"fd": 1.0, "recall": 0.4, "nearest_train": 0.5 + e} for e in (-0.01, 0.01)]
    rows = [SamplerCuts("euler_1", 1.0, [{"fd": 9.0, "recall": 0.0}] * 2)]
    rows.append(SamplerCuts("euler_4", 4.0, good))
    floor = {"recall": 0.8, "recall_se": 0.02, "nearest_train": 2.0, "nearest_train_se": 0.04}
    found = _against_floor(rows, SimpleNamespace(name="fd", floor=floor))
    assert found["recall_lost"] == pytest.approx(0.5) and found["recall_lost_cuts"] == 2
    assert found["recall_lost_se"] == pytest.approx(0.5 * 0.02 / 0.8)
    assert found["memorised"] == pytest.approx(0.75)
    assert found["memorised_se"] == pytest.approx(math.hypot(0.01, 0.25 * 0.04) / 2)
    states = {v.gate: v.state for v in judge(Gates(), {**found, "memorised_cuts": 4})}
    assert states["memorised"] == "warn"
    assert "memorised" not in _against_floor(rows, SimpleNamespace(name="fd", floor={"recall": 1}))
