"""Pairs in memory, written to the folder of a coupling."""

from pathlib import Path

import numpy as np
import torch

from fmcore.coupling.compact import Store
from fmcore.coupling.pairs import Pairs
from fmcore.coupling.write import About, finish, table, write_shard
from fmcore.scale import Scale
from fmcore.settings import ReflowError, derive_seed

SHARD_ROWS = 16384


def write_coupling(
    path: Path | str, pairs: Pairs, *, seed: int = 0, scale: Scale | None = None
) -> None:
    """Write pairs to a new folder as a coupling, numbered from 0: Parquet shards and a manifest.

    `scale` is that of the flow that made them, `flow.scale`, if their units are not the data's own.
    Targets [N, 1 or 3, H, W] are recorded as images.
    """
    folder = Path(path)
    if folder.exists() and any(folder.iterdir()):
        raise ReflowError(f"{folder}: exists and is not empty; name a new folder")
    if pairs.independent and pairs.real_id is None and scale is not None and not scale.identity:
        raise ReflowError(
            "write_coupling: real samples are held out by their content in own units; write"
            " scale.inverse(target) without scale, and let a project map it (data.scale)"
        )
    if pairs.pool is not None:
        raise ReflowError("write_coupling: name both data sets in a project (`data`, `source`)")
    image = pairs.target.ndim == 4 and pairs.target.shape[1] in (1, 3)
    states = pairs.trajectory
    store = Store(pieces=1 if states is None else states.shape[1] + 1)
    about = About(
        kind="independent" if pairs.independent else "imported",
        shape=list(pairs.target.shape[1:]),
        image=image,
        pairs=len(pairs),
        seed=derive_seed(seed, "independent"),
        scale=None if scale is None else scale.record,
        guided=None if pairs.guided == 1 else pairs.guided,
        store=store.settled(image=image),
    )
    starts = range(0, len(pairs), SHARD_ROWS)
    for index, first in enumerate(starts):
        ids = np.arange(first, min(first + SHARD_ROWS, len(pairs)))
        part = pairs.rows(torch.from_numpy(ids))
        source = None if pairs.independent else part.source
        real_id = None if part.real_id is None else part.real_id.numpy()
        extra = None if part.trajectory is None else {"trajectory": part.trajectory.numpy()}
        rows = table(about, ids, part.target, source, part.label, real_id=real_id, extra=extra)
        write_shard(folder, index, rows)
    finish(folder, about, len(starts))
