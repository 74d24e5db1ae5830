"""`reflow --version`, and what the shell completes: from params.yaml, without torch."""

import os
import re
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from flows.cli import complete
from flows.cli.main import app
from tests.conftest import SOURCE

PARAMS = "rounds: {rf1: {}, rf2: {}, slow: {}}\ncouplings: {rf1: {round: rf1}}\n"


@pytest.fixture
def project(tmp_path, monkeypatch):
    (tmp_path / "params.yaml").write_text(PARAMS)
    (tmp_path / "dvc.yaml").write_text("stages: {}\n")
    (tmp_path / "params").mkdir()
    for name in ("moons.yaml", "digits.yaml", "notes.txt"):
        (tmp_path / "params" / name).write_text("{}\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_version_is_that_of_the_package_and_the_commit():
    done = CliRunner().invoke(app, ["--version"])
    assert done.exit_code == 0
    assert re.fullmatch(
        r"reflow-chain \d\S+(, commit [0-9a-f]{7,}( with changes)?)?\n", done.output
    )
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=SOURCE, capture_output=True, text=True
    ).stdout.strip()
    assert commit in done.output


@pytest.mark.parametrize(
    ("complete_it", "typed", "found"),
    [
        (complete.rounds, "rf", ["rf1", "rf2"]),
        (complete.couplings, "", ["rf1"]),
        (complete.handed, "", ["models/rf1", "models/rf2", "models/slow", "couplings/rf1"]),
        (complete.versions, "", ["independent", "rf1"]),
        (complete.stages, "train", ["train", "train@rf1", "train@rf2", "train@slow"]),
        (complete.stages, "co", ["compare", "couple", "couple@rf1"]),
        (complete.parameter_files, "", [
            "params/digits.yaml", "params/moons.yaml", "dvc.yaml", "params/", "params.yaml",
        ]),
        (complete.parameter_files, "params/m", ["params/moons.yaml"]),
        (complete.parameter_files, "nowhere/", []),
    ],
)  # fmt: skip
def test_names_are_completed(project, complete_it, typed, found):
    assert complete_it(typed) == found


@pytest.mark.parametrize("text", ["rounds: [", "- 1", "rounds: 3", "{}"])
def test_a_wrong_file_or_no_project_completes_nothing(project, monkeypatch, text):
    (project / "params.yaml").write_text(text)
    assert complete.rounds("") == []
    monkeypatch.chdir(project.parent)
    assert complete.rounds("") == []


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("reflow ship r", ["rf1", "rf2"]),
        ("reflow sample s", ["slow"]),
        ("reflow run evaluate@s", ["evaluate@slow"]),
        ("reflow couple r", ["rf1"]),
        ("reflow compare --baseline rf2", ["rf2"]),
        ("reflow replicate 2 --round s", ["slow"]),
        ("reflow couplings get HEAD --name i", ["independent"]),
        ("reflow use params/d", ["params/digits.yaml"]),
    ],
)
def test_the_shell_asks_and_torch_is_not_imported(project, line, found):
    code = (
        "import sys; from flows.cli.main import app\n"
        "try: app(prog_name='reflow')\n"
        "finally: assert 'torch' not in sys.modules and 'dvc' not in sys.modules"
    )
    asked = {"_REFLOW_COMPLETE": "complete_bash", "COMP_WORDS": line}
    env = {**os.environ, **asked, "COMP_CWORD": str(len(line.split()) - 1)}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**env, "PYTHONPATH": str(SOURCE)}, capture_output=True, text=True,
    )  # fmt: skip
    assert (done.stdout.split(), done.stderr) == (found, "")
