"""Verb: turn real data into the independent coupling that the first round trains on."""

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

from fmcore.coupling.noise import identities
from fmcore.coupling.write import About, finish, table, write_shard
from fmcore.dataset.kinds import Dataset
from fmcore.dataset.samples import Samples
from fmcore.dataset.summary import lines, summary
from fmcore.scale import Scale, advice_on_scale
from fmcore.settings import ReflowError, Say, derive_seed, silent

__all__ = ["Dataset", "prepare"]

SHARD_ROWS = 16384

SHARD_BYTES = 256 << 20
"""Most bytes of targets in one shard, which is in memory as a whole while it is written."""


def _scales(samples: Samples, settings: Dataset, found: Mapping[str, float]) -> tuple[Scale, Scale]:
    """Return the scale of the targets, and the one to record, which samples undo.

    They differ for images outside [-1, 1], which have to be mapped there for good: pictures,
    features of images and bits per dimension have those units.
    """
    scale = settings.scale.fit(samples.target)
    if scale.identity or not samples.image or -1 <= found["min"] <= found["max"] <= 1:
        return scale, scale
    if settings.scale.name != "range":
        raise ReflowError(
            f"data.scale {settings.scale.name}: images must lie in [-1, 1], these have values from"
            f" {found['min']:g} to {found['max']:g}; set data.scale:"
            " range"
        )
    return scale, Scale()


def prepare(
    out: Path,
    settings: Dataset,
    *,
    seed: int,
    metrics: Path | None = None,
    say: Say = silent,
    warn: Say = silent,
) -> None:
    """Write the targets of `settings` to the folder `out`, in an order drawn from the seed.

    The result is a coupling without a `source` column: training draws its source at every step.
    A sample is held out by its content, so by the same rule in every chain and order of the data.
    Targets are written in model units (`settings.scale`), and the map is recorded. `warn` is called
    with a sentence if data without a scale is far from that of the noise. What the data hold is
    told to `say` line by line, and written to `metrics` (json), in the data's own units.
    """
    samples = settings.read(derive_seed(seed, "target"))
    found = summary(samples)
    for line in lines(samples, found):
        say(line)
    scale, recorded = _scales(samples, settings, found)
    if scale.identity and (advice := advice_on_scale(samples.target, image=samples.image)):
        warn(advice)
    generator = torch.Generator().manual_seed(derive_seed(seed, "order"))
    order = torch.randperm(len(samples.target), generator=generator)
    about = About(
        kind="independent",
        shape=list(samples.target.shape[1:]),
        image=samples.image,
        pairs=len(order),
        seed=derive_seed(seed, "independent"),
        data=settings.model_dump(mode="json", exclude={"scale", "seed"}),
        classes=None if samples.names is None else list(samples.names),
        scale=recorded.record,
    )
    width = 4 * samples.target[0].numel()
    starts = range(0, len(order), max(1, min(SHARD_ROWS, SHARD_BYTES // width)))
    for index, start in enumerate(starts):
        rows = order[start : start + starts.step]
        label = None if samples.label is None else samples.label[rows]
        ids = np.arange(start, start + len(rows), dtype=np.int64)
        own = samples.target[rows]  # identified in its own units: a scale may depend on all data
        target, real_id = scale.forward(own), identities(own)
        write_shard(out, index, table(about, ids, target, label=label, real_id=real_id))
    finish(out, about, len(starts))
    if metrics is not None:
        metrics.parent.mkdir(parents=True, exist_ok=True)
        metrics.write_text(json.dumps(found, indent=2) + "\n")
