"""Small couplings and models that tests of the verbs start from."""

from pathlib import Path

import numpy as np
import torch

from fmcore.coupling.noise import gaussian_noise
from fmcore.coupling.write import About, finish, table, write_shard
from fmcore.network.build import build
from fmcore.network.mlp import MLP
from fmcore.network.store import save

CPU = torch.device("cpu")
SMALL = MLP(width=32, depth=2, time_features=16)


def silent(values: dict[str, float], step: int) -> None:
    """Log to nowhere."""


def gaussian_data(folder: Path, *, mu, s, pairs: int = 4000, seed: int = 0) -> Path:
    """Write an independent coupling with target N(mu, diag s^2)."""
    mu, s = torch.tensor(mu), torch.tensor(s)
    about = About(kind="independent", shape=[len(mu)], pairs=pairs, seed=seed)
    ids = np.arange(pairs)
    target = mu + s * gaussian_noise(seed + 1000, ids, (len(mu),))
    write_shard(folder, 0, table(about, ids, target))
    finish(folder, about, 1)
    return folder


def two_dimensions(folder: Path) -> Path:
    """Write data and an untrained model into `folder`, for trainings with one thread."""
    torch.set_num_threads(1)
    gaussian_data(folder / "data", mu=[2.0, -1.0], s=[1.0, 0.5])
    scratch_model(folder / "init", dim=2)
    return folder


def scratch_model(folder: Path, *, dim: int, network: MLP = SMALL, seed: int = 0) -> Path:
    """Write an untrained model for vectors of `dim`."""
    save(folder, build(network, (dim,), seed=seed), about={"round": "scratch"})
    return folder
