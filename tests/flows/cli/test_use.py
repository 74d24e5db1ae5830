"""`reflow use` says at once which files a parameter file needs that are not there."""

import pytest
from typer.testing import CliRunner

from flows.cli.main import app
from flows.dag import inputs
from tests.conftest import SOURCE, Project

NOTE = "note: not there yet, and `reflow run` needs it: data/images (data.root)\n"


@pytest.fixture
def use(empty: Project, monkeypatch):
    empty.write("dvc.yaml", (SOURCE / "dvc.yaml").read_text())
    monkeypatch.chdir(empty.root)
    return lambda name: CliRunner().invoke(app, ["use", "--force", f"{SOURCE}/params/{name}"])


def test_data_that_is_not_there_is_a_note_of_one_line(use, empty):
    done = use("images.yaml")
    assert done.exit_code == 0 and NOTE in done.stdout
    (empty.root / "data" / "images").mkdir(parents=True)
    assert "note" not in use("images.yaml").stdout
    assert "note" not in use("gaussian.yaml").stdout


def test_all_files_that_any_stage_reads_are_looked_for(empty):
    empty.write(
        "params.yaml",
        "data: {name: array, path: x.npy}\n"
        "yardstick: {protocol: {weights: w.pth, reference: test}}\n"
        "rounds: {rf1: {train: {loss: {name: perceptual, weights: vgg.pth}}}}\n",
    )
    assert inputs.missing(empty.root) == {
        "data.path": "x.npy",
        "yardstick.protocol.weights": "w.pth",
        "rounds.rf1.train.loss.weights": "vgg.pth",
    }
    empty.write("x.npy", "")
    assert "data.path" not in inputs.missing(empty.root)


@pytest.mark.parametrize("word", ["two_moons", "params/two_moons.yaml"])
def test_a_shipped_file_is_named_where_the_project_has_none(use, empty, word):
    use("gaussian.yaml")
    done = CliRunner().invoke(app, ["use", word])  # what is there is a shipped file too: no edit
    assert done.exit_code == 0, done.output
    assert "two_moons" in (empty.root / "params.yaml").read_text()
    done = CliRunner().invoke(app, ["use", "no_such"])
    assert done.exit_code == 2 and "no_such" in done.output


@pytest.mark.parametrize("place", [".", "data"])
@pytest.mark.parametrize("word", ["two_moons", "params/two_moons.yaml"])
def test_a_file_of_the_project_comes_before_a_shipped_one(use, empty, monkeypatch, word, place):
    text = (SOURCE / "params" / "gaussian.yaml").read_text().replace("seed: 0", "seed: 7")
    empty.write("params/two_moons.yaml", text)
    (empty.root / "data" / "two_moons").mkdir(parents=True)  # a folder is no parameter file
    monkeypatch.chdir(empty.root / place)
    assert CliRunner().invoke(app, ["use", "--force", word]).exit_code == 0
    assert "seed: 7" in (empty.root / "params.yaml").read_text()
