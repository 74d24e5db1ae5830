"""Other weights of a round, measured beside its average on the same noise and cuts."""

import csv
import json
import math
from statistics import stdev

import pytest
import torch

from fmcore.evaluate import Evaluate, EvaluatePaths, evaluate
from fmcore.features.extractor import FeatureSettings
from fmcore.measure.averages import beside, named, there
from fmcore.measure.yardstick import YardstickSettings, fit
from fmcore.measure.yardstick import save as save_yardstick
from fmcore.network.power import PowerEma
from fmcore.network.store import load, save
from fmcore.solve.solver import Solver
from fmcore.train import Train, train
from fmcore.verdict.cuts import SamplerCuts
from fmcore.work.work import Work
from tests.chains import gaussian_data, scratch_model, silent

SETTINGS = Evaluate(
    nfe=(1, 8), solver=Solver(steps=8), trajectories=100, reconstructions=0,
    weights=("raw", 0.05, 0.1, 0.2), weights_nfe=(1, 8, 64),
)  # fmt: skip


def test_differences_are_paired_cut_by_cut():
    average = [SamplerCuts("euler_8", 8, [{"fd": 1.0}, {"fd": 5.0}, {"fd": 3.0}])]
    other = [SamplerCuts("euler_8", 8, [{"fd": 2.0}, {"fd": 6.5}, {"fd": 3.5}])]
    rows, found = beside("raw", other, average, "fd")
    assert rows == [SamplerCuts("raw_euler_8", 8, other[0].cuts)] and not rows[0].euler
    assert found["fd_raw/nfe_8"] == 4 and found["raw_minus_ema"] == 1
    assert found["fd_raw_se/nfe_8"] == pytest.approx(stdev([2, 6.5, 3.5]) / math.sqrt(3))
    error = stdev([1, 1.5, 0.5]) / math.sqrt(3)  # the spread that both share cancels
    assert found["fd_raw_minus_ema_se/nfe_8"] == pytest.approx(error)
    assert found["raw_minus_ema_se"] == pytest.approx(error)
    assert "raw_minus_ema" not in beside(0.1, other, average, "fd")[1]


def test_only_weights_that_a_model_has_are_measured():
    assert there(("raw", "ema", 0.1, 0.1), {}) == ["raw"]
    assert there(("raw", "ema", 0.1, 0.1), {"power_ema": {"steps": [1]}}) == ["raw", 0.1]
    assert named("raw") == "raw" and named(0.1) == "power_0.1"


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    torch.set_num_threads(1)
    root = tmp_path_factory.mktemp("averages")
    gaussian_data(root / "data", mu=[2.0, -1.0], s=[1.0, 0.5])
    scratch_model(root / "init", dim=2)
    kind = YardstickSettings(
        features=FeatureSettings(kind="identity"), samples=200, splits=3, floor_cuts=3
    )
    save_yardstick(root / "yardstick", fit(root / "data", kind, seed=0, log=silent))
    train(
        root / "data", root / "init", root / "rf1", root / "curve.csv", root / "train.json",
        Train(steps=100, batch=64, lr=1e-2, warmup=5, power_ema=PowerEma()), name="rf1",
        work=Work(scratch=root / "tmp", seed=1),
    )  # fmt: skip
    return root


def measure(root, model, name, settings=SETTINGS):
    out = root / name
    paths = EvaluatePaths(
        root / model, root / "data", root / "data", root / "yardstick",
        out / "metrics.json", out / "fd.csv", out / "gap.csv", out / "pictures",
    )  # fmt: skip
    found = evaluate(paths, settings, Work(scratch=root / "tmp", seed=3))
    assert found == json.loads((out / "metrics.json").read_text())
    return found


def test_raw_weights_and_power_averages_score_what_they_score_alone(place):
    found = measure(place, "rf1", "all")
    for weights in ("raw", 0.05, 0.1, 0.2):
        alone = load(place / "rf1", weights=weights)
        about = {k: alone.config[k] for k in ("interpolant", "objective", "coupling", "pairing")}
        save(place / "alone", alone.network, about=about)
        own = measure(place, "alone", "one", SETTINGS.model_copy(update={"weights": ()}))
        for nfe in (1, 8):
            for key in (f"energy/nfe_{nfe}", f"energy_se/nfe_{nfe}", f"recall/nfe_{nfe}"):
                metric, at = key.split("/")
                name = metric.removesuffix("_se")
                named_so = f"{name}_{named(weights)}" + ("_se" if name != metric else "")
                assert found[f"{named_so}/{at}"] == own[key]
            gap = found[f"energy_{named(weights)}/nfe_{nfe}"] - found[f"energy/nfe_{nfe}"]
            told = found[f"energy_{named(weights)}_minus_ema/nfe_{nfe}"]
            assert told == pytest.approx(gap, abs=1e-9)
    with (place / "all" / "fd.csv").open() as file:
        samplers = [row["sampler"] for row in csv.DictReader(file)]
    assert {s for s in samplers if "raw" in s} == {"raw_euler_1", "raw_euler_8"}
    assert samplers.count("power_0.1_euler_8") == 3
    assert (place / "all/pictures/weights.png").stat().st_size > 1000


def test_a_round_without_power_averages_has_no_scan(place):
    found = measure(place, "init", "plain")
    assert "energy_raw/nfe_8" in found and not any("power" in key for key in found)
    assert found["raw_minus_ema"] == 0  # nothing was trained: both are the same
    assert not (place / "plain/pictures/weights.png").exists()
    none = measure(place, "init", "none", SETTINGS.model_copy(update={"weights": ()}))
    assert not any("raw" in key for key in none)
