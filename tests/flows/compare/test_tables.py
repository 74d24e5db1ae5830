"""One comparison, laid out for the terminal, csv, JSON, Prefect and the page."""

import json
import re
from dataclasses import replace
from html import escape

import pytest
from rich.console import Console

from flows.compare import show
from flows.compare.chains import ComparedChain
from flows.compare.costs import spent_table
from flows.compare.gates import told
from flows.compare.groups import SPREAD, as_json, frame, group_rows, grouped, notes
from flows.compare.page import Live, page
from flows.compare.tables import (
    TimedComparison,
    group_tables,
    headline_table,
    replicates_table,
    rounds_table,
)
from flows.dag.description import CouplingRecord, Description, Files, RoundFiles
from fmcore.settings import ReflowError
from fmcore.verdict.comparison import Choice, Comparison, Judged, RoundResult
from fmcore.verdict.gates import Gates, absent, judge
from fmcore.verdict.replicates import replicates
from fmcore.verdict.shown import Shown

RF1 = {1: 600.0, 2: 90.0, 4: 40.0, 64: 5.0}
RF2 = {1: 13.0, 2: 9.0, 4: 7.0, 64: 6.0}
PNG = b"\x89PNG"


def comparison(shift: float = 0.0, yardstick: str = "y") -> Comparison:
    def result(name, parent, distances):
        metrics = {"straightness": 8.0, "straightness_rel": 0.1, "transport_cost": 75.0}
        moved = {nfe: d + shift for nfe, d in distances.items()}
        return RoundResult(
            name,
            parent or "independent",
            parent,
            False,
            moved,
            metrics,
            {4: [5.0, 7.0]} if parent else {},
        )

    gates = [Judged("train@rf1", v) for v in judge(Gates(), {"held_out_ratio": 1.5})]
    ship = {"one_step": Choice("rf2", 1, 13.0 + shift), "best": Choice("rf1", 64, 5.0 + shift)}
    rounds = [result("rf1", None, RF1), result("rf2", "rf1", RF2)]
    return Comparison(
        "fd", "abc", 4.0, rounds, ship, ["after rf2: stop"], gates, 0.3, yardstick=yardstick
    )


def chain(
    name: str = "one", seed: int = 0, recipe: str = "r", shift: float = 0.0, yardstick: str = "y"
) -> ComparedChain:
    made = CouplingRecord(
        "rf1", "couplings/rf1", "rf1", ["rf2"], "1b.dir", 20, 4, {"name": "heun", "steps": 4},
        300, 8, 0.01, 75.0,
    )  # fmt: skip
    files = Files("comparison/rounds.json", {"rf1": RoundFiles("pictures/rf1", "gap/rf1.csv")})
    about = Description(
        f"key-{name}", recipe, "digits", seed, "c0ffee", {"train": {"lr": seed}}, [made], files
    )
    held = {"gap/rf1.csv": b"t,gap\n0.1,2.0\n0.9,1.0\n", "pictures/rf1/samples.png": PNG}
    return ComparedChain(name, about, comparison(shift, yardstick), held.get)


def printed(table, width: int = 100) -> list[str]:
    console = Console(width=width)
    with console.capture() as capture:
        console.print(table)
    return [" ".join(line.split()) for line in capture.get().splitlines()]


def test_a_number_of_one_seed_stands_with_its_standard_error_of_several_with_their_spread():
    one, *_ = [row.cells for row in group_rows(grouped([chain()]), [4], []) if row.round == "rf2"]
    several = grouped([chain(), chain("two", 1, shift=0.5)])
    two, *_ = [row.cells for row in group_rows(several, [4], []) if row.round == "rf2"]
    assert (one, two) == (["7±1"], ["7.25±0.4"])  # cuts of 5 and 7; 7 and 7.5


def test_the_table_of_the_workspace():
    lines = printed(rounds_table(TimedComparison(comparison(), {"rf1": 271.4})))
    assert lines == [
        "fd by NFE, floor 4.0 ± 0.3",
        "round NFE 1 2 4 64 straight rel cost train",
        "rf1 600 90 40 5 8 0.1000 75 271 s",
        "rf2 13 9 7.0 6 8 0.1000 75",
        "±1.0",
    ]


def test_the_few_numbers_of_each_round_come_first_and_fit_80_columns():
    lines = printed(headline_table(TimedComparison(comparison(), {"rf1": 271.4})))
    assert lines == [
        "fd by NFE, floor 4.0 ± 0.3",
        "round NFE 1 best at NFE straightness rel transport cost train",
        "rf1 600 5 64 0.1 75 271 s",
        "rf2 13 6 64 0.1 75",
    ]
    errors = {"straightness_rel_se": 0.0012, "transport_cost_se": 0.31}
    long = [
        replace(r, name=f"{r.name}_of_a_long_name", metrics={**r.metrics, **errors})
        for r in comparison().rounds
    ]
    lines = printed(headline_table(TimedComparison(replace(comparison(), rounds=long), {})), 80)
    names = [line.split()[0] for line in lines if line.startswith("rf")]
    assert names == ["rf1_of_a_long_name", "rf2_of_a_long_name"]
    assert "0.1000 ± 0.0012 75.0 ± 0.3" in " ".join(lines)


@pytest.mark.parametrize("form", ["short", "full", "json"])
def test_what_compare_prints_of_one_chain(tmp_path, monkeypatch, capsys, form):
    monkeypatch.setattr(show, "comparison", lambda *_: TimedComparison(comparison(), {}))
    console = Console(width=100)
    show.show(tmp_path, [], published=False, form=form, csv=None, html=None, out=console)
    said = capsys.readouterr().out
    if form == "json":
        assert json.loads(said)["rounds"][0]["fd"]["64"] == 5.0
        return
    assert "one_step  rf2 at NFE 1 (13)" in said and "after rf2: stop" in said
    assert "warn: train@rf1: " in said
    table = said.partition("one_step")[0]
    assert ("best" in table) == (form == "short") == ("--full" in said)


def test_its_json_has_the_floor_and_the_seconds_in_each_round():
    found = TimedComparison(comparison(), {"rf1": 271.4}).as_dict()
    plain = comparison().as_dict()
    assert found["rounds"] == [
        {**plain["rounds"][0], "floor": 4.0, "train_seconds": 271.4},
        {**plain["rounds"][1], "floor": 4.0, "train_seconds": None},
    ]
    assert {**found, "rounds": []} == {**plain, "rounds": []}


def test_chains_of_one_recipe_are_a_group_with_mean_and_spread():
    groups = grouped([chain(), chain("two", 1, shift=2.0), chain("three", recipe="other")])
    assert [[one.name for one in g.chains] for g in groups] == [["one", "two"], ["three"]]
    assert groups[0].distance("rf1", 64) == (6.0, pytest.approx(2**0.5))
    assert groups[1].distance("rf1", 64) == (5.0, None)
    (table,) = group_tables(groups)
    assert printed(table) == [
        f"fd by NFE, {SPREAD}",
        "chain seeds round NFE 1 NFE 4 NFE 64 rel cost",
        "one 2 rf1 601±1 41±1 6±1 0.1±0 75±0",
        "rf2 14±1 8±1 7±1 0.1±0 75±0",
        "three 1 rf1 600 40 5 0.1 75",
        "rf2 13 7±1 6 0.1 75",
    ]
    assert "chain seeds round NFE 1 NFE 2 NFE 4 NFE 64 rel cost" in printed(
        *group_tables(groups, full=True)
    )
    rows = frame(groups)
    assert rows["fd/nfe_64"].tolist() == [6.0, 7.0, 5.0, 6.0]
    assert rows["fd/nfe_64_sd"].isna().tolist() == [False, False, True, True]
    assert notes(groups) == ["three: settings are equal; the code or the data differs"]
    found = json.loads(json.dumps(as_json(groups)))
    assert found["groups"][0]["mean"]["rf1"]["fd/nfe_64"] == 6.0
    assert found["chains"][0]["files"]["rounds"]["rf1"]["pictures"] == "pictures/rf1"
    assert found["chains"][0]["rounds"] == json.loads(comparison().text())["rounds"]


def test_chains_of_other_yardsticks_are_never_averaged():
    groups = grouped([chain(), chain("two", 1, yardstick="z"), chain("old", 2, yardstick="")])
    assert [len(g.chains) for g in groups] == [1, 1, 1]
    said = notes(groups)
    assert "two: another seed, and a yardstick of its own: not averaged" in said
    assert any("compare distances with the floor of their chain" in line for line in said)


def repeated() -> Comparison:
    plain, own = comparison(), []
    for number in (2, 3):
        for r in plain.rounds:
            moved = {nfe: d + number * (r.name == "rf2") for nfe, d in r.distances.items()}
            name = f"{r.name}_r{number}"
            own.append(
                replace(r, name=name, distances=moved, replicate_of=r.name, replicate=number)
            )
    rounds = [*plain.rounds, *own]
    return replace(plain, rounds=rounds, replicates=replicates(rounds))


def test_replicates_are_a_table_with_a_paired_test():
    lines = printed(replicates_table(repeated()))
    assert lines[:3] == [
        "fd over replicates, mean ± standard deviation",
        "round n NFE 1 NFE 4 NFE 64",
        "rf1 3 600 ± 0 40 ± 0 5 ± 0",
    ]
    assert lines[3].startswith("rf2 3 14.67 ± 1.5 8.667 ± 1.5")
    assert lines[4].startswith("less rf1 3 -585 ± 0.88 (p ")
    one = chain()
    text = page(grouped([replace(one, found=repeated())]))
    assert "Over replicates" in text and "<td>14.67 ± 1.5</td>" in text
    assert "less rf1, paired" in text


def test_the_page_shows_what_the_comparison_says():
    text = page(grouped([chain(), chain("two", 1, shift=2.0)]))
    for part in (
        "<b>rf2</b>NFE 1: fd 13<br>",
        "floor 4.0 ± 0.3",
        ">7.0<small>± 1.0</small></td>",
        '<td class="best">13</td>',
        '<td class="best">5</td>',
        "after rf2: stop",
        '<li class="warn">train@rf1: the loss on held-out pairs',
        "<td>601±1</td>",
        '<code title="1b.dir">',
    ):
        assert part in text, part
    assert text.count("data:image/png") == 2


def with_samples(images: bool) -> ComparedChain:
    """A chain of two rounds that kept their samples and their losses."""
    import numpy as np

    x = np.full((16, 8, 8, 1), 9, np.uint8) if images else np.zeros((3, 2), np.float32)
    shown = Shown({nfe: x for nfe in (1, 2, 4, 64)}, x).content()
    one = chain()
    files = {r: RoundFiles(f"pictures/{r}", "", f"loss/{r}.csv") for r in ("rf1", "rf2")}
    held = {f"pictures/{r}/samples.safetensors": shown for r in files}
    held |= {f"loss/{r}.csv": b"step,loss,held_out_loss\n50,2.0,\n100,1.0,1.5\n" for r in files}
    about = replace(one.about, files=replace(one.about.files, rounds=files))
    return replace(one, about=about, read=held.get)


@pytest.mark.parametrize("images", [True, False])
def test_the_page_has_samples_of_all_rounds_side_by_side(images):
    text = page(grouped([with_samples(images)]))
    first, rest = text.split("At every NFE, and real data")
    drawn = 'class="pixels"' if images else 'class="points"'
    parts = dict(zip(first.split("<h4>")[1:], ("NFE 1", "NFE 4", "NFE 64"), strict=True))
    for part, title in parts.items():
        assert part.startswith(f"{title}</h4>") and part.count(drawn) == 2
        assert part.index("rf1") < part.index("rf2")
    assert [rest.split("<h4>")[i].count(drawn) for i in (1, 2)] == [2, 1]  # NFE 2, real data
    assert "<h3>Samples</h3>" not in text and ">rf1, held out</text>" in text


def test_the_page_says_what_the_rounds_cost():
    spent = {
        "rf1": {"spent/train_seconds": 125.0, "spent/train_evaluations": 1.28e6},
        "rf2": {"spent/train_seconds": 5.0},
    }
    found = comparison()
    assert spent_table(found, spent) == [
        ["round", "training", "its evaluations"],
        ["rf1", "2 min 05 s", "1.28 M"],
        ["rf2", "5.0 s", ""],
        ["all", "2 min 10 s", "1.28 M"],
    ]
    assert spent_table(found, {}) == []
    flops = [
        replace(r, metrics={**r.metrics, "flops_training": 3e9, "flops_pairs": i * 1e9})
        for i, r in enumerate(found.rounds)
    ]
    assert spent_table(replace(found, rounds=flops), {}) == [
        ["round", "FLOPs with all before"], ["rf1", "3e+09"], ["rf2", "4e+09"],
    ]  # fmt: skip
    text = page(grouped([replace(chain(), spent=spent)]))
    assert "What it cost" in text and "<td>2 min 05 s</td>" in text
    assert "What it cost" not in page(grouped([chain()]))


def test_what_training_and_evaluation_both_measure_is_said_once():
    values = {"held_out_ratio": 1.5, "cost_rise": 0.5}
    gates = [Judged(f"{s}@rf1", v) for s in ("train", "evaluate") for v in judge(Gates(), values)]
    gates += [Judged("train@rf2", v) for v in judge(Gates(), {"held_out_ratio": 1.4})]
    lines = [one.text for one in told(gates)]
    assert [line.split(": ")[:2] for line in lines] == [
        ["fail", "train@rf1, evaluate@rf1"],
        ["warn", "train@rf1, evaluate@rf1"],
        ["warn", "train@rf2"],
    ]
    text = page(grouped([replace(chain(), found=replace(comparison(), gates=gates))]))
    assert text.count("the loss on held-out pairs is 1.5") == 1


def test_a_run_stands_on_top_of_what_there_is_so_far():
    rows = [("train@rf1", "done", 1.0, ""), ("train@rf2", "running", 0.25, "loss <0.5>")]
    gates = [("warn", "warn: train@rf1: too long")]
    live = Live("digits", "digits: running for 9 s", True, rows, gates, "<svg></svg>", [], 5)
    alone = page([], live)
    assert '<meta http-equiv="refresh" content="5">' in alone and "width:25%" in alone
    assert "loss &lt;0.5&gt;" in alone and '<li class="warn">warn: train@rf1' in alone
    both = page(grouped([chain()]), live)
    assert both.index("The run") < both.index("Rounds: fd by NFE")
    assert "What to ship" not in both and "after rf2: stop" not in both
    ended = page(grouped([chain()]), replace(live, running=False))
    assert "http-equiv" not in ended and "What to ship" in ended


def test_the_page_says_which_rounds_are_guided_and_which_gates_were_not_measured():
    one = chain()
    assert "guidance" not in page(grouped([one]))
    first, second = one.found.rounds
    rounds = [
        replace(first, metrics={**first.metrics, "guidance": 2.0}),
        replace(second, metrics={**second.metrics, "guided": 2.0}),
    ]
    gates = [Judged("evaluate@rf2", v) for v in absent("evaluate", {"cost_rise": 0.0})]
    text = page(grouped([replace(one, found=replace(one.found, rounds=rounds, gates=gates))]))
    for part in (
        "<li>rf1 is measured with guidance 2: two evaluations where it acts",
        "<li>rf2 has guidance 2 in its pairs: measured and sampled without more",
        "<li>not measured: evaluate@rf2: ",
    ):
        assert part in text, part
    assert "drift_rel" in text and "gates are within their bounds" not in text


@pytest.mark.long
def test_the_table_of_prefect_ends_with_the_floor(prefect_server):
    from flows.run import artifacts

    rows = artifacts._rounds(comparison())
    assert [row["round"] for row in rows] == ["rf1", "rf2", "floor"]
    assert rows[0] == {
        "round": "rf1", "trained on": "independent", "fd at NFE 1": "600", "fd at NFE 2": "90",
        "fd at NFE 4": "40", "fd at NFE 64": "5", "straightness_rel": "0.1",
        "transport_cost": "75",
    }  # fmt: skip
    assert rows[2] == {
        "round": "floor", "trained on": "real against real", "fd at NFE 1": "4.0 ± 0.3",
        "fd at NFE 2": "4.0 ± 0.3", "fd at NFE 4": "4.0 ± 0.3", "fd at NFE 64": "4.0 ± 0.3",
        "straightness_rel": "", "transport_cost": "",
    }  # fmt: skip
    assert artifacts._shipping(comparison()).splitlines() == [
        "- **one_step**: rf2 at NFE 1 (fd 13)",
        "- **best**: rf1 at NFE 64 (fd 5)",
        "- after rf2: stop",
    ]


def test_a_description_comes_back_from_its_json():
    about = chain().about
    content = json.dumps(about.as_dict()).encode()
    assert Description.read(content, "chain.json") == about
    assert list(about.as_dict()) == [
        "key", "recipe", "data", "seed", "commit", "settings", "couplings", "files",
    ]  # fmt: skip
    newer = json.dumps({**about.as_dict(), "more": 1}).encode()
    assert Description.read(newer, "chain.json") == about


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b'{"key": 1'])
def test_a_damaged_description_is_one_line(content):
    with pytest.raises(ReflowError, match=r"^chain\.json: (no descr|damaged)") as error:
        Description.read(content, "chain.json")
    assert "\n" not in str(error.value)


def test_chains_of_other_yardsticks_are_told():
    other = replace(chain("other", recipe="o"), found=replace(comparison(), fingerprint="d"))
    assert "yardsticks of their own" in notes(grouped([chain(), other]))[-1]


HOSTILE = ("<script>alert(1)</script>", "[/red]", "$\\frac$", "a|b", "[x](http://evil)")


@pytest.mark.parametrize("name", HOSTILE)
def test_a_name_is_shown_as_it_is_and_never_read_as_markup(name):
    one = chain(name)
    about = replace(one.about, data=name, commit=name, settings={"own": name})
    rounds = [replace(r, name=name, coupling=name) for r in one.found.rounds[:1]]
    ship = {"best": Choice(name, 1, 2.0)}
    found = replace(one.found, rounds=rounds, ship=ship, next=[name])
    other = replace(one, about=about, found=found)
    text = page(grouped([other, replace(other, name="two")]))
    assert "<script" not in text and 'http://evil"' not in text
    assert escape(name) in text
    (table, *_) = group_tables(grouped([other]))
    assert any(name in line for line in printed(table))
    assert any(name in line for line in printed(rounds_table(TimedComparison(found, {}))))


def test_the_charts_of_the_page_have_the_colours_of_the_rounds_and_plain_numbers():
    """rf2 alone has rf2's colour: it has no curve over t, and a chain beside it changes nothing."""
    from fmcore.verdict.drawing import GRAY, ROUNDS

    one, two = (page(grouped(some)) for some in ([chain()], [chain(), chain("two", 1, shift=2.0)]))
    for text in (one, two):
        distance = next(svg for svg in text.split("<svg")[1:] if "standard errors over NFE" in svg)
        assert {c for c in (*ROUNDS, GRAY) if f"stroke: {c}" in distance} == {*ROUNDS[:2], GRAY}
        assert "mathdefault" not in text
        assert f'style="background:{ROUNDS[1]}"></span><b>rf2</b>' in text
    across = two.split("Distance over NFE, all chains")[1].split("</svg>")[0]
    assert [across.count(f"stroke: {c}; stroke-width: 2") for c in ROUNDS[:2]] == [2, 2]


def test_the_charts_of_the_page_show_every_round_of_nine_in_its_own_look():
    from fmcore.verdict.drawing import ROUNDS

    (first, *_) = comparison().rounds
    rounds = [replace(first, name=f"rf{i}") for i in range(9)]
    one = replace(chain(), found=replace(comparison(), rounds=rounds))
    other = replace(one, name="two", about=replace(one.about, key="two", recipe="other"))
    text = page(grouped([one, other]))
    distance, across = (
        next(svg for svg in text.split("<svg")[1:] if f'aria-label="{label} over NFE"' in svg)
        for label in ("fd ± 2 standard errors", "fd")
    )
    for colour in ROUNDS[:9]:  # a line, and its name
        assert distance.count(f"stroke: {colour}; stroke-width: 2") >= 2
        assert across.count(f"stroke: {colour}; stroke-width: 2") >= 4
    dashed = {
        c for c in ROUNDS if re.search(f"stroke-dasharray: [^;]*;[^;]*; stroke: {c}", distance)
    }
    assert dashed == set(ROUNDS[6:9])
