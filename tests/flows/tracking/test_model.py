"""A round as an MLflow model: what it needs, and that it runs without this checkout."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from flows.tracking.client import Tracker
from flows.tracking.model import log_model
from fmcore import own
from fmcore.network.build import build
from fmcore.network.images import UNet
from fmcore.network.mlp import MLP
from fmcore.network.own import Custom
from fmcore.network.store import save
from tests.conftest import SOURCE
from tests.own_classes import MODULE

pytestmark = pytest.mark.slow

NETWORKS = {
    "unet": (UNet(name="unet", channels=(8, 16), head=4), (1, 8, 8)),
    "residual_mlp": (MLP(width=8, depth=1, time_features=4), (2,)),
}
ELSEWHERE = """
import importlib.util, json, sys
sys.path = [place for place in sys.path if place != sys.argv[2]]
sys.meta_path = [finder for finder in sys.meta_path if "editable" not in str(finder)]
assert not importlib.util.find_spec("flows") and not importlib.util.find_spec("fmcore")
import mlflow
import numpy as np
model = mlflow.pyfunc.load_model(sys.argv[1])
noise = np.random.default_rng(0).normal(size=(16, *json.loads(sys.argv[3]))).astype("float32")
samples = model.predict(noise, params={"nfe": 1})
assert np.isfinite(samples).all()
import fmcore
print(json.dumps([list(samples.shape), fmcore.__file__]))
"""


ALONE = """
import sys
sys.path = [place for place in sys.path if place != sys.argv[1]]
sys.meta_path = [finder for finder in sys.meta_path if "editable" not in str(finder)]
import mlflow
mlflow.set_tracking_uri(sys.argv[2])
code = sys.stdin.read()
exec(code)
print(samples.shape)
"""


@pytest.fixture
def tracker(empty):
    return Tracker(empty.root)


@pytest.mark.parametrize("kind", NETWORKS)
def test_a_model_names_what_it_needs_and_runs_where_the_checkout_is_not(kind, tracker):
    settings, shape = NETWORKS[kind]
    folder = tracker.root / "model"
    network = build(settings, shape, seed=0)
    save(folder, network, raw=network, about={"round": "rf1"})
    run = tracker.client.create_run(tracker.experiment).info.run_id
    made = tracker.client.get_logged_model(log_model(tracker.mlflow, run, folder))
    about = made.tags["mlflow.note.content"]
    assert f'mlflow.pyfunc.load_model("{made.model_uri}")' in about and "predict(noise" in about
    place = Path(tracker.mlflow.artifacts.download_artifacts(made.model_uri))
    needs = {line.split("==")[0] for line in (place / "requirements.txt").read_text().splitlines()}
    assert {"torch", "safetensors", "pydantic", "mlflow"} <= needs
    assert ("diffusers" in needs) is (kind == "unet")
    assert (place / "input_example.json").is_file()
    from mlflow.types import TensorSpec

    signature = tracker.mlflow.models.get_model_info(made.model_uri).signature
    assert signature.inputs is None, "noise is optional, and MLflow requires each tensor it names"
    assert TensorSpec(np.dtype("float32"), (-1, *shape)).required
    assert signature.outputs.inputs[0].shape == (-1, *shape)
    alone = tracker.root / "elsewhere"
    shutil.copytree(place, alone / "copied")
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    words = [sys.executable, "-W", "ignore", "-P", "-c", ELSEWHERE]
    done = subprocess.run(
        [*words, str(alone / "copied"), str(SOURCE), json.dumps(shape)],
        cwd=alone, env=env, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found, code = json.loads(done.stdout.splitlines()[-1])
    assert found == [16, *shape]
    assert Path(code).is_relative_to(alone / "copied")


def test_the_lines_on_the_page_load_a_network_of_ones_own_which_is_refused_without_trust(tracker):
    module = tracker.root / "mine" / "my_flows.py"
    module.parent.mkdir()
    module.write_text(MODULE)
    own.trust(module.parent, ["my_flows:Tiny"])
    network = build(Custom(name="custom", path="my_flows:Tiny"), (2,), seed=0)
    save(tracker.root / "model", network, raw=network, about={"round": "rf1"})
    run = tracker.client.create_run(tracker.experiment).info.run_id
    made = tracker.client.get_logged_model(log_model(tracker.mlflow, run, tracker.root / "model"))
    page = made.tags["mlflow.note.content"]
    (code,) = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    code = code.replace('Path(".")', 'Path("mine")')
    words = [sys.executable, "-W", "ignore", "-P", "-c", ALONE, str(SOURCE)]
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}

    def done(text):
        return subprocess.run(
            [*words, tracker.mlflow.get_tracking_uri()], input=text,
            cwd=tracker.root, env=env, capture_output=True, text=True, check=False,
        )  # fmt: skip

    loaded = done(code)
    assert loaded.returncode == 0 and loaded.stdout.endswith("(16, 2)\n"), loaded.stderr
    refused = done(re.sub("own.trust.*", "", code))
    assert refused.returncode != 0 and "none of its code was run" in refused.stderr
