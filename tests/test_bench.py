"""The harness of `make bench` runs as a whole at the smallest sizes; nothing is timed here."""

import json

import pytest
import torch

from benchmarks import couple_profile
from benchmarks.bench import coupling, evaluation, report, turns
from benchmarks.bench.__main__ import PARTS, measure
from fmcore.network.mlp import ResidualMLP

TINY = turns.Sizes(
    turns=2,
    few=1,
    coupled={"2-D MLP": 32},
    batches=(32,),
    steps=8,
    trained={"2-D MLP": (600,), "digits MLP": (600,)},
    fitted=5,
    points={"eight Gaussians": 8},
    nfe=(12, 24),
    euler=(),
    tolerances=(1e-2,),
    wanted=(1e-2,),
    exact_steps=200,
    shared_pairs=16,
    lengths=(8, 16),
    growth=(1, 2),
    memory_base={"couple 2-D": 16},
    many=0,
)
SLOW = {"workers", "memory", "evaluation"}
"""Parts that start processes or fit a classifier; the functions are those of the other parts."""


def test_the_parts_at_the_smallest_sizes_give_pages_and_pictures(tmp_path):
    torch.set_num_threads(1)
    said = []
    rows, curves = measure([p for p in PARTS if p not in SLOW], TINY, said.append)
    assert {row.part for row in rows} == {"coupling", "training", "error", "cost"}
    assert not [row for row in rows if row.what == "all"], "a part failed"
    couple, shared = [row for row in rows if row.part == "coupling"]
    assert len(shared.values) == TINY.turns
    assert len(couple.values) == TINY.turns and min(couple.values) > 0
    errors = {p["nfe"]: p["rms"] for p in curves["error"] if p.get("method") == "rk4"}
    assert set(errors) == {12, 24} and errors[24] < errors[12]
    assert "auto" in {p["method"] for p in curves["error"] if "rms" in p}
    report.write(tmp_path / "out.md", tmp_path, {"date": "d", "command": "c", "minutes": "0"},
                 rows, curves)  # fmt: skip
    page = (tmp_path / "out.md").read_text()
    assert all(row.what in page for row in rows) and (tmp_path / "bench_error.png").exists()
    kept = json.loads((tmp_path / "out.json").read_text())
    assert [r["values"] for r in kept["rows"]] == [row.values for row in rows]


def test_a_part_that_fails_is_reported_and_the_rest_goes_on(monkeypatch):
    def failing(*_):
        raise RuntimeError("no such thing")

    monkeypatch.setitem(PARTS, "memory", failing)
    monkeypatch.setitem(PARTS, "cost", lambda *_: [turns.Row("cost", "a", "b", [1.0])])
    rows, _ = measure(["memory", "cost"], TINY, lambda _: None)
    assert "no such thing" in rows[0].note and rows[0].text() == "not measured"
    assert rows[1].text() == "**1**"


def test_a_row_shows_the_median_with_its_spread():
    assert turns.Row("p", "c", "w", [3.0, 1.0, 2.0]).text() == "**2** (1-3)"


def test_cases_are_chosen_by_name():
    some = turns.Sizes().of(["2-D MLP", "dask"])
    assert set(some.coupled) == set(some.trained) == {"2-D MLP"} and some.executors == ("dask",)
    assert not some.points and not some.memory_base
    with pytest.raises(ValueError, match=r"expected cases of .*'digits MLP'.*, got \['MLP'\]"):
        turns.Sizes().of(["MLP"])


def test_a_and_b_take_turns():
    called = []
    works = {n: lambda n=n: float(called.append(n) or len(called)) for n in "ab"}
    assert turns.in_turn(works, 2) == {"a": [1.0, 3.0], "b": [2.0, 4.0]}
    assert called == list("abab")


def test_a_profile_has_all_parts_of_a_coupling(monkeypatch, capsys):
    names = [(owner, name) for places in couple_profile.PARTS.values() for owner, name in places]
    timed = [*names, (couple_profile.Source, "draw"), (ResidualMLP, "forward")]
    for owner, name in timed:  # put back what the timers replace
        monkeypatch.setattr(owner, name, getattr(owner, name))
    monkeypatch.setattr("sys.argv", ["couple_profile", "2-D MLP", "512"])
    couple_profile.main()
    lines = [line.split(":") for line in capsys.readouterr().out.splitlines()[1:]]
    shares = {part.strip(): float(share.removesuffix(" %")) for part, share in lines}
    assert set(shares) == {*couple_profile.PARTS, "drawing noise", "network calls", "rest"}
    assert sum(shares.values()) == pytest.approx(100, abs=1) and shares["network calls"] > 0


@pytest.mark.long
def test_the_share_of_an_evaluation_beyond_sampling_is_a_share(tmp_path):
    sizes = turns.Sizes(few=1, judged=64, cuts=2, evaluated_nfe=(1,), many=0)
    (row,) = evaluation.share(tmp_path, sizes)
    assert 0 < row.values[0] < 1


def test_the_rate_of_workers_counts_from_the_end_of_their_first_shards():
    """Two workers in step write shards in pairs; each takes a second for a shard of 10 pairs."""
    told = [(float(second), 20 * second - less) for second in range(1, 9) for less in (10, 0)]
    assert coupling.rate(told, 2) == pytest.approx(20)
    alone = [(float(second), 10 * second) for second in range(1, 9)]
    assert coupling.rate(alone, 1) == pytest.approx(10)
    assert coupling.rate(alone[:1], 2) == 0
