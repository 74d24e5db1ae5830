"""The comparison as a type: its file, what it answers, what it says of a damaged one."""

import json
from dataclasses import replace

import pytest

from fmcore.compare import _markdown
from fmcore.settings import ReflowError
from fmcore.verdict import keys
from fmcore.verdict.comparison import Choice, Comparison, Judged, RoundResult, nearest
from fmcore.verdict.errors import short, with_error
from fmcore.verdict.gates import Gates, absent, judge


def result(name, distances, **metrics):
    return RoundResult(
        name,
        "independent",
        None,
        False,
        distances,
        metrics,
        {1: [8.0, 10.0]} if 64 in distances else {},
    )


def comparison() -> Comparison:
    rounds = [
        result("rf1", {1: 9.0, 4: 2.5, 64: 2}, straightness_rel=0.1, transport_cost=3.0),
        RoundResult("rf2", "rf1", "rf1", True, {1: 2.0, 8: 1.5}, {"transport_cost": 3.5}),
    ]
    gates = [Judged("train@rf1", v) for v in judge(Gates(), {"held_out_ratio": 1.5})]
    ship = {"one_step": Choice("rf2", 1, 2.0)}
    return Comparison("fd_clf", "abc", 0.5, rounds, ship, ["after rf1: stop"], gates, 0.25)


FILE = """{
  "metric": "fd_clf",
  "fingerprint": "abc",
  "floor": 0.5,
  "floor_se": 0.25,
  "resolves": null,
  "rounds": [
    {
      "round": "rf1",
      "coupling": "independent",
      "parent": null,
      "student": false,
      "fd_clf": {
        "1": 9.0,
        "4": 2.5,
        "64": 2
      },
      "fd_clf_se": {
        "1": 1.0,
        "4": null,
        "64": null
      },
      "cuts": {
        "1": [
          8.0,
          10.0
        ]
      },
      "samplers": {},
      "straightness_rel": 0.1,
      "transport_cost": 3.0
    },
    {
      "round": "rf2",
      "coupling": "rf1",
      "parent": "rf1",
      "student": true,
      "fd_clf": {
        "1": 2.0,
        "8": 1.5
      },
      "fd_clf_se": {
        "1": null,
        "8": null
      },
      "cuts": {},
      "samplers": {},
      "transport_cost": 3.5
    }
  ],
  "ship": {
    "one_step": {
      "round": "rf2",
      "nfe": 1,
      "distance": 2.0,
      "se": null
    }
  },
  "next": [
    "after rf1: stop"
  ],
  "gates": [
    {
      "stage": "train@rf1",
      "gate": "held_out_ratio",
      "value": 1.5,
      "state": "warn",
      "says": "%s"
    }
  ]
}
"""


def test_the_file_has_its_layout_and_comes_back_as_it_was():
    found = comparison()
    says = found.gates[0].verdict.says
    text = json.loads(found.text())
    assert json.dumps({k: v for k, v in text.items() if k != "sha256"}, indent=2) + "\n" == (
        FILE % says
    )
    assert list(text)[-1] == "sha256"
    again = Comparison.read(found.text(), "rounds.json")
    assert again == found
    assert again.text() == found.text()  # an integer stays one
    assert found.unhappy == found.gates and found.gates[0].text == f"warn: train@rf1: {says}"


def test_what_older_files_lack_is_empty():
    old = json.loads(comparison().text())
    for key in ("ship", "next", "gates", "fingerprint", "sha256"):
        del old[key]
    for row in old["rounds"]:
        del row["student"], row["cuts"], row["fd_clf_se"]
        row["spread"] = 0.25
    found = Comparison.read(json.dumps(old), "rounds.json")
    assert (found.ship, found.next, found.gates) == ({}, [], [])
    assert [r.student for r in found.rounds] == [False, False]


def edited(**changes):
    return json.dumps({**comparison().as_dict(), **changes})


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "Expecting value"),
        (b'{"\xff', "decode"),
        ("[1]", "not a JSON object"),
        (comparison().text().replace("2.5", "2.6"), "not that of its sha256"),
        ("{}", "metric: expected the name of a distance"),
        (edited(rounds=3), "rounds: expected a list, got int"),
        (edited(rounds=[[]]), "a round: expected a mapping"),
        (edited(rounds=[{"coupling": "a"}]), "name: is missing"),
        (edited(metric="fd_other"), "distances: is missing"),
        (edited(floor="low"), "floor.int: expected a whole number"),
        (edited(ship={"best": 3}), "ship.best"),
        (edited(gates=[{"stage": "a"}]), "gates.0.verdict.gate: is missing"),
        (comparison().text()[:400], "line"),
    ],
)
def test_a_damaged_or_foreign_file_is_one_line_with_its_name(content, said):
    with pytest.raises(ReflowError, match=r"^comparison/rounds\.json: (no comp|damaged)") as error:
        Comparison.read(content, "comparison/rounds.json")
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_it_knows_its_nfe_and_lays_itself_out():
    found = comparison()
    assert found.nfes == [1, 4, 8, 64]
    assert [found.least(nfe) for nfe in found.nfes] == [2.0, 2.5, 1.5, 2]
    assert (found.rounds[0].at(4), found.rounds[1].at(4), found.rounds[0].most) == (2.5, None, 64)
    table = found.table(("transport_cost", "straightness_rel", "budget_defect"))
    assert table.nfes == found.nfes
    assert table.metrics == ["transport_cost", "straightness_rel"]  # no round has the other
    assert [row.values for row in table.rows] == [
        [9.0, 2.5, None, 2, 3.0, 0.1],
        [2.0, None, 1.5, None, 3.5, None],
    ]
    assert table.rows[0].cells == ["9.0 ± 1.0", "2.5", "", "2", "3", "0.1"]


def test_the_nearest_nfe_is_the_smaller_of_two():
    assert [nearest(n) for n in ([1, 64], [2, 6], [3, 4, 5], [8, 16])] == [1, 2, 4, 8]


def test_keys_are_parsed_as_they_are_built():
    values = {
        keys.at_nfe("fd", 16): 1.0,
        keys.at_nfe("fd", 4): 2.0,
        keys.error(keys.at_nfe("fd", 4)): 3.0,
        keys.at_floor("fd"): 5.0,
        keys.at_sampler("fd", keys.churned(0.5, 8)): 6.0,
        "fd": 7.0,
    }
    assert list(values) == [
        "fd/nfe_16", "fd/nfe_4", "fd_se/nfe_4", "fd/floor",
        "fd/churn_0.5_steps_8", "fd",
    ]  # fmt: skip
    assert keys.by_nfe(values, "fd") == {16: 1.0, 4: 2.0}
    assert keys.nfes([*values, keys.error(keys.at_nfe("fd", 32))], "fd") == [4, 16]
    assert keys.plain(values) == {"fd": 7.0}


def test_numbers_for_people():
    assert [short(v) for v in (None, 3, 0.12345, 1234.5)] == ["", "3", "0.123", "1.23e+03"]
    assert short(0.123456, 4) == "0.1235"
    pairs = ((8.354, 0.05), (0.0286, 0.0044), (-2e-4, 3e-4), (5e7, 2e6), (3.0, 0.0), (2.0, None))
    assert [with_error(*pair) for pair in pairs] == [
        "8.35 ± 0.05", "0.029 ± 0.004", "-0.0002 ± 0.0003", "5e+07 ± 2e+06", "3", "2",
    ]  # fmt: skip
    assert with_error(float("nan"), 1.0) == "nan" and with_error(None, None) == ""


def test_rounds_md_says_which_rounds_are_guided_and_which_gates_were_not_measured():
    found = comparison()
    first, second = found.rounds
    rounds = [
        replace(first, metrics={**first.metrics, "guidance": 2.0}),
        replace(second, metrics={**second.metrics, "guided": 2.0}),
        replace(second, name="rf2_r2", metrics={"guided": 2.0}, replicate_of="rf2", replicate=2),
    ]
    gates = [Judged("evaluate@rf2", v) for v in absent("evaluate", {"cost_rise": 0.0})]
    text = _markdown(replace(found, rounds=rounds, gates=gates))
    for line in (
        "- rf1 is measured with guidance 2: two evaluations where it acts",
        "- rf2 has guidance 2 in its pairs: measured and sampled without more",
        "- not measured: evaluate@rf2: ",
    ):
        assert f"\n{line}" in text, line
    assert "rf2_r2 has" not in text and "cost_rise" not in text and "drift_rel" in text
    assert "guidance" not in _markdown(found)
