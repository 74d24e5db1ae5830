"""Verb: turn real data into the independent coupling that the first round trains on."""

import json
from pathlib import Path

import numpy as np
import torch

from fmcore.coupling.write import About, finish, table, write_shard
from fmcore.dataset.kinds import Dataset
from fmcore.dataset.summary import lines, summary
from fmcore.settings import Say, derive_seed, silent

__all__ = ["Dataset", "prepare"]

SHARD_ROWS = 16384

SHARD_BYTES = 256 << 20
"""Most bytes of targets in one shard, which is in memory as a whole while it is written."""


def prepare(
    out: Path, settings: Dataset, *, seed: int, metrics: Path | None = None, say: Say = silent
) -> None:
    """Write the targets of `settings` to the folder `out`, in an order drawn from the seed.

    The result is a coupling without a `source` column: training draws its source at every step.
    What the data hold is told to `say` line by line, and written to `metrics` (json).
    """
    samples = settings.read(derive_seed(seed, "target"))
    found = summary(samples)
    for line in lines(samples, found):
        say(line)
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
    width = 4 * samples.target[0].numel()
    starts = range(0, len(order), max(1, min(SHARD_ROWS, SHARD_BYTES // width)))
    for index, start in enumerate(starts):
        rows = order[start : start + starts.step]
        label = None if samples.label is None else samples.label[rows]
        ids = np.arange(start, start + len(rows), dtype=np.int64)
        write_shard(out, index, table(about, ids, samples.target[rows], label=label))
    finish(out, about, len(starts))
    if metrics is not None:
        metrics.parent.mkdir(parents=True, exist_ok=True)
        metrics.write_text(json.dumps(found, indent=2) + "\n")
