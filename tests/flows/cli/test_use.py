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
        "train.loss.weights": "vgg.pth",
    }
    empty.write("x.npy", "")
    assert "data.path" not in inputs.missing(empty.root)
