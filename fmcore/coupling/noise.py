"""Noise, and the split into training and held-out pairs, as pure functions of pair_id.

A counter-based generator (Philox, Salmon et al. 2011) keyed by (seed, pair_id) gives each pair its
own stream: the noise is the same for any batch size, shard count, worker, device or interruption.
"""

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

HELD_OUT_EVERY = 20
"""One pair in twenty is held out: 5 %, chosen by pair_id, hence the same in every round."""


def gaussian_noise(seed: int, pair_ids: NDArray[np.int64], shape: tuple[int, ...]) -> Tensor:
    """Return standard normal noise [N, *shape] for the pairs `pair_ids` [N], float32 on the CPU.

    >>> ids = np.arange(4)
    >>> whole = gaussian_noise(0, ids, (3,))
    >>> bool((whole[2:] == gaussian_noise(0, ids[2:], (3,))).all())
    True
    """
    size = math.prod(shape)
    out = np.empty((len(pair_ids), size), dtype=np.float32)
    for row, pair in zip(out, pair_ids, strict=True):
        key = np.array([seed, pair], dtype=np.uint64)
        np.random.Generator(np.random.Philox(key=key)).standard_normal(dtype=np.float32, out=row)
    return torch.from_numpy(out).reshape(-1, *shape)


def uniform(seed: int, pair_ids: NDArray[np.int64], *, draw: int = 0) -> NDArray[np.float64]:
    """Return number `draw` [N] in [0, 1) of each pair, from another stream than the noise."""
    out = np.empty(len(pair_ids))
    for i, pair in enumerate(pair_ids):
        key = np.array([seed, pair], dtype=np.uint64)
        stream = np.random.Generator(np.random.Philox(key=key, counter=1 << 192))
        out[i] = stream.random(draw + 1)[draw]
    return out


def is_held_out(pair_ids: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Return which pairs [N] are held out from training: every twentieth, by pair_id."""
    return np.asarray(pair_ids % HELD_OUT_EVERY == HELD_OUT_EVERY - 1)
