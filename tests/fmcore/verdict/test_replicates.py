"""Mean and spread over replicates, and the paired test, in closed form."""

import json
from statistics import stdev

import pytest
from scipy import stats

from fmcore.settings import ReflowError
from fmcore.verdict.comparison import Comparison, RoundResult
from fmcore.verdict.replicates import gap_text, lines, replicates, spread_text


def result(name, value, *, coupling="rf1", parent="rf1", of=None, number=None, student=False):
    metrics = {"straightness_rel": value / 100, "straightness_rel_se": 0.5}
    return RoundResult(
        name, coupling, parent, student, {1: value, 4: value / 2}, metrics, {}, of, number
    )


ALONE = result("rf1", 90.0, coupling="independent", parent=None)
A = [12.0, 13.0, 15.0]
B = [11.5, 12.0, 14.0]


def rounds():
    found = [ALONE]
    for name, values in (("a", A), ("b", B)):
        found.append(result(name, values[0]))
        for number, value in enumerate(values[1:], start=2):
            made = {"coupling": f"rf1_r{number}", "parent": f"rf1_r{number}"}
            found.append(result(f"{name}_r{number}", value, of=name, number=number, **made))
    return found


def test_a_round_over_its_replicates_has_mean_sd_and_the_paired_test_of_scipy():
    one, two = replicates(rounds())
    assert (one.round, one.count, two.round, two.count) == ("a", 3, "b", 3)
    over = two.distances[1]
    assert over.mean == pytest.approx(12.5) and over.sd == pytest.approx(stdev(B))
    wanted = stats.ttest_rel(B, A)
    assert (two.baseline, two.pairs) == ("a", 3)
    assert over.gap == pytest.approx(-2.5 / 3) and over.p == pytest.approx(wanted.pvalue)
    assert over.gap / over.gap_se == pytest.approx(wanted.statistic)
    assert two.distances[4].gap == pytest.approx(over.gap / 2)
    assert two.metrics["straightness_rel"].mean == pytest.approx(0.125)
    assert "straightness_rel_se" not in two.metrics


def test_against_a_round_that_was_trained_once_nothing_is_decided():
    one, _ = replicates(rounds())
    assert (one.baseline, one.pairs) == ("rf1", 1)
    over = one.distances[1]
    assert (over.gap, over.gap_se, over.p) == (12.0 - 90.0, None, None)
    assert gap_text(over) == "-78 (one pair: not decided)"


def test_the_baseline_is_the_first_of_the_same_coupling_the_maker_or_the_one_named():
    found = rounds()
    assert [g.baseline for g in replicates(found)] == ["rf1", "a"]
    assert [g.baseline for g in replicates(found, "b")] == ["b", None]
    assert replicates(found, "b")[0].distances[1].gap == pytest.approx(2.5 / 3)
    with pytest.raises(ReflowError, match="--baseline c: no such round; there are: rf1, a, b"):
        replicates(found, "c")


def test_replicates_are_paired_by_their_number_not_by_their_order():
    found = rounds()
    mixed = [*found[:2], found[3], found[2], *found[4:]]
    assert replicates(mixed)[1].distances == replicates(found)[1].distances
    lacking = [r for r in found if r.name != "a_r2"]
    over = replicates(lacking)[1]
    assert over.pairs == 2 and over.distances[1].gap == pytest.approx((-0.5 - 1.0) / 2)
    assert over.distances[1].mean == pytest.approx(12.5)


def test_a_chain_without_replicates_has_none():
    assert replicates([ALONE, result("a", 12.0)]) == []


def test_the_table_says_mean_sd_n_and_the_difference_with_its_error():
    head, rule, first, second = lines(replicates(rounds()), "fd")
    assert head.split(" | ")[1:4] == ["n", "fd@1", "fd@4"] and set(rule) <= set("|- ")
    assert "| a | 3 | 13.33 ± 1.5 |" in first
    assert "| a (3 pairs) | -0.833 ± 0.17 (p 0.038) |" in second
    assert spread_text(None) == gap_text(None) == ""


def test_its_curves_over_nfe_have_a_point_for_each_number_that_is_known():
    one, two = (dict((p[:1] + p[2:], p[1]) for p in g.points("fd")) for g in replicates(rounds()))
    assert two["replicates/b/fd_mean", 1] == 12.5 and two["replicates/b/fd_gap_se", 4] > 0
    assert ("replicates/a/fd_sd", 1) in one and ("replicates/a/fd_gap_se", 1) not in one


def test_rounds_json_gives_them_back():
    found = replicates(rounds())
    whole = Comparison("fd", "f", 4.0, rounds(), {}, [], [], yardstick="y", replicates=found)
    text = whole.text()
    again = Comparison.read(text, "rounds.json")
    assert again.replicates == found and again.rounds == rounds() and again.yardstick == "y"
    assert again.text() == text
    assert json.loads(text)["replicates"][1]["distances"]["1"]["mean"] == 12.5
