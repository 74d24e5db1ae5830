"""Verb: turn real data into the independent coupling that the first round trains on."""

from pathlib import Path

import numpy as np
import torch

from fmcore.coupling.write import About, finish, table, write_shard
from fmcore.dataset.kinds import Dataset
from fmcore.settings import derive_seed

__all__ = ["Dataset", "prepare"]

SHARD_ROWS = 16384


def prepare(out: Path, settings: Dataset, *, seed: int) -> None:
    """Write the targets of `settings` to the folder `out`, in an order drawn from the seed.

    The result is a coupling without a `source` column: training draws its source at every step.
    """
    samples = settings.read(derive_seed(seed, "target"))
    generator = torch.Generator().manual_seed(derive_seed(seed, "order"))
    order = torch.randperm(len(samples.target), generator=generator)
    about = About(
        kind="independent",
        shape=list(samples.target.shape[1:]),
        image=samples.image,
        pairs=len(order),
        seed=derive_seed(seed, "independent"),
        data=settings.model_dump(mode="json"),
        classes=None if samples.names is None else list(samples.names),
    )
    starts = range(0, len(order), SHARD_ROWS)
    for index, start in enumerate(starts):
        rows = order[start : start + SHARD_ROWS]
        label = None if samples.label is None else samples.label[rows]
        ids = np.arange(start, start + len(rows), dtype=np.int64)
        write_shard(out, index, table(about, ids, samples.target[rows], label=label))
    finish(out, about, len(starts))
