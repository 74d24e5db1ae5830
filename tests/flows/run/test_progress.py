"""Progress: lines for people, events for programs, and a screen with bars."""

import io
import json

from rich.console import Console

from flows.project.events import Event, Reader, beside
from flows.run.repro import Outcome
from flows.run.screen import Screen
from flows.run.start import start
from flows.stage import progress


def test_lines_say_what_is_known_and_events_what_was_measured(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(progress, "EVERY_SECONDS", 0.0)
    scratch = tmp_path / "train@rf1" / "a fingerprint"
    reader = Reader(beside(scratch))
    with progress.Reporter("train@rf1", 100, scratch) as log:
        log({}, 40)
        log({"loss": 1 / 3, "held_out_loss": 0.1}, 50)
        log({"loss": 0.25}, 100)
    lines = [line.split(" eta=")[0] for line in capsys.readouterr().out.splitlines()]
    assert lines == [
        "train@rf1 40/100",
        "train@rf1 50/100 loss=0.3333 held_out_loss=0.1",
        "train@rf1 100/100 loss=0.25 held_out_loss=0.1@50",
    ]
    assert all(progress.is_progress("train@rf1", line) for line in lines)
    assert not progress.is_progress("train@rf1", "warning: train@rf1 is slow")
    assert [(e.step, e.values) for e in reader.read()] == [
        (0, {}),
        (40, {}),
        (50, {"loss": 1 / 3, "held_out_loss": 0.1}),
        (100, {"loss": 0.25}),
    ]
    head = json.loads(beside(scratch).read_text().splitlines()[0])
    assert head["stage"] == "train@rf1" and head["total"] == 100 and head["pid"]


def test_few_lines_of_many_steps(capsys):
    with progress.Reporter("train@rf1", 1000) as log:
        for step in range(1, 1001):
            log({"loss": 1.0}, step)
    assert len(capsys.readouterr().out.splitlines()) <= 3


def test_one_that_is_not_shown_writes_nothing(capsys, tmp_path):
    with progress.Reporter("train@rf1", 100, tmp_path / "a", shown=False) as log:
        log({"loss": 1.0}, 100)
    assert capsys.readouterr().out == "" and list(tmp_path.iterdir()) == []


def shown(terminal):
    file = io.StringIO()
    screen = Screen(Console(file=file, force_terminal=terminal, width=80))
    with screen.bars:
        screen.line("train@rf1", "Running stage 'train@rf1':")
        screen.event(Event("train@rf1", 0, 100))
        screen.line("train@rf1", "train@rf1 50/100 loss=0.5 held_out_loss=0.7")
        screen.event(Event("train@rf1", 50, 100, {"loss": 0.5, "held_out_loss": 0.7}))
        screen.event(Event("train@rf1", 60, 100, {"loss": 0.4, "lr": 0.1}))
        screen.bars.refresh()  # what its own thread does ten times a second
        screen.line("train@rf1", "a warning")
        screen.done("train@rf1", Outcome("train@rf1", "done", 1.5))
    return file.getvalue(), screen


def test_a_screen_without_terminal_shows_plain_lines():
    text, _ = shown(False)
    assert text.splitlines() == [
        "  train@rf1 50/100 loss=0.5 held_out_loss=0.7",
        "  train@rf1: a warning",
        "  done train@rf1 (1.5 s)",
    ]


def test_a_terminal_gets_a_bar_that_goes_when_the_stage_is_done():
    text, screen = shown(True)
    assert "loss 0.4  held_out_loss 0.7" in text
    assert "50/100" not in text and "Running stage" not in text and "lr" not in text
    assert screen.tasks == {}


FAILING = """
stages:
  own: {cmd: "echo 'error: no such luck'; exit 2", deps: [one], outs: [own]}
  crash: {cmd: "echo 'Traceback'; echo 'ValueError: [odd]'; exit 1", deps: [one], outs: [crash]}
  silent: {cmd: "false", deps: [one], outs: [silent]}
  after: {cmd: cp own after, deps: [own], outs: [after]}
"""


def test_the_error_of_a_stage_is_told_once(empty):
    empty.write("dvc.yaml", FAILING)
    empty.write("one", "1\n")
    shown = io.StringIO()
    console = Console(file=shown, width=200)
    assert not start(empty.root, None, prefect=False, mlflow=False, out=console)
    lines = shown.getvalue().splitlines()
    for what in ("no such luck", "ValueError: [odd]", "failed to reproduce"):
        assert sum(what in line for line in lines) == 1, what
    assert "  own: error: no such luck" in lines
    assert {f"failed {name}, as said above" for name in ("own", "crash", "silent")} < {*lines}
    assert "blocked after: it depends on a stage that failed" in lines


def test_an_error_that_no_line_told_is_told_at_the_end():
    shown = io.StringIO()
    screen = Screen(Console(file=shown, width=200))
    killed = "ERROR: failed to reproduce 'a': failed to run: x, exited with -9"
    for line in ("step 3", killed):
        screen.line("a", line)
    assert killed in shown.getvalue()
    assert not screen.told("a", "a: was killed (SIGKILL); out of memory?")
    screen.line("b", "error: lr is negative")
    assert not screen.told("a", "a: lr is negative") and screen.told("b", "b: lr is negative")
