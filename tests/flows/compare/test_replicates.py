"""A real chain with two replicates, its stages called as functions: from settings to rounds.md."""

import json
from types import SimpleNamespace

import pytest
from rich.console import Console

from flows.compare import show
from flows.compare.chains import ComparedChain
from flows.compare.tables import TimedComparison
from flows.params.load import load, maker
from flows.params.replicates import replicate
from flows.stage import taken
from flows.stage.verbs import VERBS
from fmcore.coupling.read import open_coupling
from fmcore.network.store import load as load_model
from fmcore.settings import ReflowError
from fmcore.verdict.comparison import Comparison
from fmcore.verdict.replicates import replicates
from tests.fmcore.verdict.test_replicates import rounds

PARAMS = """
seed: 0
compute: {device: cpu, threads: 1}
data: {name: gaussian, mean: [1.0, -1.0], std: [1.0, 1.0], samples: 400}
network: {width: 8, depth: 1, time_features: 8}
yardstick: {features: {kind: identity}, samples: 100, splits: 2, floor_cuts: 4}
evaluate:
  nfe: [1, 4]
  solver: {name: heun, steps: 4}
  trajectories: 100
  reconstructions: 0
gates:
  held_out_rel: {warn: null, fail: null}
  solver_gap_rel: {warn: null, fail: null}
  endpoint_shift: {warn: null, fail: null}
  cost_rise: {warn: null, fail: null}
  held_out_ratio: {warn: null, fail: null}
rounds:
  rf1: {coupling: independent, init: scratch, train: {steps: 15, batch: 64, lr: 1.0e-2, warmup: 2}}
  rf2: {coupling: rf1, init: rf1, train: {steps: 10, batch: 64, lr: 1.0e-3, warmup: 2}}
couplings:
  rf1: {round: rf1, pairs: 300, solver: {name: heun, steps: 4}}
"""


def run(root, params, verb, key="", **paths):
    scratch = root / "tmp" / f"{verb}{key}"
    scratch.mkdir(parents=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(taken, "shards", lambda *_: [])  # DVC's cache, which this folder has not
        VERBS[verb](params, key, {word: root / path for word, path in paths.items()}, scratch)


@pytest.fixture(scope="module")
def chain(tmp_path_factory):
    root = tmp_path_factory.mktemp("replicates")
    (root / "params.yaml").write_text(PARAMS)
    replicate(root / "params.yaml", 2)
    params = load(root / "params.yaml")
    data = "couplings/independent"
    run(root, params, "prepare", out=data, metrics="metrics/prepare.json")
    run(root, params, "initialise", data=data, out="models/scratch")
    run(root, params, "calibrate", data=data, out="yardstick")
    for name in ("rf1", "rf1_r2", "rf2", "rf2_r2"):
        own, model = params.rounds[name], f"models/{name}"
        made = f"couplings/{own.coupling}"
        if maker(params, name):
            run(
                root, params, "couple", own.coupling, model=f"models/{maker(params, name)}",
                data=data, out=made, metrics=f"metrics/couple/{own.coupling}.json",
            )  # fmt: skip
        run(
            root, params, "train", name, coupling=made, init=f"models/{own.init}", out=model,
            curve=f"curves/train/{name}.csv", metrics=f"metrics/train/{name}.json",
        )  # fmt: skip
        run(
            root, params, "evaluate", name, model=model, data=data, coupling=made,
            yardstick="yardstick", metrics=f"metrics/evaluate/{name}.json",
            fd=f"curves/fd/{name}.csv", straightness=f"curves/straightness/{name}.csv",
            out=f"pictures/{name}",
        )  # fmt: skip
    run(
        root, params, "compare", metrics="metrics", fd="curves/fd", curves="curves/straightness",
        yardstick="yardstick", out="comparison",
    )  # fmt: skip
    return root


def test_replicates_start_from_other_weights_and_draw_other_pairs(chain):
    starts = [load_model(chain / "models" / n).config for n in ("rf1", "rf1_r2", "rf2", "rf2_r2")]
    assert len({about["init"] for about in starts}) == 4
    assert len({about["seed"] for about in starts}) == 4
    pairs = [open_coupling(chain / "couplings" / name).about.seed for name in ("rf1", "rf1_r2")]
    assert pairs[0] != pairs[1]


def test_the_comparison_groups_them_and_tests_against_the_round_before(chain):
    found = json.loads((chain / "comparison" / "rounds.json").read_text())
    by_name = {row["round"]: row for row in found["rounds"]}
    metric = found["metric"]
    assert list(by_name) == ["rf1", "rf2", "rf1_r2", "rf2_r2"]
    rf1, rf2 = found["replicates"]
    assert (rf1["baseline"], rf2["baseline"], rf2["pairs"]) == (None, "rf1", 2)
    values = {name: row[metric]["1"] for name, row in by_name.items()}
    over = rf2["distances"]["1"]
    assert over["mean"] == pytest.approx((values["rf2"] + values["rf2_r2"]) / 2)
    gaps = [values["rf2"] - values["rf1"], values["rf2_r2"] - values["rf1_r2"]]
    assert over["gap"] == pytest.approx(sum(gaps) / 2)
    assert over["gap_se"] == pytest.approx(abs(gaps[0] - gaps[1]) / 2)
    assert {choice["round"] for choice in found["ship"].values()} <= {"rf1", "rf2"}
    text = (chain / "comparison" / "rounds.md").read_text()
    assert "Over replicates: mean ± standard deviation" in text and "rf1 (2 pairs)" in text


def test_the_baseline_that_is_named_holds_on_the_page_and_for_one_chain_alone(
    tmp_path, monkeypatch
):
    repeated = rounds()
    found = Comparison("fd", "f", 4.0, repeated, {}, [], [], replicates=replicates(repeated))
    about = SimpleNamespace(recipe="r", key="k")
    one = ComparedChain("workspace", about, found, lambda _: None)
    drawn = []
    monkeypatch.setattr(show, "gather", lambda *_, **__: [one])
    monkeypatch.setattr(show, "comparison", lambda *_: TimedComparison(found, {}))
    monkeypatch.setattr("flows.compare.page.page", lambda groups: drawn.extend(groups) or "")
    given = {"published": False, "form": "json", "csv": None, "out": Console(quiet=True)}
    for baseline, wanted in ((None, ["rf1", "a"]), ("b", ["b", None])):
        drawn.clear()
        show.show(tmp_path, [], html=tmp_path / "a.html", baseline=baseline, **given)
        assert [g.baseline for g in drawn[0].chains[0].found.replicates] == wanted
    with pytest.raises(ReflowError, match="leave out --rev and --all"):
        show.show(tmp_path, ["main"], html=None, baseline="b", **given)
