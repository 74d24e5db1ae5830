"""Paths in params.yaml that are not there are told before anything runs."""

import json

import numpy as np
import pytest
from typer.testing import CliRunner

from flows.cli.main import app
from flows.dag import absent, inputs, plan
from flows.project.journal import path_of
from tests.conftest import SOURCE

PARAMS = """
seed: 0
compute: {device: cpu, threads: 1}
data:
  {name: images, root: pictures, codec: {name: diffusers, path: vae},
   conditions: {encoder: {name: folder, path: texts}}}
network: {name: unet, channels: [32, 64]}
yardstick: {features: {kind: inception, weights: inception.pth}, samples: 50, splits: 2}
evaluate: {nfe: [1, 4], solver: {name: euler, steps: 4}, trajectories: 50}
gates: {}
rounds:
  one: {coupling: independent, init: scratch, model: {kind: diffusers, path: ddpm}}
  two: {coupling: independent, init: scratch, model: {kind: diffusers, path: sd, condition: c.st}}
  three:
    coupling: outside
    init: scratch
    train: {steps: 20, batch: 32}
couplings: {outside: {round: scratch, import: {kind: npz, path: pairs.npz}}}
"""
MISSING = {
    "data.root: pictures": "prepare needs",
    "data.codec.path: vae": "prepare, calibrate, evaluate@one and 2 more need",
    "data.conditions.encoder.path: texts": "prepare needs",
    "yardstick.features.weights: inception.pth": "calibrate needs",
    "rounds.one.model.path: ddpm": "train@one needs",
    "rounds.two.model.path: sd": "train@two needs",
    "rounds.two.model.condition: c.st": "train@two needs",
    "couplings.outside.import.path: pairs.npz": "couple@outside needs",
}
LINES = {
    f"{path} is not there, and {needs} it; put it there, or mend the path"
    for path, needs in MISSING.items()
}
SMALL = """
seed: 0
data: {name: array, path: data.npy}
rounds: {}
couplings: {}
"""
STAGES = """
stages:
  inputs: {cmd: python -m flows.stage inputs out=inputs, always_changed: true,
    outs: [inputs: {persist: true}]}
  prepare: {cmd: echo 1 > made, deps: [inputs/prepare.json], outs: [made]}
"""
OWN = "  own: {cmd: 'cp params.yaml made.npy', deps: [params.yaml], outs: [made.npy]}\n"


@pytest.fixture
def reflow(empty, monkeypatch):
    monkeypatch.chdir(empty.root)
    monkeypatch.setenv("COLUMNS", "500")
    return lambda *words: CliRunner().invoke(app, words)


def test_plan_tells_each_path_and_who_needs_it_and_run_starts_nothing(empty, reflow):
    empty.write("dvc.yaml", (SOURCE / "dvc.yaml").read_text())
    empty.write("params.yaml", PARAMS)
    done = reflow("plan")
    assert done.exit_code == 0, done.output
    told = [line for line in done.output.splitlines() if line.startswith("missing: ")]
    assert {line.removeprefix("missing: ") for line in told} == LINES and len(told) == len(LINES)
    found = {p["stage"]: p["missing"] for p in json.loads(reflow("plan", "--json").stdout)}
    assert found["train@one"] == {"rounds.one.model.path": "ddpm"} and found["compare"] == {}
    done = reflow("run", "--no-prefect", "--no-mlflow")
    said = done.output.splitlines()
    assert done.exit_code == 2 and {line.removeprefix("error: ") for line in said} == LINES
    assert not path_of(empty.root).exists() and not (empty.root / "inputs").exists()


def test_only_what_is_asked_for_needs_its_paths(empty, reflow):
    empty.write("dvc.yaml", (SOURCE / "dvc.yaml").read_text())
    empty.write("params.yaml", PARAMS)
    done = reflow("run", "train@two", "--no-prefect", "--no-mlflow")
    assert done.exit_code == 2 and "rounds.two.model.path: sd is not there" in done.output
    assert "ddpm" not in done.output and "inception" not in done.output
    for planned in plan.plan(empty.root):
        assert planned.stage != "compare" or absent.lines([planned]) == []


def test_an_unchanged_stage_needs_nothing(empty):
    empty.write("dvc.yaml", STAGES)
    empty.write("params.yaml", SMALL)
    assert absent.lines(plan.plan(empty.root)) != []
    empty.repro()  # its command does without
    found = {p.stage: p for p in plan.plan(empty.root)}
    assert found["prepare"].state == "unchanged" and absent.lines(found.values()) == []
    np.save(empty.root / "data.npy", np.zeros(2))
    empty.repro()
    (empty.root / "data.npy").unlink()
    (empty.root / ".dvc" / "cache" / "runs").rename(empty.root / "gone")
    [line] = absent.lines(plan.plan(empty.root))
    assert line.startswith("data.path: data.npy is not there, and prepare needs it; ")


def test_what_a_stage_makes_is_not_missing(empty):
    empty.write("dvc.yaml", STAGES + OWN)
    empty.write("params.yaml", SMALL.replace("data.npy", "./made.npy"))
    assert inputs.missing(empty.root) == {"data.path": "./made.npy"}
    assert absent.lines(plan.plan(empty.root)) == []


def test_a_replaced_text_encoder_is_another_input_of_prepare(empty):
    empty.write("params.yaml", PARAMS)
    before = inputs.compute(empty.root)
    empty.write("texts/config.json", "{}")
    after = inputs.compute(empty.root)
    assert [path for path in after if after[path] != before[path]] == ["inputs/prepare.json"]
