"""What to ship, and when to stop."""

from dataclasses import replace
from statistics import fmean

from fmcore.verdict.advice import next_round, ship
from fmcore.verdict.comparison import RoundResult


def row(name, distances, *, rel=0.1, parent=None, student=False, cuts=(0.0,)):
    by_nfe = dict(zip((1, 4, 64), distances))
    return RoundResult(
        name,
        "c",
        parent,
        student,
        by_nfe,
        {"straightness_rel": rel},
        {n: [d + c for c in cuts] for n, d in by_nfe.items()},
    )


def test_each_use_ships_the_round_with_the_least_distance():
    rows = [row("rf1", (600, 40, 5)), row("rf2", (13, 7, 6), parent="rf1")]
    found = ship(rows)
    assert {k: (c.round, c.nfe) for k, c in found.items()} == {
        "one_step": ("rf2", 1), "few_step": ("rf2", 4), "best": ("rf1", 64),
    }  # fmt: skip


def test_a_tie_goes_to_the_earlier_round_and_a_missing_nfe_to_nobody():
    rows = [row("a", (3, 3, 3)), row("b", (3, 3, 3))]
    assert {c.round for c in ship(rows).values()} == {"a"}
    rows = [replace(r, distances={4: 3, 64: 3}) for r in rows]
    assert set(ship(rows)) == {"few_step", "best"}


def test_bent_paths_ask_for_another_round_and_straight_ones_for_none():
    bent = [row("rf1", (600, 40, 5), rel=0.1)]
    assert "after rf1: another round may pay; NFE 1 scores 600" in next_round(bent)[0]
    straight = [*bent, row("rf2", (13, 7, 5), rel=0.005, parent="rf1")]
    assert next_round(straight) == [
        line for line in next_round(straight) if line.startswith("after rf2: stop; the")
    ]


def test_drift_stops_a_branch_before_anything_else():
    """Cut by cut, the distances that two rounds of the digits had at NFE 64."""
    rf1, rf2 = row("rf1", (600, 40, 6.73)), row("rf2", (13, 9, 8.03), parent="rf1")
    one, two = [8.38, 6.50, 7.95, 4.08], [8.99, 8.40, 9.00, 5.71]
    rows = [replace(rf1, cuts={64: one}), replace(rf2, cuts={64: two})]
    assert "stop; at NFE 64 the distance rose from 6.7 ± 1.0 to 8.0 ± 0.8" in next_round(rows)[0]
    noisy = [rows[0], replace(rows[1], cuts={64: [9.0, 5.4, 9.4, 8.2]})]
    assert "rose" not in next_round(noisy)[0]


def test_branches_are_judged_apart_and_students_not_at_all():
    rows = [
        row("rf1", (600, 40, 5)),
        row("a", (13, 7, 5), rel=0.02, parent="rf1"),
        row("b", (14, 7, 5), rel=0.002, parent="rf1"),
        row("one", (9, 300, 500), parent="rf1", student=True),
    ]
    lines = next_round(rows)
    assert [line.split(":")[0] for line in lines] == ["after a", "after b"]


def test_a_round_that_only_a_student_learned_from_is_still_a_last_one():
    rows = [
        row("rf1", (600, 40, 5)),
        row("rf2", (13, 7, 5), rel=0.02, parent="rf1"),
        row("one", (9, 300, 500), parent="rf2", student=True),
    ]
    assert [line.split(":")[0] for line in next_round(rows)] == ["after rf2"]


def measured(name, cuts, *, parent=None, student=False, rel=0.1, coupling="c"):
    """A round by its values on every cut."""
    means = {nfe: fmean(values) for nfe, values in cuts.items()}
    return RoundResult(name, coupling, parent, student, means, {"straightness_rel": rel}, cuts)


def test_what_the_error_does_not_tell_apart_ships_with_the_least_nfe():
    """Two dimensions: 32 evaluations were shipped for a fiftieth of the error."""
    one = [0.0308, 0.0221, 0.0396, 0.0301]
    many = [0.0286, 0.0219, 0.0380, 0.0307]  # 3 % less, a fourth of its own error
    rf1 = measured("rf1", {1: [3.1, 3.0, 3.2, 3.1], 32: [0.040, 0.042, 0.047, 0.041]})
    rf2 = measured("rf2", {1: one, 32: many}, parent="rf1")
    assert (rf2.distances[32], ship([rf1, rf2])["best"].nfe) == (min(rf2.distances.values()), 1)
    sure = measured("rf2", {1: one, 32: [x - 0.005 for x in one]}, parent="rf1")
    assert ship([rf1, sure])["best"].nfe == 32, "a small difference that is the same on every cut"
    assert ship([rf1, rf2])["best"].se == rf2.error(1)


def test_what_no_test_tells_from_the_data_is_good_enough():
    """Eight Gaussians, the second round on eight cuts: the sources of all cuts are shared."""
    one = [-0.0008, 0.0058, -0.0013, 0.001, -0.0002, -0.0002, -0.0017, 0.0035]
    many = [-0.0013, 0.005, -0.0021, 0.0003, -0.0009, -0.0011, -0.0026, 0.0033]
    rounds = [measured("rf2", {1: one, 32: many})]
    assert ship(rounds)["best"].nfe == 32, "the test over cuts of one noise sees 0.0007"
    floor, resolves = -0.0004, 0.0041
    assert ship(rounds, floor + resolves)["best"].nfe == 1
    assert (
        ship([measured("rf2", {1: [x + 1 for x in one], 32: many})], floor + resolves)["best"].nfe
        == 32
    )


def test_the_error_decides_what_is_worse_not_the_size_of_the_difference():
    one = [1.0, 1.4, 0.8, 1.2]
    luck = [1.1, 0.5, 0.9, 1.1]  # a fifth less, one of its own errors
    assert ship([measured("rf1", {1: one, 32: luck})])["best"].nfe == 1
    sure = [x - 0.01 + y for x, y in zip(one, (0.001, -0.001, 0.001, -0.001), strict=True)]
    assert ship([measured("rf1", {1: one, 32: sure})])["best"].nfe == 32, "a hundredth less"


def test_a_later_round_is_shipped_only_if_the_test_says_that_it_is_better():
    early = measured("rf2", {1: [2.0, 2.2, 1.9, 2.1]})
    luck = measured("rf3", {1: [1.9, 2.25, 1.95, 2.0]}, parent="rf2")
    better = measured("rf3", {1: [1.9, 2.08, 1.81, 1.98]}, parent="rf2")
    assert ship([early, luck])["one_step"].round == "rf2"
    assert ship([early, better])["one_step"].round == "rf3"


def test_another_round_pays_only_with_evidence():
    rf1 = measured("rf1", {1: [600, 610, 590, 605], 64: [5.0, 5.2, 4.9, 5.1]})
    rf2 = measured("rf2", {1: [13, 14, 12, 13], 64: [5.0, 5.3, 4.9, 5.0]}, parent="rf1")
    (line,) = next_round([rf1, rf2])
    assert line.startswith("after rf2: another round pays; NFE 1 scores 13.0 ± 0.4 where NFE 64")
    assert "the last round gained at NFE 1 (difference 588 ± 4" in line
    student = measured("one", {1: [9, 9.5, 9, 9.2]}, student=True, parent="rf1")
    assert "may pay" in next_round([rf1, rf2, student])[0]
    assert "the student one scores 9.18 ± 0.12" in next_round([rf1, rf2, student])[0]
    own = replace(student, parent="rf2", coupling="rf2")
    assert "may pay" in next_round([rf1, rf2, own])[0], "a student on the round's own pairs"
    other = replace(student, parent="rf1", coupling="another")
    assert "another round pays" in next_round([rf1, rf2, other])[0]
    idle = measured("rf2", {1: [600, 612, 589, 604], 64: [5.0, 5.3, 4.9, 5.0]}, parent="rf1")
    assert "another round may pay; " in next_round([rf1, idle])[0]
    assert "gained nothing that is seen" in next_round([rf1, idle])[0]
    done = measured("rf2", {1: [5.1, 5.2, 5.0, 4.9], 64: [5.0, 5.3, 4.9, 5.0]}, parent="rf1")
    assert "another round may pay little" in next_round([rf1, done])[0]
