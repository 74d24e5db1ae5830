"""A chain on latents: from a folder of diffusers to decoded samples, distances and pictures."""

import json
import shutil
from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch

from flows.cli.estimate import estimate
from flows.cli.sample import Draw, _solved, draw
from flows.compare.data_card import data_card
from flows.dag import inputs
from flows.dag.plan import plan
from flows.params.load import load
from flows.stage.__main__ import main
from fmcore.coupling.read import open_coupling
from fmcore.coupling.verify import verify
from fmcore.network.store import load as load_model
from fmcore.settings import ReflowError
from tests import codecs
from tests.diffusers_folders import images
from tests.tiny_chain import in_this_process

PARAMS = """
seed: 0
compute: {device: cpu, threads: 1}
data:
  name: array
  path: images.npy
  codec: {name: diffusers, path: vae}
  scale: standardise
network: {name: unet, channels: [8], blocks: 1}
yardstick: {features: {kind: identity}, samples: 60, splits: 4}
evaluate: {nfe: [1, 2], solver: {name: heun, steps: 2}, trajectories: 16, reconstructions: 8}
gates:
  held_out_ratio: {}
  held_out_rel: {}
  endpoint_shift: {}
  solver_gap_rel: {}
  noise_z: {}
  reconstruction: {}
rounds:
  rf1:
    coupling: independent
    init: scratch
    train: {steps: 4, batch: 16, warmup: 2, checkpoint_every: 4, log_every: 2}
couplings:
  rf1: {round: rf1, pairs: 32, solver: {name: heun, steps: 2}, shard: 16}
"""
CALIBRATE = ["calibrate", "data=couplings/independent", "out=yardstick"]


@pytest.fixture(scope="module")
def chain(tmp_path_factory):
    torch.set_num_threads(1)
    root = tmp_path_factory.mktemp("latents")
    codecs.tiny(root / "vae")
    np.save(root / "images.npy", images())
    with in_this_process(root, PARAMS) as project:
        yield project


def metrics(chain, name):
    return json.loads((chain.root / "metrics" / f"{name}.json").read_text())


def test_the_chain_runs_on_latents_and_is_judged_on_images(chain):
    model = load_model(chain.root / "models/rf1")
    pairs = open_coupling(chain.root / "couplings/rf1")
    assert model.shape == (4, 4, 4) and pairs.about.shape == [4, 4, 4]
    assert model.config["codec"] == pairs.about.codec
    yardstick = json.loads((chain.root / "yardstick/yardstick.json").read_text())
    found, prepared = metrics(chain, "evaluate/rf1"), metrics(chain, "prepare")
    assert found["fd_identity_se/reconstruction"] > 0
    assert found["reconstruction"] == yardstick["reconstruction"]["reconstruction"] > 1
    assert found["fd_identity/reconstruction"] > yardstick["floor"]["fd_identity"]
    assert prepared["reconstruction_rms"] > 0 and prepared["reconstruction_samples"] == 256
    assert verify(chain.root / "couplings/independent").about.pairs == 256
    pictures = chain.root / "pictures/rf1"
    assert (pictures / "samples.png").is_file() and (pictures / "trajectories.png").is_file()


def test_the_card_of_a_coupling_says_that_it_holds_latents(chain):
    about = open_coupling(chain.root / "couplings/rf1").about
    text = data_card("rf1", "me/pairs", about, None, None)
    assert "Samples are latents" in text and about.codec["sha256"] in text
    plain = data_card("rf1", "me/pairs", about.model_copy(update={"codec": None}), None, None)
    assert "latents" not in plain


def test_samples_are_what_diffusers_decodes(chain, tmp_path):
    draw(chain.root, "rf1", tmp_path / "x.npy", Draw(count=3))
    draw(chain.root, "rf1", tmp_path / "x.png", Draw(count=3))
    draw(chain.root, "rf1", tmp_path / "x.gif", Draw(count=3, nfe=2))
    x = torch.from_numpy(np.load(tmp_path / "x.npy"))
    assert x.shape == (3, 1, 8, 8) and float(x.abs().max()) <= 1
    model = load_model(chain.root / "models/rf1")
    z = _solved(chain.root / "models/rf1", None, Draw(count=3))[0].x
    vae = diffusers.AutoencoderTiny.from_pretrained(chain.root / "vae").eval()
    with torch.no_grad():
        wanted = vae.decode(model.scale.inverse(z)).sample.clamp(-1, 1)
    torch.testing.assert_close(x, wanted, atol=1e-5, rtol=1e-4)


def test_another_weight_or_device_reruns_what_encodes_and_decodes(chain):
    before = inputs.compute(chain.root)
    file = next((chain.root / "vae").glob("*.safetensors"))
    content = file.read_bytes()
    try:
        codecs.tiny(chain.root / "vae", seed=3)
        after = inputs.compute(chain.root)
        with pytest.raises(ReflowError, match="another codec than the one that made these latents"):
            draw(chain.root, "rf1", chain.root / "x.npy", Draw(count=1))
        said = next(p for p in plan(chain.root) if p.stage == "prepare")
        assert "data.codec.path: its content changed" in str(said)
    finally:
        file.write_bytes(content)
    changed = {path for path in before if before[path] != after[path]}
    assert changed == {f"inputs/{s}.json" for s in ("prepare", "calibrate", "evaluate/rf1")}
    assert inputs.compute(chain.root) == before
    text = PARAMS.replace("threads: 1", "threads: 2")
    try:
        chain.write("params.yaml", text)
        after = inputs.compute(chain.root)
    finally:
        chain.write("params.yaml", PARAMS)
    assert {path for path in before if before[path] != after[path]} == {"inputs/prepare.json"}
    said = inputs.changes(before["inputs/prepare.json"], after["inputs/prepare.json"])
    assert said == ["compute changed in params.yaml"]


def test_a_codec_that_loses_too_much_stops_the_chain_before_a_round_trains(chain, capfd):
    try:
        chain.write("params.yaml", PARAMS.replace("  reconstruction: {}\n", ""))
        assert main(CALIBRATE) == 2
    finally:
        chain.write("params.yaml", PARAMS)
    assert "gates.reconstruction" in capfd.readouterr().err


@pytest.mark.parametrize("made", [True, False])
def test_cost_is_that_of_latents_before_and_after_they_are_made(chain, made):
    params = None if made else load(chain.root / "params.yaml")
    costs = estimate(chain.root, seconds=0.01, params=params)
    assert [c.stage for c in costs] == ["train@rf1", "couple@rf1"]
    assert costs[1].bytes < 32 * 2 * 64 * 4 * 2


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("warmup: 2", "warmup: 2, flip: true", "mirrors images, and flows learn the latents"),
        ("warmup: 2", "warmup: 2, loss: {name: perceptual}", "perceptual compares images"),
        ("name: array\n  path: images.npy", "name: two_moons", "diffusers is for images"),
        ("network:", "source: {name: digits, codec: {name: diffusers, path: vae}}\nnetwork:",
         "remove source.codec"),
        ("path: vae}", "file: vae}", "unknown key"),
    ],
)  # fmt: skip
def test_what_latents_cannot_do_is_said_before_anything_runs(tmp_path: Path, old, new, said):
    (tmp_path / "params.yaml").write_text(PARAMS.replace(old, new))
    with pytest.raises(ReflowError, match=said):
        load(tmp_path / "params.yaml")


def test_a_chain_trains_its_codec_by_itself(tmp_path):
    np.save(tmp_path / "images.npy", images())
    own = "codec: {name: trained, channels: [8, 8], steps: 6, batch: 8}"
    with in_this_process(tmp_path, PARAMS.replace("codec: {name: diffusers, path: vae}", own)) as c:
        about = open_coupling(c.root / "couplings/rf1").about
        assert about.codec["settings"]["path"] == "couplings/independent/_codec"
        assert load_model(c.root / "models/rf1").config["codec"] == about.codec
        assert metrics(c, "evaluate/rf1")["reconstruction"] > 1
        assert {p.state for p in plan(c.root)} == {"unchanged"}
        shutil.rmtree(c.root / "couplings/independent")
        assert len(estimate(c.root, seconds=0.01, params=load(c.root / "params.yaml"))) == 2
