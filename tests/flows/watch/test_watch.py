"""`reflow watch`: what the journal and the events say, while a run goes on and afterwards."""

import io
import json
import os
import subprocess
import sys
import time

import numpy as np
import pytest
from rich.console import Console
from typer.testing import CliRunner

from flows.cli.main import app
from flows.project import events, journal, servers
from flows.project.journal import Journal, StageLine
from flows.watch.state import Eye
from flows.watch.terminal import NONE, blocks, line_of, sparkline, view
from fmcore.verdict.shown import Shown

STAGES = [
    StageLine("prepare", before=1.0),
    StageLine("train@rf1", ["prepare"], "curves/train/rf1.csv", 20.0),
    StageLine("couple@rf1", ["train@rf1"], before=5.0),
    StageLine("train@rf2", ["couple@rf1"], "curves/train/rf2.csv"),
]


def begun(root, *, stages=STAGES):
    return Journal(journal.path_of(root), "digits", stages)


def trained(root, name="rf1", total=100, **more):
    writer = events.Writer(events.path_of(root, f"train@{name}"), f"train@{name}", total)
    for step in range(10, 60, 10):
        writer.write(step, {"loss": 1 / step, "held_out_loss": 2 / step, "lr": 0.1})
    return writer


def printed(seen, width=100, terminal=False):
    file = io.StringIO()
    colours = "truecolor" if terminal else None
    console = Console(file=file, width=width, force_terminal=terminal, color_system=colours)
    console.print(view(seen, console))
    return file.getvalue()


def gone():
    """Return the number of a process that has ended."""
    done = subprocess.Popen([sys.executable, "-c", ""])
    done.wait()
    return done.pid


def test_no_run_is_one_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("dvc.yaml", "params.yaml"):
        (tmp_path / name).write_text("{}\n")
    done = CliRunner().invoke(app, ["watch"])
    assert done.exit_code == 0 and done.stdout == f"{NONE}\n"
    assert json.loads(CliRunner().invoke(app, ["watch", "--json"]).stdout)["state"] == "none"
    done = CliRunner().invoke(app, ["watch", "--page", "page.html"])
    assert done.exit_code == 2 and done.stderr.startswith("error: no run yet")
    done = CliRunner().invoke(app, ["watch", "--page", "page.txt"])
    assert done.exit_code == 2 and "expected a name that ends in .html" in done.stderr


def test_a_run_that_goes_on(tmp_path):
    run = begun(tmp_path)
    run.stage("prepare", "cached", seconds=0.1)
    run.stage("train@rf1", "running", began=0.0)
    with trained(tmp_path) as writer:
        gates = [
            events.GateEvent("held_out_ratio", "ok", 1.1, None, "held_out_ratio 1.1"),
            events.GateEvent("held_out_rel", "warn", 2.0, 1.0, "held_out_rel is 2"),
        ]
        writer.judged(gates)
        now = journal.read(tmp_path).began + 100
        lines = [json.loads(line) for line in writer.path.read_text().splitlines()]
        for i, line in enumerate(lines):  # ten steps took 2 s
            line["at"] = now - 2 * (len(lines) - 1 - i)
        writer.path.write_text("".join(json.dumps(line) + "\n" for line in lines))
        seen = Eye(tmp_path, lambda: now).look()
    assert seen.state == "running" and seen.title == "digits"
    stage = seen.stages[1]
    assert (stage.step, stage.total, stage.share) == (50, 100, 0.5)
    assert stage.curves["loss"] == [(s, 1 / s) for s in range(10, 60, 10)]
    assert stage.left == pytest.approx(12, abs=2.1)
    waits = 5.0 + stage.seconds + stage.left  # rf2 is taken to train as long as rf1
    assert seen.left == pytest.approx(stage.left + waits)
    text = printed(seen)
    assert text.startswith("digits: running for 1 min 40 s, about ")
    assert "train@rf1  running" in text and "loss 0.02  held out loss 0.04" in text
    assert "warn: train@rf1: held_out_rel is 2" in text and "train@rf2  waiting" in text
    assert "lr" not in text and "▀" not in text


def test_each_look_reads_what_is_new_and_a_new_process_begins_anew(tmp_path):
    begun(tmp_path).stage("train@rf1", "running", began=0.0)
    eye = Eye(tmp_path)
    with trained(tmp_path) as writer:
        assert eye.look().stages[1].step == 50
        writer.write(60, {"loss": 0.5})
        assert eye.look().stages[1].curves["loss"][-2:] == [(50, 1 / 50), (60, 0.5)]
    with trained(tmp_path, total=200):
        stage = eye.look().stages[1]
        assert stage.total == 200 and len(stage.curves["loss"]) == 5


def test_how_a_run_ended(tmp_path):
    begun(tmp_path).end({"prepare": "done", "train@rf1": "failed"})
    seen = Eye(tmp_path).look()
    assert seen.state == "failed" and "`reflow run` tries again" in line_of(seen)
    begun(tmp_path).end(dict.fromkeys([s.name for s in STAGES], "cached"))
    assert Eye(tmp_path).look().state == "done"
    begun(tmp_path).end({"prepare": "stopped"})
    assert "goes on from there" in line_of(Eye(tmp_path).look())


def test_a_run_that_was_killed_does_not_run_for_ever(tmp_path):
    run = begun(tmp_path)
    run.stage("train@rf1", "running", began=0.0)
    file = journal.path_of(tmp_path)
    file.write_text(file.read_text().replace(f'"pid": {os.getpid()}', f'"pid": {gone()}'))
    seen = Eye(tmp_path).look()
    assert seen.state == "killed" and seen.stages[1].state == "stopped"
    assert "its process is gone" in line_of(seen)


def test_a_later_process_with_its_number_is_not_the_run(tmp_path):
    run = begun(tmp_path)
    run.stage("train@rf1", "running", began=0.0)
    with trained(tmp_path):
        pass
    for file in (journal.path_of(tmp_path), events.path_of(tmp_path, "train@rf1")):
        born = servers.born(os.getpid())
        assert born in file.read_text()
        file.write_text(file.read_text().replace(born, f"{born}0"))
    assert Eye(tmp_path).look().state == "killed"
    journal.path_of(tmp_path).unlink()
    assert Eye(tmp_path).look().state == "stopped"


def test_a_run_on_another_machine_that_fell_silent_has_ended(tmp_path, monkeypatch):
    begun(tmp_path).stage("train@rf1", "running", began=0.0)
    with trained(tmp_path):
        pass
    monkeypatch.setattr("socket.gethostname", lambda: "another")
    now = time.time()
    for without_journal, ended in ((False, "killed"), (True, "stopped")):
        if without_journal:
            journal.path_of(tmp_path).unlink()
        assert Eye(tmp_path, lambda: now + 60).look().state == "running"
        assert Eye(tmp_path, lambda: now + 86400).look().state == ended


def test_a_cached_round_has_its_recorded_losses_and_not_those_of_an_earlier_run(tmp_path):
    with trained(tmp_path):
        pass
    file = events.path_of(tmp_path, "train@rf1")
    first, *rest = (json.loads(line) for line in file.read_text().splitlines())
    lines = [{**line, "at": line["at"] - 1000} for line in (first, *rest)]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    begun(tmp_path).stage("train@rf1", "cached")
    assert Eye(tmp_path).look().stages[1].curves == {}
    curve = tmp_path / "curves" / "train" / "rf1.csv"
    curve.parent.mkdir(parents=True)
    curve.write_text("step,loss,held_out_loss\n50,0.5,\n100,0.25,0.3\n")
    found = Eye(tmp_path).look().stages[1]
    assert found.curves == {"loss": [(50, 0.5), (100, 0.25)], "held_out_loss": [(100, 0.3)]}
    curve.write_text("step,loss\nx,y\n")
    assert Eye(tmp_path).look().stages[1].curves == {}


def test_stages_that_dvc_started_have_no_journal(tmp_path):
    with trained(tmp_path):
        seen = Eye(tmp_path).look()
        assert seen.state == "running" and [s.name for s in seen.stages] == ["train@rf1"]
    file = events.path_of(tmp_path, "train@rf1")
    file.write_text(file.read_text().replace(f'"pid": {os.getpid()}', f'"pid": {gone()}'))
    seen = Eye(tmp_path).look()
    assert seen.state == "stopped" and seen.stages[0].step == 50


def test_a_damaged_journal_is_no_traceback(tmp_path):
    run = begun(tmp_path)
    run.stage("train@rf1", "running", began=0.0)
    file = journal.path_of(tmp_path)
    whole = file.read_bytes()
    file.write_bytes(whole + b'{"stage": "nobody"}\n{"stage": "train@rf')
    assert Eye(tmp_path).look().stages[1].state == "running"
    file.write_bytes(whole[:40])
    assert Eye(tmp_path).look().state == "none"


def test_a_journal_that_cannot_be_written_stops_no_run(tmp_path):
    (tmp_path / ".reflow").write_text("a file where a folder should be")
    run = begun(tmp_path)
    run.stage("prepare", "done")
    run.end({})


@pytest.mark.parametrize("images", [True, False])
def test_a_colour_terminal_shows_the_samples_of_the_training(tmp_path, images):
    begun(tmp_path).stage("train@rf1", "running", began=0.0)
    x = np.full((16, 8, 8, 1), 200, np.uint8) if images else np.zeros((9, 2), np.float32)
    with trained(tmp_path) as writer:
        writer.show(Shown({1: x, 8: x}, step=40).content())
        seen = Eye(tmp_path).look()
        text = printed(seen, terminal=True)
        assert "samples of rf1 at step 40: NFE 1, NFE 8" in text and "▀" in text
        assert "▀" not in printed(seen)
        seen.stages[1].preview.write_bytes(b"half")
        assert "samples of" not in printed(seen, terminal=True)
    with trained(tmp_path):
        assert Eye(tmp_path).look().stages[1].preview is None


def test_small_curves_and_blocks():
    assert sparkline([(1, 1.0), (2, 1.0)]) == "▁▁" and sparkline([(1, float("nan"))]) == ""
    assert sparkline([(i, -float(i)) for i in range(100)], 8) == "█▇▆▅▄▃▂▁"
    (line,) = blocks(np.array([[[255]], [[0]]], np.uint8))
    assert line.plain == "▀" and "#ffffff on #000000" in str(line.spans[0].style)
