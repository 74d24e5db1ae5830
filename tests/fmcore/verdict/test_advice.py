"""What to ship, and when to stop."""

from dataclasses import replace

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
    assert "after rf1: another round pays" in next_round(bent, 5.0)[0]
    straight = [*bent, row("rf2", (13, 7, 5), rel=0.005, parent="rf1")]
    assert next_round(straight, 5.0) == [
        line for line in next_round(straight, 5.0) if line.startswith("after rf2: stop; the")
    ]


def test_drift_stops_a_branch_before_anything_else():
    """Cut by cut, the distances that two rounds of the digits had at NFE 64."""
    rf1, rf2 = row("rf1", (600, 40, 6.73)), row("rf2", (13, 9, 8.03), parent="rf1")
    one, two = [8.38, 6.50, 7.95, 4.08], [8.99, 8.40, 9.00, 5.71]
    rows = [replace(rf1, cuts={64: one}), replace(rf2, cuts={64: two})]
    assert "stop; at NFE 64 the distance rose from 6.73 to 8.03" in next_round(rows, 5.0)[0]
    noisy = [rows[0], replace(rows[1], cuts={64: [9.0, 5.4, 9.4, 8.2]})]
    assert "rose" not in next_round(noisy, 5.0)[0]


def test_branches_are_judged_apart_and_students_not_at_all():
    rows = [
        row("rf1", (600, 40, 5)),
        row("a", (13, 7, 5), rel=0.02, parent="rf1"),
        row("b", (14, 7, 5), rel=0.002, parent="rf1"),
        row("one", (9, 300, 500), parent="rf1", student=True),
    ]
    lines = next_round(rows, 5.0)
    assert [line.split(":")[0] for line in lines] == ["after a", "after b"]


def test_a_round_that_only_a_student_learned_from_is_still_a_last_one():
    rows = [
        row("rf1", (600, 40, 5)),
        row("rf2", (13, 7, 5), rel=0.02, parent="rf1"),
        row("one", (9, 300, 500), parent="rf2", student=True),
    ]
    assert [line.split(":")[0] for line in next_round(rows, 5.0)] == ["after rf2"]
