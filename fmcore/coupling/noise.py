"""Noise as a function of pair_id; the split into training and held-out pairs.

A counter-based generator (Philox, Salmon et al. 2011) keyed by (seed, pair_id) gives each pair its
own stream: the noise is the same for any batch size, shard count, worker, device or interruption.

A pair with a real sample is held out by the content of that sample, so that none is held out of one
coupling and trains in another; a pair without one is held out by its pair_id.
"""

import hashlib
import math
from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

HELD_OUT_EVERY = 20
"""One identity in twenty is held out: 5 %."""

NOT_REAL = -1
"""The identity of a pair that has no real sample."""


def gaussian_noise(seed: int, pair_ids: NDArray[np.int64], shape: tuple[int, ...]) -> Tensor:
    """Return standard normal noise [N, *shape] for the pairs `pair_ids` [N], float32 on the CPU.

    >>> ids = np.arange(4)
    >>> whole = gaussian_noise(0, ids, (3,))
    >>> bool((whole[2:] == gaussian_noise(0, ids[2:], (3,))).all())
    True
    """
    size = math.prod(shape)
    out = np.empty((len(pair_ids), size), dtype=np.float32)
    for row, stream in zip(out, _streams(seed, pair_ids), strict=True):
        stream.standard_normal(dtype=np.float32, out=row)
    return torch.from_numpy(out).reshape(-1, *shape)


def uniform(seed: int, pair_ids: NDArray[np.int64], *, draw: int = 0) -> NDArray[np.float64]:
    """Return number `draw` [N] in [0, 1) of each pair, from another stream than the noise."""
    streams = _streams(seed, pair_ids, counter=1 << 192)
    return np.array([stream.random(draw + 1)[draw] for stream in streams], dtype=np.float64)


def _streams(
    seed: int, pair_ids: NDArray[np.int64], counter: int = 0
) -> Iterator[np.random.Generator]:
    """Yield for each pair the generator with key (seed, pair_id): one object, set anew each time.

    To make a generator takes four times as long as to set its state.
    """
    philox = np.random.Philox(key=np.array([seed, 0], dtype=np.uint64), counter=counter)
    stream, fresh = np.random.Generator(philox), philox.state
    for pair in pair_ids:
        fresh["state"]["key"][1] = pair
        philox.state = fresh
        yield stream


def identities(samples: Tensor) -> NDArray[np.int64]:
    """Return a number [N] from 0 for each real sample [N, *D]: a hash of its content alone.

    Copies of a sample have one identity, in whichever order, data set or coupling they are. It has
    52 bits, so that pandas, which reads a column with nulls as float64, loses none.
    """
    rows = samples.detach().float().flatten(1)
    found = np.empty(len(rows), dtype=np.int64)
    for i, row in enumerate(rows):  # one at a time: the samples may be mapped from a file
        digest = hashlib.blake2b(row.numpy().tobytes(), digest_size=8).digest()
        found[i] = int.from_bytes(digest, "little") >> 12
    return found


def is_held_out(
    pair_ids: NDArray[np.int64], real_ids: NDArray[np.int64] | None = None
) -> NDArray[np.bool_]:
    """Return which pairs [N] are held out from training: every twentieth identity.

    That of a pair is the identity of its real sample, or pair_id where it has none (`NOT_REAL`).
    """
    by = pair_ids if real_ids is None else np.where(real_ids == NOT_REAL, pair_ids, real_ids)
    return np.asarray(by % HELD_OUT_EVERY == HELD_OUT_EVERY - 1)
