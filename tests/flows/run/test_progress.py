"""Progress: plain lines that can be read back, and a screen with bars."""

import io

from rich.console import Console

from flows.run.repro import Outcome
from flows.run.screen import Screen
from flows.stage import progress


def test_lines_are_read_back(capsys, monkeypatch):
    monkeypatch.setattr(progress, "EVERY_SECONDS", 0.0)
    with progress.Reporter("train@rf1", 100) as log:
        log({"loss": 0.5}, 50)
        log({"loss": 0.25, "lr": 1e-4}, 100)
    lines = capsys.readouterr().out.splitlines()
    assert progress.parse(lines[0]) == (50, {"loss": 0.5})
    assert progress.parse(lines[-1]) == (100, {"loss": 0.25, "lr": 1e-4})
    assert progress.parse("Updating lock file 'dvc.lock'") is None


def test_few_lines_of_many_steps(capsys):
    with progress.Reporter("train@rf1", 1000) as log:
        for step in range(1, 1001):
            log({"loss": 1.0}, step)
    assert len(capsys.readouterr().out.splitlines()) <= 3


def shown(terminal):
    file = io.StringIO()
    screen = Screen(Console(file=file, force_terminal=terminal, width=80))
    with screen.bars:
        screen.line("train@rf1", "Running stage 'train@rf1':")
        screen.line("train@rf1", "train@rf1 50/100 loss=0.5")
        screen.bars.refresh()  # what its own thread does ten times a second
        screen.line("train@rf1", "a warning")
        screen.done("train@rf1", Outcome("train@rf1", "done", 1.5))
    return file.getvalue(), screen


def test_a_screen_without_terminal_shows_plain_lines():
    text, _ = shown(False)
    assert text.splitlines() == [
        "  train@rf1 50/100 loss=0.5",
        "  train@rf1: a warning",
        "  done train@rf1 (1.5 s)",
    ]


def test_a_terminal_gets_a_bar_that_goes_when_the_stage_is_done():
    text, screen = shown(True)
    assert "loss 0.5" in text and "Running stage" not in text
    assert screen.tasks == {}
