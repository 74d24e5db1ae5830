"""The source of a coupling: N(0, I), or the real samples of a data set, drawn by (seed, pair_id).

Real samples lie in the folder `SAMPLES` beside the shards of the prepared data, as a coupling of
their own; pandas and pyarrow leave out folders whose name begins with an underscore.
"""

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fmcore.coupling.noise import gaussian_noise, is_held_out
from fmcore.settings import ReflowError, derive_seed

SAMPLES = "_source"
"""The folder of the real source samples, inside that of the prepared data."""


ORIGINALS = "_originals"
"""The folder of the samples that a codec encoded, inside that of the prepared data."""


@dataclass(frozen=True)
class Source:
    """Where sources come from: noise of `shape`, or `samples` [M, *D] with identities [M].

    Samples are in model units, as the targets are.
    """

    shape: tuple[int, ...]
    samples: Tensor | None = None
    real_id: Tensor | None = None

    def draw(self, seed: int, ids: NDArray[np.int64]) -> Tensor:
        """Return the source [N, *D] of each of the pairs `ids` [N], a function of (seed, id)."""
        if self.samples is None:
            return gaussian_noise(seed, ids, self.shape)
        return self.samples[turns(seed, ids, len(self.samples))]

    def identities(self, seed: int, ids: NDArray[np.int64]) -> Tensor | None:
        """Return the identity [N] of the real sample that `draw` gives; None for noise."""
        if self.samples is None or self.real_id is None:
            return None
        return self.real_id[turns(seed, ids, len(self.samples))]

    def split(self, *, held_out: bool) -> "Source":
        """Return the source without the samples of the other split; noise has no splits."""
        if self.samples is None or self.real_id is None:
            return self
        real_id = self.real_id.numpy()
        rows = torch.from_numpy(is_held_out(real_id, real_id) == held_out)
        if not bool(rows.any()):
            side = "held out" if held_out else "left to train on"
            raise ReflowError(f"source: none of {len(real_id)} samples is {side}; add samples")
        return Source(self.shape, self.samples[rows], self.real_id[rows])


KEPT = 1 << 24
"""Bytes of sources, at most, that are kept once they are drawn."""


@dataclass(frozen=True)
class Drawn:
    """The sources [count, *D] of pairs 0, 1, ...: a few are drawn once, others at each use."""

    source: Source
    seed: int
    count: int

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, rows: slice) -> Tensor:
        """Return the sources [n, *D] of some rows."""
        return self._whole[rows] if self._few else self._of(rows)

    @property
    def _few(self) -> bool:
        return 4 * self.count * math.prod(self.source.shape) <= KEPT

    @cached_property
    def _whole(self) -> Tensor:
        return self._of(slice(None))

    def _of(self, rows: slice) -> Tensor:
        return self.source.draw(self.seed, np.arange(self.count)[rows])


def turns(seed: int, ids: NDArray[np.int64], n: int) -> Tensor:
    """Return for each id [N] one of n rows: each n ids in turn have all rows once, shuffled."""
    rows = torch.empty(len(ids), dtype=torch.int64)
    rounds = ids // n
    for turn in np.unique(rounds).tolist():
        generator = torch.Generator().manual_seed(derive_seed(seed, "source", turn))
        order, here = torch.randperm(n, generator=generator), rounds == turn
        rows[torch.from_numpy(here)] = order[torch.from_numpy(ids[here] % n)]
    return rows
