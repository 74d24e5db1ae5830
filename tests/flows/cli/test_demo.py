"""`reflow demo`: a picture from nothing, outside of any project, the same for the same seed."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from flows.cli.demo import _next
from tests.conftest import SOURCE

NUMBERS = re.compile(r"\d+\.\d{3}")


def demo(folder: Path, *words: str) -> "subprocess.CompletedProcess[str]":
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("REFLOW", "DVC", "MLFLOW"))}
    env = {**kept, "PYTHONPATH": str(SOURCE), "HOME": str(folder), "PATH": "/nowhere"}  # no git
    return subprocess.run(
        [sys.executable, "-m", "flows.cli", "demo", *words], cwd=folder, env=env,
        capture_output=True, text=True, check=False,
    )  # fmt: skip


def numbers(text: str) -> list[float]:
    """Return bend, miss, straight and hit of the lines that are printed."""
    said = " ".join(line for line in text.splitlines() if line.startswith("rf") and ":" in line)
    return [float(n) for n in NUMBERS.findall(said.split("rf1 learns")[1])]


def test_it_needs_nothing_and_the_same_seed_gives_the_same_numbers(tmp_path):
    first = demo(tmp_path, "--steps", "20")
    assert first.returncode == 0, first.stdout + first.stderr
    picture = tmp_path / "reflow_demo.png"
    assert [p.name for p in tmp_path.iterdir() if not p.name.startswith(".")] == [picture.name]
    with Image.open(picture) as image:
        assert image.width > 1000 and image.info["Software"] == "reflow demo"
    before = picture.read_bytes()
    again = demo(tmp_path, "--steps", "20")  # its own picture it writes again
    assert numbers(again.stdout) == numbers(first.stdout) and picture.read_bytes() == before
    other = demo(tmp_path, "--steps", "20", "--seed", "1", "--out", "deep/other.png")
    assert numbers(other.stdout) != numbers(first.stdout)
    assert (tmp_path / "deep" / "other.png").read_bytes() != before
    assert "loss" in first.stdout and "reflow init my-flows --from eight_gaussians" in first.stdout


@pytest.mark.parametrize(
    ("name", "says"),
    [("mine.png", "exists and is no picture of `reflow demo`"), ("a.pdf", "ends in .png")],
)
def test_another_file_is_left_alone_in_one_line(tmp_path, name, says):
    (tmp_path / name).write_text("mine")
    done = demo(tmp_path, "--out", name)
    assert done.returncode == 2 and says in done.stderr and len(done.stderr.splitlines()) == 1
    assert (tmp_path / name).read_text() == "mine"


@pytest.mark.slow
def test_the_second_round_is_straight_and_right_in_one_step(tmp_path):
    bend, miss, straight, hit, *_ = numbers(demo(tmp_path).stdout)
    assert straight < 0.01 * bend and hit < 0.01 * miss
    assert bend > 0.1 and miss > 1


def test_the_next_step_works_where_it_is_said(tmp_path, monkeypatch):
    """Without `reflow` on the PATH, and inside of a repository, which is no place for another."""
    monkeypatch.chdir(tmp_path)
    assert _next().startswith("reflow init my-flows --from eight_gaussians && cd my-flows")
    subprocess.run(["git", "init", "-q", str(tmp_path / "a clone")], check=True)
    monkeypatch.chdir(tmp_path / "a clone")
    monkeypatch.setattr("flows.cli.demo.which", lambda name: None)
    said = _next()
    words = [shlex.split(part) for part in said.split(" && ")]
    assert words[1] == ["cd", f"{tmp_path / 'a clone'}-flows"] and words[0][2] == words[1][1]
    assert Path(words[0][0]).parent == Path(sys.executable).parent
    done = subprocess.run(words[0], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "a clone-flows/.git").is_dir() and words[2][1] == "run"
