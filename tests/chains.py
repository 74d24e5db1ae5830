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


def scratch_model(folder: Path, *, dim: int, network: MLP = SMALL, seed: int = 0) -> Path:
    """Write an untrained model for vectors of `dim`."""
    save(folder, build(network, (dim,), seed=seed), about={"round": "scratch"})
    return folder
