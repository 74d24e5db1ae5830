"""A codec that `prepare` trains: on images that train, the same after a kill, and checked."""

import json

import numpy as np
import pytest
import torch

from fmcore.codec import trained
from fmcore.codec.kinds import DiffusersCodec, TrainedCodec
from fmcore.codec.latents import decoded, encoded, errors
from fmcore.coupling.noise import identities, is_held_out
from fmcore.coupling.read import open_coupling
from fmcore.coupling.verify import verify
from fmcore.dataset.arrays import Array
from fmcore.prepare import prepare
from fmcore.settings import ReflowError, derive_seed
from fmcore.work.work import Work, silent
from tests.diffusers_folders import images

SMALL = TrainedCodec(name="trained", channels=(8, 8), steps=6, batch=8)


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


def train(x, rows, folder, settings=SMALL, **more):
    given = {"seed": 0, "device": torch.device("cpu"), "scratch": None, "log": silent} | more
    return trained.train_codec(settings, x, rows, folder, **given)


def of(root, **more):
    np.save(root / "x.npy", images())
    return Array(name="array", path=str(root / "x.npy"), codec=SMALL, **more)


def test_what_comes_back_is_nearer_the_longer_it_trains(tmp_path):
    x = torch.rand(64, 1, 1, 1).expand(64, 1, 8, 8).mul(2).sub(1).contiguous()  # of one gray each
    off = []
    for steps in (1, 60):
        settings = SMALL.model_copy(update={"steps": steps, "batch": 32})
        codec = train(x, torch.arange(64), tmp_path / str(steps), settings)
        again = decoded(codec, encoded(codec, x), (1, 8, 8), image=True)
        off.append(errors(x, again)["reconstruction_rel"])
    assert off[1] < off[0] / 4


def test_only_the_given_rows_train_it(tmp_path):
    x = torch.rand(32, 1, 8, 8) * 2 - 1
    other = torch.cat([x[:16], torch.zeros(16, 1, 8, 8)])
    few, all_ = torch.arange(16), torch.arange(32)
    digests = [
        train(x, few, tmp_path / "a").digest(),
        train(other, few, tmp_path / "b").digest(),
        train(x, all_, tmp_path / "c").digest(),
        train(x, few, tmp_path / "d", seed=1).digest(),
    ]
    assert digests[0] == digests[1] and len(set(digests)) == 3


@pytest.mark.parametrize("spoilt", [False, True])
def test_a_killed_training_goes_on_to_the_same_codec(tmp_path, monkeypatch, spoilt):
    monkeypatch.setattr(trained, "EVERY", 2)
    x, rows, steps = torch.rand(32, 1, 8, 8) * 2 - 1, torch.arange(32), []
    whole = train(x, rows, tmp_path / "whole")

    def killed(_, step):
        steps.append(step)
        if step == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(x, rows, tmp_path / "again", scratch=tmp_path / "kept", log=killed)
    if spoilt:
        (tmp_path / "kept" / trained.KEPT).write_bytes(b"half")
    again = train(
        x, rows, tmp_path / "again", scratch=tmp_path / "kept", log=lambda _, n: steps.append(n)
    )
    assert steps == [2, 4, *((2, 4, 6) if spoilt else (4, 6))]
    assert again.digest() == whole.digest()


def test_prepare_trains_it_on_what_is_not_held_out_and_keeps_it(tmp_path):
    settings = of(tmp_path)
    prepare(tmp_path / "data", settings, seed=0, metrics=tmp_path / "prepare.json")
    about = verify(tmp_path / "data").about
    kept = DiffusersCodec(name="diffusers", path=str(tmp_path / "data" / trained.FOLDER))
    assert about.codec["settings"] == kept.model_dump(mode="json")
    assert about.codec["sha256"] == kept.digest() and about.shape == [4, 4, 4]
    x = settings.read(0).target
    own = identities(x)
    seen = torch.from_numpy(~is_held_out(own, own)).nonzero()[:, 0]
    assert 0 < len(seen) < len(x)
    wanted = train(x, seen, tmp_path / "own", seed=derive_seed(0, "codec"))
    assert wanted.digest() == kept.digest()
    assert json.loads((tmp_path / "prepare.json").read_text())["reconstruction_rel"] > 0
    again = tmp_path / "again"
    prepare(again, settings, seed=0, work=Work(scratch=tmp_path / "scratch"))
    assert open_coupling(again).about.codec["sha256"] == kept.digest()


def test_a_kept_codec_that_was_changed_is_found(tmp_path):
    prepare(tmp_path / "data", of(tmp_path), seed=0)
    folder = tmp_path / "data" / trained.FOLDER
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(ReflowError, match=r"notes.txt: foreign file"):
        verify(tmp_path / "data")
    (folder / "notes.txt").unlink()
    file = folder / trained.SAVED
    whole = bytearray(file.read_bytes())
    whole[-1] ^= 1
    file.write_bytes(whole)
    with pytest.raises(ReflowError, match="altered: its digest"):
        verify(tmp_path / "data")
    file.unlink()
    with pytest.raises(ReflowError, match="no safetensors there"):
        verify(tmp_path / "data")


@pytest.mark.parametrize("shape", [(3,), (1, 7, 8)])
def test_what_it_cannot_halve_is_refused_in_one_line(tmp_path, shape):
    with pytest.raises(ReflowError, match=r"2 levels halve an image 1 times, .*use fewer levels"):
        train(torch.zeros(4, *shape), torch.arange(4), tmp_path / "x")


def test_a_training_that_diverges_says_so(tmp_path):
    settings = SMALL.model_copy(update={"lr": 1e4, "steps": 200})
    with pytest.raises(ReflowError, match="its training diverged in step .*; lower data.codec.lr"):
        train(torch.rand(32, 1, 8, 8), torch.arange(32), tmp_path / "x", settings)
