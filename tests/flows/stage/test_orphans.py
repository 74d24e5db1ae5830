"""A stage dies with the process that started it, from its first instruction on."""

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from flows.project import process_group
from tests.conftest import SOURCE, Project, until

# Stands for DVC: a group of its own, a shell that does not exec its command, then the stage.
DVC = """
import os, subprocess, sys
os.setpgid(0, 0)
subprocess.Popen(["sh", "-c", sys.argv[1]], env={**os.environ, "DVC_STAGE": "train@rf1"}).wait()
"""
STAGE = """
import os, pathlib, sys, time
me = pathlib.Path(sys.argv[1])
me.write_text(str(os.getpid()))
time.sleep(float(sys.argv[2]))  # Python starts slowly
from flows.project.process_group import die_with_starter
die_with_starter()
me.with_name("past").touch()
time.sleep(20)
me.with_name("out").touch()
"""
STARTERS = {
    "dvc repro": [sys.executable, "-c", DVC],
    "reflow run": [sys.executable, "-P", process_group.__file__, str(os.getpid()), "dvc_stands"],
}


def started(folder: Path, starter: str, seconds: float, before: str) -> "subprocess.Popen[bytes]":
    """Start a stage whose first line comes `seconds` after its process."""
    (folder / "stage.py").write_text(STAGE)
    (folder / "dvc_stands.py").write_text(DVC.replace("os.setpgid(0, 0)", ""))
    env = {**os.environ, "PYTHONPATH": f"{folder}{os.pathsep}{SOURCE}"}
    command = f"{before}{sys.executable} {folder}/stage.py {folder}/pid {seconds}"
    return subprocess.Popen([*STARTERS[starter], command], cwd=folder, env=env)


def living(folder: Path) -> bool:
    with contextlib.suppress(OSError, ValueError):
        pid = int((folder / "pid").read_text())
        return process_group._state(pid) not in ("", "Z")
    return False


@pytest.mark.parametrize("before", ["", "true && "], ids=["direct", "behind a shell"])
@pytest.mark.parametrize("starter", STARTERS)
@pytest.mark.parametrize("early", [True, False], ids=["before its first line", "after it"])
def test_a_stage_does_not_outlive_its_starter(
    tmp_path: Path, starter: str, before: str, early: bool
) -> None:
    running = started(tmp_path, starter, 0.6 if early else 0, before)
    until((tmp_path / ("pid" if early else "past")).exists)
    running.kill()
    running.wait()
    until(lambda: not living(tmp_path), 10)
    assert (tmp_path / "past").exists() != early
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("starter", STARTERS)
def test_a_stage_whose_starter_lives_goes_on(tmp_path: Path, starter: str) -> None:
    running = started(tmp_path, starter, 0, "true && ")
    until((tmp_path / "past").exists)
    time.sleep(1.2)  # two looks of the watching thread
    assert living(tmp_path)
    running.kill()
    running.wait()
    until(lambda: not living(tmp_path), 10)


def test_a_mark_of_another_machine_or_container_says_nothing() -> None:
    mark = process_group._mark(os.getpid())
    boot, space, pid, began = mark.split()
    assert process_group._lives(mark) and process_group._lives("")
    assert not process_group._lives(f"{boot} {space} {pid} {int(began) + 1}")
    assert process_group._lives(f"other {space} 1 1") and process_group._lives(f"{boot} other 1 1")


def test_nothing_slow_is_imported_before_a_stage_watches_its_parent() -> None:
    code = (
        "import sys; before = set(sys.modules)\n"
        "from flows.project import process_group\n"
        "def stop(): print(*sorted({m.split('.')[0] for m in set(sys.modules) - before}));"
        " raise SystemExit\n"
        "process_group.die_with_starter = stop\n"
        "import runpy; sys.argv = ['', 'train', 'rf1']\n"
        "runpy.run_module('flows.stage', run_name='__main__')\n"
    )
    env = {**os.environ, "PYTHONPATH": str(SOURCE)}
    said = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    loaded = set(said.stdout.split())
    assert "flows" in loaded, said.stderr
    assert loaded - {"flows"} <= sys.stdlib_module_names


MOMENTS = (0.02, 0.1, 0.3, 0.6, 1.0, 1.5, 2.0, 3.0)


@pytest.fixture
def slow_stage(empty: Project) -> Callable[[], bool]:
    """A project whose stage is the real `python -m flows.stage`, which imports torch."""
    text = (
        "stages:\n  prepare:\n    cmd: true && python -m flows.stage prepare out=out\n"
        "    outs: [out]\n"
    )
    empty.write("dvc.yaml", text)
    empty.write(
        "params.yaml",
        "seed: 0\ncompute: {device: cpu, threads: 1}\n"
        "data: {name: gaussian, mean: [0.0], std: [1.0], samples: 3000000}\n"
        "network: {}\nyardstick: {}\nevaluate: {}\ngates: {}\n"
        "rounds: {rf1: {coupling: independent, init: scratch, train: {steps: 1}}}\n"
        "couplings: {}\n",
    )

    def alive() -> bool:
        found = False
        for line in Path("/proc").glob("[0-9]*/cmdline"):
            with contextlib.suppress(OSError):
                words = line.read_bytes().split(b"\0")
                there = (line.parent / "cwd").readlink() == empty.root
                found |= there and b"flows.stage" in words
        return found

    return alive


@pytest.mark.long
@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("wrapped", [True, False], ids=["as reflow run does", "dvc repro"])
def test_a_real_stage_is_gone_when_dvc_is_killed(
    empty: Project, slow_stage: Callable[[], bool], moment: float, wrapped: bool
) -> None:
    dvc = ["dvc", "repro", "--single-item", "prepare"]
    leash = [sys.executable, "-P", process_group.__file__, str(os.getpid())]
    running = empty.start(*(leash if wrapped else []), *dvc)
    until(slow_stage, 60)
    time.sleep(moment)
    running.kill()
    running.wait()
    until(lambda: not slow_stage(), 5)
    assert not (empty.root / "out").exists() or moment >= 2
