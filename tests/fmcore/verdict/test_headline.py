"""The few numbers of a round that come first."""

import json

from fmcore.verdict import headline
from fmcore.verdict.comparison import Comparison, RoundResult


def result(name, distances, metrics, cuts=None, replicate=None):
    return RoundResult(
        name, "independent", None, False, distances, metrics, cuts or {},
        replicate_of="rf1" if replicate else None, replicate=replicate,
    )  # fmt: skip


def found(*rounds):
    return Comparison("fd", "f", 4.0, list(rounds), {}, [], [])


def test_they_are_six_of_all_the_numbers_of_a_round(tmp_path):
    metrics = {"straightness_rel": 0.1, "straightness_rel_se": 0.01, "transport_cost": 75.0}
    one = result("rf1", {1: 600.0, 4: 5.0, 64: 5.0}, {**metrics, "bytes": 1}, {1: [599, 601]})
    headline.write(found(one), tmp_path)
    assert json.loads((tmp_path / "rf1.json").read_text()) == {
        "fd/nfe_1": 600.0, "fd_se/nfe_1": 1.0, "best": 5.0, "best_nfe": 4,
        "straightness_rel": 0.1, "transport_cost": 75.0,
    }  # fmt: skip


def test_what_was_not_measured_is_left_out():
    """A student has no straightness, a single cut no error; the least NFE is that of all rounds."""
    one, other = result("rf1", {2: 8.0, 4: 9.0}, {}), result("rf2", {4: 7.0}, {})
    assert headline.headline(found(one, other), one) == {
        "fd/nfe_2": 8.0, "best": 8.0, "best_nfe": 2,
    }  # fmt: skip
    assert headline.headline(found(one, other), other) == {"best": 7.0, "best_nfe": 4}


def test_a_replicate_has_no_file(tmp_path):
    twice = result("rf1", {1: 8.0}, {}), result("rf1_r2", {1: 9.0}, {}, replicate=2)
    headline.write(found(*twice), tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["rf1.json"]
