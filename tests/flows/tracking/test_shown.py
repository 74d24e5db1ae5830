"""Which numbers become metrics in MLflow, and what its pages are told: pure, without a server."""

import json

from flows.dag.chain import Chain, Round
from flows.tracking import pages, shown
from fmcore.verdict.comparison import Choice, Comparison, RoundResult


def result(name, distances, **more):
    cuts = {nfe: [0.9 * d, 1.1 * d] for nfe, d in distances.items()}
    metrics = {"straightness_rel": 0.1, "straightness_rel_se": 0.01, "transport_cost": 3.0}
    return RoundResult(name, "independent", None, False, distances, metrics, cuts, **more)


RF1, RF2 = result("rf1", {1: 9.0, 4: 2.0, 16: 1.5}), result("rf2", {1: 2.0, 4: 1.8, 16: 1.9})
REPEATED = result("rf2_r2", {1: 2.1}, replicate_of="rf2", replicate=2)
SHIP = {"one_step": Choice("rf2", 1, 2.0, 0.1), "best": Choice("rf1", 16, 1.5, 0.2)}
FOUND = Comparison("fd_clf", "f", 1.0, [RF1, RF2, REPEATED], SHIP, [], [], 0.1)


def test_a_round_has_its_distance_the_floor_beside_it_and_scores_with_errors():
    points = {(name, step): value for name, value, step in shown.scored(FOUND, RF1)}
    assert points["distance/fd_clf", 4] == 2.0 and points["distance/floor", 4] == 1.0
    score = {name: value for (name, step), value in points.items() if name.startswith("score/")}
    assert (score["score/nfe_1"], score["score/best"], score["score/best_nfe"]) == (9.0, 1.5, 16.0)
    assert score["score/nfe_1_se"] == RF1.error(1)
    assert score["score/straightness_rel_se"] == 0.01 and "score/transport_cost_se" not in score
    assert len(score) <= 12


def test_a_chain_has_a_curve_a_round_the_floor_and_what_to_ship():
    points = shown.compared(FOUND)
    curves = {name for name, _, step in points if step}
    assert curves == {"distance/rf1", "distance/rf2", "distance/floor"}, "replicates have their own"
    score = {name: value for name, value, step in points if not step}
    assert (score["score/nfe_1"], score["score/best"], score["score/floor"]) == (2.0, 1.5, 1.0)
    assert score["score/best_nfe"] == 16 and score["score/floor_se"] == 0.1


def test_errors_and_other_weights_are_left_to_the_receipt():
    names = ("fd_clf", "fd_clf_se", "fd_clf_inf", "fd_clf_raw", "fd_clf_inf_raw", "kd_clf")
    values = {f"{name}/nfe_1": 1.0 for name in (*names, "fd_clf_raw_minus_ema", "w2_n500")}
    points = shown.measured(values, [{"t": 0.5, "gap": 2.0}])
    names = {name for name, _, _ in points}
    assert names == {"measures/fd_clf", "measures/fd_clf_inf", "measures/kd_clf",
                     "measures/w2_n500", "over_t/gap"}  # fmt: skip
    assert ("over_t/gap", 2.0, 500) in points


def chain_of(*names, replicates=0):
    rounds = [Round(name, i, "k", None, None, {}) for i, name in enumerate(names, 1)]
    rounds += [Round(f"r{i}", 9, "k", None, None, {}, names[0]) for i in range(replicates)]
    return Chain("1234567890abcdef99", "digits", "r", {"seed": 3}, rounds, None, {})


def test_the_name_of_a_run_says_data_rounds_and_key():
    assert chain_of("rf1").title == "digits rf1 1234567"
    assert chain_of("rf1", "rf2").title == "digits rf1, rf2 1234567"
    name = chain_of("rf1", "rf2", "rf3", replicates=2).title
    assert name == "digits rf1 .. rf3 + 2 replicates 1234567"


def test_the_view_shows_the_rounds_of_one_chain_and_the_distance_first():
    state = json.loads(pages.view(chain_of("rf1"), FOUND))
    assert "1234567890abcdef99" in state["searchFilter"]
    assert state["orderByKey"] != "attributes.start_time", "MLflow would fold the rounds"
    first = state["compareRunCharts"][0]
    assert first["selectedMetricKeys"] == ["distance/fd_clf", "distance/floor"]
    assert (first["xAxisScaleType"], first["scaleType"]) == ("log", "log")
    below = result("rf1", {1: -0.01})
    found = Comparison("energy", "f", 0.0, [below], {}, [], [])
    state = json.loads(pages.view(chain_of("rf1"), found))
    assert state["compareRunCharts"][0]["scaleType"] == "linear", "a distance may be negative"
    assert len(pages.view(chain_of("rf1"), FOUND)) < 20_000, "a tag of an experiment"


def test_the_description_begins_with_the_link_and_fits_in_a_tag():
    text = "| a |\n| --- |\n\n- ship rf2\n"
    note = pages.chain_note("1", chain_of("rf1"), "run", text)
    assert note.startswith("[The rounds in one chart](#/experiments/1/runs?workflowType=machine")
    assert "viewStateShareKey=1234567890abcdef)" in note
    assert note.index("- ship rf2") < note.index("get-artifact?path=comparison%2Ffd_over_nfe.png")
    assert len(pages.chain_note("1", chain_of("rf1"), "run", "x" * 9000)) == 8000


def test_the_page_of_a_model_says_what_comes_out_and_what_it_needs():
    plain = {"shape": [1, 8, 8], "network": {"name": "unet"}}
    page = pages.loading("models:/m-1", plain)
    assert page.startswith("Noise to samples, in the data's own units:")
    assert "size=(16, 1, 8, 8)" in page and "trust" not in page
    coded = {**plain, "codec": {"settings": {"name": "diffusers"}, "shape": [3, 64, 64]}}
    page = pages.loading("models:/m-1", coded)
    assert page.startswith("Noise to latents") and "samples of 3 x 64 x 64" in page
    own = {"name": "custom", "path": "mine:Net"}
    for part in ({"network": own}, {"interpolant": own}):
        page = pages.loading("models:/m-1", {**plain, **part})
        assert 'own.trust(Path("."), ["mine:Net"])' in page and "It needs `mine:Net`" in page
    of_all = pages.loading("models:/images@one_step")
    assert "latents where the data have a codec" in of_all and "page of the version" in of_all
