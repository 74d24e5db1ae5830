"""Events: what is written is read, once and to the last bit, whatever happens to the file."""

import math
import os
from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flows.project.events import Event, Reader, Writer, followed, path_of

VALUES = st.dictionaries(st.text(max_size=8), st.floats(), max_size=4)
POINTS = st.lists(st.tuples(st.integers(1, 2**53), VALUES), max_size=6)
BITS = st.lists(st.integers(0, 200), max_size=8)


def same(found: list[Event], points: list[tuple[int, dict[str, float]]]) -> bool:
    def plain(rows):  # type: ignore[no-untyped-def]
        return [(s, {k: "nan" if math.isnan(v) else v for k, v in row.items()}) for s, row in rows]

    return plain((e.step, e.values) for e in found) == plain([(0, {}), *points])


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(points=POINTS, cuts=BITS)
def test_what_is_written_is_read_however_it_arrives(
    tmp_path: Path, points: list[tuple[int, dict[str, float]]], cuts: list[int]
) -> None:
    whole = tmp_path / "whole.jsonl"
    with Writer(whole, "train@rf1", 7) as writer:
        for step, values in points:
            writer.write(step, values)
    content, grown = whole.read_bytes(), tmp_path / "grown.jsonl"
    grown.unlink(missing_ok=True)
    reader = Reader(grown)
    found = []
    for a, b in zip([0, *sorted(cuts)], [*sorted(cuts), len(content)], strict=True):
        with grown.open("ab") as file:
            file.write(content[a:b])
        found += reader.read()
    assert same(found, points)
    assert {(e.stage, e.total) for e in found} == {("train@rf1", 7)}
    assert reader.read() == []


def test_a_file_that_is_not_there_has_no_events(tmp_path: Path) -> None:
    reader = Reader(tmp_path / "none" / "events.jsonl")
    assert reader.read() == []
    with Writer(tmp_path / "none" / "events.jsonl", "couple@rf1", 3):
        assert reader.read() == [Event("couple@rf1", 0, 3)]
    (tmp_path / "none" / "events.jsonl").unlink()
    assert reader.read() == []


def test_a_new_attempt_repeats_nothing_of_the_last_one(tmp_path: Path) -> None:
    path = path_of(tmp_path, "train@rf1")
    with Writer(path, "train@rf1", 100) as first:
        first.write(10, {"loss": 1.0})
        reader = Reader(path)
        first.write(20, {"loss": 0.9})
        assert reader.read() == []
        with Writer(path, "train@rf1", 100) as second:
            second.write(11, {"loss": 0.8})
            first.write(30, {"loss": 0.7})
            assert [e.step for e in reader.read()] == [0, 11]
            second.write(21, {"loss": 0.6})
            assert [e.step for e in reader.read()] == [21]


def test_a_file_that_was_cut_short_is_read_from_its_start(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    reader = Reader(path)
    with Writer(path, "train@rf1", 100) as writer:
        writer.write(10, {"loss": 1.0})
        assert len(reader.read()) == 2
        os.truncate(path, 0)
        with path.open("ab") as file:
            file.write(b'{"step": 20, "values": {"loss": 0.5}}\nnot JSON\n[]\n{"step": 3')
        assert [e.step for e in reader.read()] == [20]


def test_all_events_are_told_before_the_stage_is_done(tmp_path: Path) -> None:
    path = path_of(tmp_path, "train@rf1")
    told: list[Event] = []
    with followed(path, told.append), Writer(path, "train@rf1", 1000) as writer:
        for step in range(1, 1001):
            writer.write(step, {"loss": 1 / step})
    assert [e.step for e in told] == list(range(1001))
    assert told[3].values == {"loss": 1 / 3}


def test_the_file_outlives_the_scratch_folder_of_the_fingerprint() -> None:
    path = path_of(Path("project"), "train@rf1/x")
    assert path == Path("project/.reflow/scratch/train@rf1%2Fx/events.jsonl")
