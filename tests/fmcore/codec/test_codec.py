"""Latents by a codec: as diffusers makes them, once, and never by another codec."""

import json

import diffusers
import numpy as np
import pytest
import torch

from fmcore import own
from fmcore.codec.kinds import CustomCodec, DiffusersCodec
from fmcore.codec.latents import Units, decoded, encoded, same_codec
from fmcore.couple import Couple, couple
from fmcore.coupling.read import open_coupling, read
from fmcore.coupling.source import ORIGINALS
from fmcore.coupling.verify import verify
from fmcore.dataset.arrays import Array
from fmcore.features.extractor import FeatureSettings
from fmcore.initialise import initialise
from fmcore.measure import yardstick
from fmcore.measure.harness import Evaluate, harness_of
from fmcore.measure.reconstructed import reconstruction
from fmcore.measure.yardstick import YardstickSettings
from fmcore.network.mlp import MLP
from fmcore.network.store import load
from fmcore.prepare import prepare
from fmcore.sampling.flow import Flow
from fmcore.scale import Standardise
from fmcore.settings import ReflowError
from fmcore.solve.solver import Solver
from fmcore.train import Train, train
from fmcore.verdict.gates import Gates, judge
from fmcore.work.work import Work
from tests import codecs
from tests.diffusers_folders import images

LOADERS = {"kl": diffusers.AutoencoderKL, "tiny": diffusers.AutoencoderTiny}


def latents_of(model, x):
    found = model.encode(x)
    return found.latents if hasattr(found, "latents") else found.latent_dist.mode()


def settings(root, codec, **more):
    if not (root / "x.npy").exists():
        np.save(root / "x.npy", images())
    return Array(name="array", path=str(root / "x.npy"), codec=codec, **more)


@pytest.fixture(scope="module", params=["kl", "tiny"])
def folder(request, tmp_path_factory):
    torch.set_num_threads(1)
    return getattr(codecs, request.param)(tmp_path_factory.mktemp("vae") / request.param)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Latents of 256 images by an AutoencoderTiny, an untrained network, and its codec."""
    torch.set_num_threads(1)
    root = tmp_path_factory.mktemp("latents")
    codec = DiffusersCodec(name="diffusers", path=str(codecs.tiny(root / "vae")))
    told = settings(root, codec, scale=Standardise(name="standardise"))
    prepare(root / "data", told, seed=0, metrics=root / "prepare.json")
    initialise(root / "data", root / "init", MLP(width=8, depth=1), seed=0)
    return root


@pytest.fixture
def folded(tmp_path):
    """A codec of one's own, by its settings."""
    (tmp_path / "folded.py").write_text(codecs.OWN)
    own.trust(tmp_path, ["folded:Folded"])
    return lambda **given: CustomCodec(name="custom", path="folded:Folded", settings=given)


def test_latents_and_images_are_those_of_diffusers_for_any_number_of_rows(folder):
    codec = DiffusersCodec(name="diffusers", path=str(folder))
    x = torch.from_numpy(images(70))
    model = LOADERS[folder.name].from_pretrained(folder).eval()
    with torch.no_grad():
        z = latents_of(model, x)
        back = model.decode(z).sample.clamp(-1, 1)
    own_z = encoded(codec, x)
    assert own_z.shape == (70, 4, 4, 4)
    torch.testing.assert_close(own_z, z, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(decoded(codec, z, (1, 8, 8), image=True), back, atol=1e-5, rtol=1e-4)
    parts = torch.cat([encoded(codec, x[:1]), encoded(codec, x[1:40]), encoded(codec, x[40:])])
    assert torch.equal(own_z, parts)


def test_the_digest_is_that_of_weights_and_config_not_of_files(folder, tmp_path):
    codec = DiffusersCodec(name="diffusers", path=str(folder))
    LOADERS[folder.name].from_pretrained(folder).save_pretrained(tmp_path / "pipe" / "vae")
    config = tmp_path / "pipe" / "vae" / "config.json"
    said = json.loads(config.read_text())
    config.write_text(json.dumps({**said, "_diffusers_version": "0.1"}))
    again = DiffusersCodec(name="diffusers", path=str(tmp_path / "pipe"))
    assert again.digest() == codec.digest()  # found in the folder `vae` of a pipeline, too
    other = getattr(codecs, folder.name)(tmp_path / "other", seed=1)
    assert DiffusersCodec(name="diffusers", path=str(other)).digest() != codec.digest()
    config.write_text(json.dumps({**said, "scaling_factor": 0.5}))
    changed = DiffusersCodec(name="diffusers", path=str(tmp_path / "pipe"))
    assert changed.digest() != codec.digest()


def test_prepared_latents_have_their_codec_their_statistics_and_their_originals(data):
    opened = verify(data / "data")
    about = opened.about
    assert about.shape == [4, 4, 4] and not about.image and about.codec["shape"] == [1, 8, 8]
    z, real = read(opened, sources=False), read(opened.originals, sources=False)
    assert opened.originals.about.image and real.target.shape == (256, 1, 8, 8)
    assert torch.equal(z.pair_id, real.pair_id) and torch.equal(z.real_id, real.real_id)
    codec = DiffusersCodec(name="diffusers", path=str(data / "vae"))
    assert about.codec["sha256"] == codec.digest()
    assert about.scale["mean"] == about.codec["mean"] and len(about.codec["std"]) == 4
    torch.testing.assert_close(z.target.mean((0, 2, 3)), torch.zeros(4), atol=1e-4, rtol=0)
    own_z = about.units.inverse(z.target)
    torch.testing.assert_close(own_z, encoded(codec, real.target), atol=0.05, rtol=0)  # of levels
    found = json.loads((data / "prepare.json").read_text())
    back = decoded(codec, own_z, (1, 8, 8), image=True)
    rms = float((back - real.target).square().mean().sqrt())
    assert found["reconstruction_rms"] == pytest.approx(rms, rel=0.02)
    assert load(data / "init").config["codec"] == about.codec


def test_the_same_images_are_held_out_with_and_without_a_codec(data, tmp_path):
    prepare(tmp_path / "plain", settings(data, None), seed=0)
    plain, latent = open_coupling(tmp_path / "plain"), open_coupling(data / "data")
    ids = [read(c, split="held_out", sources=False).pair_id for c in (plain, latent)]
    assert len(ids[0]) and torch.equal(*ids)
    assert "codec" not in json.loads((tmp_path / "plain" / "_manifest.json").read_text())["about"]


def test_samples_are_decoded_into_the_units_of_the_data(data):
    model = load(data / "init")
    harness = harness_of(
        Flow.of(model), data / "data", 8, Evaluate(nfe=(1,)), Work(scratch=data / "t")
    )
    z = harness.samples(Solver(name="euler", steps=2)).x
    vae = diffusers.AutoencoderTiny.from_pretrained(data / "vae").eval()
    with torch.no_grad():
        wanted = vae.decode(model.scale.inverse(z)).sample.clamp(-1, 1)
    torch.testing.assert_close(harness.units.inverse(z), wanted, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(model.units.inverse(z), wanted, atol=1e-5, rtol=1e-4)


def test_another_codec_is_refused_wherever_both_meet(data, tmp_path):
    codec = DiffusersCodec(name="diffusers", path=str(codecs.tiny(tmp_path / "vae", seed=1)))
    other = tmp_path / "data"
    scale = open_coupling(data / "data").about.scale
    prepare(other, settings(data, codec, scale=scale), seed=0)
    work, init = Work(scratch=tmp_path / "t"), data / "init"
    files = (tmp_path / "out", tmp_path / "c.csv", tmp_path / "m.json")
    with pytest.raises(ReflowError, match="codec .* is another than the model's"):
        train(other, init, *files, Train(steps=1, batch=16), name="x", work=work)
    with pytest.raises(ReflowError, match="codec .* is another than the model's"):
        couple(init, other, tmp_path / "p", tmp_path / "m", Couple(pairs=4), work)
    with pytest.raises(ReflowError, match="codec .* is another than the model's"):
        harness_of(Flow.of(load(init)), other, 4, Evaluate(), work)
    with pytest.raises(ReflowError, match="the model has none"):
        same_codec(None, open_coupling(other).about.codec, "data")


def test_a_codec_that_was_changed_decodes_nothing(tmp_path):
    root = tmp_path
    codec = DiffusersCodec(name="diffusers", path=str(codecs.tiny(root / "vae")))
    prepare(root / "data", settings(root, codec), seed=0)
    codecs.tiny(root / "vae", seed=2)
    about = open_coupling(root / "data").about
    with pytest.raises(ReflowError, match="another codec than the one that made these latents"):
        Units.of(about.units, about.codec)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda f: (f / "config.json").unlink(), "cannot be read"),
        (lambda f: (f / "config.json").write_text('{"_class_name": "VQModel"}'), "VQModel"),
        (lambda f: next(f.glob("*.safetensors")).unlink(), "no safetensors"),
        (lambda f: codecs.tiny(f, channels=3), "images of 3 channels"),
    ],
)
def test_a_folder_that_is_no_codec_of_the_data_is_one_line(tmp_path, spoil, said):
    spoil(codecs.tiny(tmp_path / "vae"))
    codec = DiffusersCodec(name="diffusers", path=str(tmp_path / "vae"))
    with pytest.raises(ReflowError, match=said) as error:
        prepare(tmp_path / "data", settings(tmp_path, codec), seed=0)
    assert "\n" not in str(error.value)


def test_images_that_cannot_be_halved_are_refused_at_once(tmp_path):
    np.save(tmp_path / "x.npy", np.zeros((16, 1, 7, 7), np.float32))
    codec = DiffusersCodec(name="diffusers", path=str(codecs.tiny(tmp_path / "vae")))
    with pytest.raises(ReflowError, match=r"decodes samples of shape \[1, 8, 8\]"):
        prepare(tmp_path / "data", settings(tmp_path, codec), seed=0)


def test_a_codec_of_ones_own_must_give_one_latent_for_each_sample(tmp_path):
    text = codecs.OWN.replace("pixel_unshuffle(x, 2)", "pixel_unshuffle(x, 2)[:1]")
    (tmp_path / "halved.py").write_text(text)
    own.trust(tmp_path, ["halved:Folded"])
    codec = CustomCodec(name="custom", path="halved:Folded")
    with pytest.raises(ReflowError, match=r"encode must give float32 \[\d+, ...\], got"):
        prepare(tmp_path / "data", settings(tmp_path, codec), seed=0)


def measured(root, codec):
    root.mkdir()
    prepare(root / "data", settings(root, codec), seed=0)
    how = YardstickSettings(features=FeatureSettings(kind="identity"), samples=100, splits=4)
    made = yardstick.fit(root / "data", how, seed=0, log=lambda *_: None)
    return reconstruction(open_coupling(root / "data"), made, seed=0)


def test_an_exact_codec_scores_as_the_floor_and_a_bad_one_far_above(tmp_path, folded):
    good = measured(tmp_path / "good", folded())
    bad = measured(tmp_path / "bad", folded(blur=0.9))
    assert good["reconstruction"] == pytest.approx(1, abs=0.3) and good["reconstruction_cuts"] == 4
    assert [v.state for v in judge(Gates(), good)] == ["ok"]
    assert bad["reconstruction"] > 10 and [v.state for v in judge(Gates(), bad)] == ["fail"]


def test_prepared_originals_of_a_source_are_encoded_too(tmp_path, folded):
    target = settings(tmp_path, folded())
    np.save(tmp_path / "y.npy", -images())
    source = Array(name="array", path=str(tmp_path / "y.npy"))
    prepare(tmp_path / "data", target, source, seed=0)
    opened = verify(tmp_path / "data")
    assert (tmp_path / "data" / ORIGINALS).is_dir()
    assert opened.source.samples.shape == (256, 4, 4, 4)
    wanted = 2 * torch.nn.functional.pixel_unshuffle(torch.from_numpy(-images()), 2)
    assert torch.equal(opened.source.samples, wanted)
