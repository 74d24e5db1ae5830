"""`reflow init`: what it makes, where it refuses, and whose name the first commit has."""

import os
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from flows.cli.main import app
from flows.cli.shadows import shadows
from flows.dag import graph
from flows.params.load import load
from flows.start import templates
from flows.start.init import init
from flows.start.templates import Record
from fmcore.settings import ReflowError
from tests.conftest import SOURCE

NAMES = ("AUTHOR_NAME", "AUTHOR_EMAIL", "COMMITTER_NAME", "COMMITTER_EMAIL")


@pytest.fixture(autouse=True)
def nobody(tmp_path, monkeypatch):
    """Git as on a new machine: no global settings, no author."""
    for name in NAMES:
        monkeypatch.delenv(f"GIT_{name}", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("GIT_CONFIG_NOSYSTEM", "1")
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path))
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / ".gitconfig").write_text("[user]\n\tuseConfigOnly = true\n")


def git(folder, *words):
    done = subprocess.run(["git", *words], cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_a_project_is_whole_and_committed(tmp_path):
    root = tmp_path / "my flows"
    made = init(root, "eight_gaussians")
    assert git(root, "status", "--porcelain") == ""
    assert git(root, "log", "--format=%h %an") == f"{made.commit} reflow"
    assert any("git config user.name NAME" in note for note in made.notes)
    settings = (tmp_path / "home" / ".gitconfig").read_text()
    assert settings == "[user]\n\tuseConfigOnly = true\n"
    assert load(root / "params.yaml").data.name == "eight_gaussians"
    assert "$schema=params.schema.json" in (root / "params.yaml").read_text()
    assert (root / "dvc.yaml").read_text() == (SOURCE / "dvc.yaml").read_text()
    assert "train@rf2" in graph.read(root)
    assert (root / "README.md").read_text().startswith("# my flows\n")
    assert set(Record.read(root).files) == set(templates.kept())
    (root / "data").mkdir()
    (root / "data" / "a.npy").write_text("")
    assert git(root, "status", "--porcelain") == ""


def test_an_author_whom_git_knows_has_the_first_commit(tmp_path, monkeypatch):
    for name in NAMES:
        monkeypatch.setenv(f"GIT_{name}", "ada")
    made = init(tmp_path / "mine", "digits")
    assert git(tmp_path / "mine", "log", "--format=%an") == "ada" and not made.notes


def test_every_parameter_file_has_a_name(tmp_path):
    names = sorted(file.stem for file in (SOURCE / "params").glob("*.yaml"))
    with pytest.raises(ReflowError) as error:
        init(tmp_path / "x", "digitz")
    assert str(error.value) == f"--from: no 'digitz'; there are: {', '.join(names)}"
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    ("what", "says"), [("full", "not empty (a, b, c, ...)"), ("file", "is a file")]
)
def test_what_is_there_is_left_alone(tmp_path, what, says):
    place = tmp_path / what
    if what == "full":
        place.mkdir()
        for name in "abcd":
            (place / name).write_text(name)
    else:
        place.write_text("mine")
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    done = CliRunner().invoke(app, ["init", str(place)])
    assert done.exit_code == 2
    assert done.stderr == f"error: {place}: {says}; name a new or an empty folder\n"
    assert before == {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}


def test_an_empty_folder_may_be_there(tmp_path):
    (tmp_path / "empty").mkdir()
    assert init(tmp_path / "empty", "digits").commit


def test_inside_a_repository_no_other_is_made(tmp_path):
    git(tmp_path, "init", "-q", "lab")
    made = init(tmp_path / "lab" / "a" / "chain", "digits")
    assert not (tmp_path / "lab" / "a" / "chain" / ".git").exists() and not made.commit
    (note,) = made.notes
    assert f"{tmp_path / 'lab'}: no other was made and nothing was committed" in note
    assert git(tmp_path / "lab", "status", "--porcelain") == "?? a/"
    assert "inputs" in graph.read(tmp_path / "lab" / "a" / "chain")


def test_where_nothing_may_be_written_the_line_says_so(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ReflowError, match="cannot be written"):
        init(tmp_path / "file" / "inner", "digits")


def test_without_git_the_line_says_so(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ReflowError, match=r"git: not installed; .* apt install git"):
        init(tmp_path / "x", "digits")


def test_a_folder_that_hides_a_package_of_ours_is_named(tmp_path, monkeypatch):
    monkeypatch.delitem(sys.modules, "reflow_chain", raising=False)  # it keeps an older PYTHONPATH
    monkeypatch.setenv("PYTHONPATH", str(SOURCE))
    assert not list(shadows(tmp_path))
    (tmp_path / "flows").mkdir()
    assert not list(shadows(tmp_path))  # without code Python looks further
    (tmp_path / "flows" / "__init__.py").write_text("")
    (found,) = shadows(tmp_path)
    assert found.always and found.mend == f"rename {tmp_path / 'flows'}"
    (tmp_path / "site" / "fmcore").mkdir(parents=True)
    (tmp_path / "site" / "fmcore" / "__init__.py").write_text("")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path / "site"), str(SOURCE)]))
    (tmp_path / "other").mkdir()
    (found,) = shadows(tmp_path / "other")
    assert (found.package, found.always) == ("fmcore", False) and "pip uninstall" in found.mend
