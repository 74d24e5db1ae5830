"""A chain whose first round others trained: from a folder of diffusers to a few-step student."""

import json

import numpy as np
import pytest
import torch

from flows.cli.estimate import estimate
from flows.dag import inputs
from flows.dag.identity import whole_chain
from flows.dag.lineage import lock_entries
from flows.dag.plan import plan
from flows.dag.receipts import spent
from flows.params.load import load
from flows.params.replicates import replicated
from flows.stage.adopted import _suits_those_that_start_from_it, folder_of
from flows.tracking.publish import publish
from fmcore import own
from fmcore.coupling.read import open_coupling
from fmcore.network.outside import Outside
from fmcore.network.own import Custom
from fmcore.network.predictions import Edm
from fmcore.network.store import load as load_model
from fmcore.network.store import save
from fmcore.network.teachers import ProjectModel, RegisteredModel
from fmcore.settings import ReflowError
from tests import diffusers_folders as folders
from tests.tiny_chain import in_this_process

PARAMS = """
seed: 0
compute: {device: cpu, threads: 1}
data: {name: array, path: images.npy}
network: {name: unet, channels: [8]}
yardstick: {features: {kind: identity}, samples: 60, splits: 2}
evaluate: {nfe: [1, 2], solver: {name: heun, steps: 2}, trajectories: 16, reconstructions: 8}
gates:
  held_out_ratio: {}
  held_out_rel: {}
  endpoint_shift: {}
  solver_gap_rel: {}
  noise_z: {}
rounds:
  teacher: {coupling: independent, init: scratch, model: {kind: diffusers, path: ddpm}}
  student:
    coupling: teacher
    init: teacher
    train: {steps: 4, batch: 16, time: {name: grid, steps: 2}, checkpoint_every: 4, log_every: 2}
  map:
    coupling: teacher
    init: teacher
    train: {steps: 4, batch: 16, objective: mean_flow, map: lagrangian, checkpoint_every: 4}
couplings:
  teacher: {round: teacher, pairs: 96, solver: {name: euler, steps: 4}, shard: 48}
"""


@pytest.fixture(scope="module")
def chain(tmp_path_factory):
    torch.set_num_threads(1)
    root = tmp_path_factory.mktemp("teachers")
    folders.pipeline(root / "ddpm")
    np.save(root / "images.npy", folders.images())
    with in_this_process(root, PARAMS) as project:
        yield project


def test_the_chain_runs_and_says_what_was_not_trained(chain):
    root = chain.root
    compared = (root / "comparison" / "rounds.md").read_text()
    assert "| teacher | independent |" in compared and "| student | teacher |" in compared
    trained = json.loads((root / "metrics/train/teacher.json").read_text())
    assert trained["flops_training"] == 0 and "loss" not in trained
    assert (root / "curves/train/teacher.csv").read_text().count("\n") == 1
    teacher = load_model(root / "models" / "teacher")
    assert open_coupling(root / "couplings" / "teacher").about.model == teacher.digest
    assert load_model(root / "models" / "student").config["init"] == teacher.digest
    assert load_model(root / "models" / "map").network.settings.spans
    assert "ivd" in json.loads((root / "metrics/evaluate/map.json").read_text())
    whole = whole_chain(root, lock_entries(root), lock_entries(root))
    assert spent(root, whole.rounds[0])["spent/train_evaluations"] == 0


def test_mlflow_has_the_teacher_and_another_project_takes_its_student(chain, tmp_path):
    done = publish(chain.root)
    assert "model@teacher" in done.logged and not done.skipped
    params = load(chain.root / "params.yaml")
    model = params.rounds["teacher"].model
    named = str(done.moved[0]).split()[0]  # models:/NAME@USE is ...
    taken = RegisteredModel(kind="mlflow", model=named)
    folder = folder_of(chain.root, taken, tmp_path)
    assert load_model(folder).config["round"] in ("teacher", "student", "map")
    assert folder_of(chain.root, model, tmp_path) is None
    with pytest.raises(ReflowError, match="MLflow"):
        folder_of(chain.root, taken.model_copy(update={"model": "models:/nothing/7"}), tmp_path)


SPANLESS = """
from fmcore.network.own import OwnNetwork


class Spanless(OwnNetwork):
    def forward(self, x, t, label=None):
        return x
"""


def test_what_cannot_start_from_a_teacher_is_told_when_it_is_taken_in(chain, tmp_path):
    """Not after its pairs were sampled; params.yaml does not show what network it is."""
    text = PARAMS.replace("{kind: diffusers, path: ddpm}", "{kind: reflow, path: theirs}")
    (tmp_path / "params.yaml").write_text(text)
    params = load(tmp_path / "params.yaml")
    _suits_those_that_start_from_it(params, "teacher", chain.root / "models/teacher")
    (tmp_path / "spanless.py").write_text(SPANLESS)
    own.trust(tmp_path, ["spanless:Spanless"])
    inner = Custom(name="custom", path="spanless:Spanless")
    settings = Outside(name="outside", network=inner, prediction=Edm(name="edm"))
    save(tmp_path / "m", settings.build((1, 8, 8)), about={"round": "teacher"})
    says = r"rounds\.map\.train: .*Spanless takes none; let its forward take .*span=None"
    with pytest.raises(ReflowError, match=says) as error:
        _suits_those_that_start_from_it(params, "teacher", tmp_path / "m")
    assert "\n" not in str(error.value)


def test_a_round_of_another_project_now_and_at_a_revision(chain, tmp_path):
    ask = ProjectModel(kind="reflow", path=str(chain.root), round="student")
    now = folder_of(tmp_path, ask, tmp_path)
    then = folder_of(tmp_path, ask.model_copy(update={"rev": "HEAD"}), tmp_path)
    assert then.is_relative_to(tmp_path / ".reflow" / "models")  # nothing is written into theirs
    assert not (chain.root / ".reflow" / "models").exists()
    assert now != then and load_model(now).digest == load_model(then).digest
    with pytest.raises(ReflowError, match="the model of round rf9"):
        folder_of(tmp_path, ask.model_copy(update={"round": "rf9"}), tmp_path)


def test_estimate_probes_the_teacher_itself(chain):
    found = {cost.stage: cost for cost in estimate(chain.root, seconds=0.01)}
    assert set(found) == {"couple@teacher", "train@student", "train@map"}
    assert found["couple@teacher"].nfe == 4
    params = load(chain.root / "params.yaml")  # as before anything ran
    assert {c.stage for c in estimate(chain.root, seconds=0.01, params=params)} == set(found)


def test_a_changed_teacher_runs_again_what_follows(chain):
    assert all(p.state != "runs" for p in plan(chain.root) if p.stage != "inputs")
    before = inputs.compute(chain.root)
    assert "fmcore.adopt" in json.loads(before["inputs/train/teacher.json"])["code"]
    assert "fmcore.adopt" not in json.loads(before["inputs/train/student.json"])["code"]
    file = next((chain.root / "ddpm" / "unet").glob("*.safetensors"))
    whole = file.read_bytes()
    try:
        file.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        after = inputs.compute(chain.root)
        assert {k for k in after if after[k] != before[k]} == {"inputs/train/teacher.json"}
        said = inputs.changes(*(one["inputs/train/teacher.json"] for one in (before, after)))
        assert said[0].startswith("model.path: its content changed (")
    finally:
        file.write_bytes(whole)
    (chain.root / "ddpm").rename(chain.root / "gone")
    try:
        assert inputs.missing(chain.root) == {"rounds.teacher.model.path": "ddpm"}
    finally:
        (chain.root / "gone").rename(chain.root / "ddpm")


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("model: {kind", "train: {steps: 1}, model: {kind",
         "a round has it, or the `model` of one not trained here; both are there"),
        (", model: {kind: diffusers, path: ddpm}", "", "neither is there"),
        ("teacher: {coupling: independent", "teacher: {coupling: teacher",
         "is not trained; write coupling: independent"),
        ("path: ddpm}", "path: ddpm, conditions: {}}", "model.conditions: the data has none"),
        ("kind: diffusers", "kind: pickle", "rounds.teacher.model.kind: expected one of"),
        ("kind: diffusers", "kind: reflow, rev: main", "name its `round` too"),
        ("init: scratch, model", "init: scratch, continue: true, model", "leave it out"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_told_when_params_are_read(tmp_path, old, new, says):
    file = tmp_path / "params.yaml"
    file.write_text(PARAMS)
    load(file)
    assert old in PARAMS
    file.write_text(PARAMS.replace(old, new))
    with pytest.raises(ReflowError) as caught:
        load(file)
    assert says in str(caught.value)


def test_a_teacher_has_no_replicates():
    text = replicated(PARAMS, 2)
    assert "student_r2" in text and "teacher_r2" not in text
    with pytest.raises(ReflowError, match="nothing to repeat"):
        replicated(PARAMS, 2, ["teacher"])
