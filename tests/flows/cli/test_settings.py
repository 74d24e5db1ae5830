"""`reflow settings` says what a key is, in a folder that is no project."""

import json

import pytest
from typer.testing import CliRunner

from flows.cli.main import app


@pytest.fixture
def reflow(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("flows.cli.console.out.width", 100)
    return lambda *words: CliRunner().invoke(app, ["settings", *words])


def test_a_key_is_told_with_bounds_default_and_description(reflow):
    done = reflow("train.lr")
    lines = done.stdout.splitlines()
    assert done.exit_code == 0 and lines[0] == "rounds.<round>.train.lr"
    assert lines[1] == "    number, > 0, <= 10000; default 0.001" and "AdamW" in lines[2]
    assert all(len(line) <= 100 for line in lines)


def test_a_key_that_has_to_be_there_says_so_and_a_kind_its_name(reflow):
    said = reflow("time.grid.steps").stdout
    assert said.splitlines()[0] == "rounds.<round>.train.time.steps (name: grid)"
    assert "whole number, > 0, <= 100,000; required" in said


def test_no_key_tells_all_and_json_is_for_programs(reflow):
    everything = json.loads(reflow("--json").stdout)
    assert len(everything) > 200 and reflow().stdout.count("\n    ") > 2 * len(everything) - 1
    (one,) = json.loads(reflow("warmup", "--json").stdout)
    assert one["place"] == "rounds.<round>.train.warmup" and one["default"] == "100"


def test_a_wrong_key_is_one_line_with_close_matches(reflow):
    done = reflow("rounds.rf2.train.lrr")
    assert done.exit_code == 2 and done.stdout == ""
    assert done.stderr.count("\n") == 1 and "Traceback" not in done.stderr
    assert "error: settings: no setting 'rounds.rf2.train.lrr'; did you mean" in done.stderr
