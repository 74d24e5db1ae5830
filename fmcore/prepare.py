"""Verb: turn real data into the independent coupling that the first round trains on."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fmcore.codec import latents, trained
from fmcore.codec.kinds import Codec, TrainedCodec
from fmcore.codec.latents import CPU
from fmcore.conditions import table as conditions
from fmcore.conditions.encoders import Conditions, table_of
from fmcore.conditions.table import Table
from fmcore.coupling.compact import Store
from fmcore.coupling.noise import identities, is_held_out
from fmcore.coupling.source import ORIGINALS, SAMPLES
from fmcore.coupling.write import About, finish, table, write_shard
from fmcore.dataset.kinds import Dataset, Noise, SourceOf
from fmcore.dataset.samples import Samples
from fmcore.dataset.summary import lines, summary
from fmcore.scale import AsIs, Scale, advice_on_scale
from fmcore.settings import ReflowError, Say, derive_seed, silent
from fmcore.work.work import Work
from fmcore.work.work import silent as unlogged

__all__ = ["Dataset", "SourceOf", "prepare"]

NOISE = Noise()

SHARD_ROWS = 16384

AGAIN = 2048
"""Samples whose reconstruction by a codec is measured."""

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
    source: SourceOf = NOISE,
    *,
    seed: int,
    metrics: Path | None = None,
    say: Say = silent,
    warn: Say = silent,
    work: Work | None = None,
) -> None:
    """Write the targets of `settings` to the folder `out`, in an order drawn from the seed.

    The result is a coupling without a `source` column: training draws its source at every step,
    noise or one of the samples of `source`, which are written into a folder of their own in `out`.
    A sample is held out by its content, so by the same rule in every chain and order of the data.
    Targets and sources are written in model units, by one map (`settings.scale`), which is
    recorded. `warn` is called with a sentence if data without a scale is far from that of the
    noise. What the data hold is told to `say` line by line, and written to `metrics` (json), in the
    data's own units.

    With a codec, which encodes on the device of `work`, the targets are latents, and the samples
    are kept as they are in a folder of their own in `out`: distances are to them. A codec that is
    trained here is kept in `out`, too.
    """
    real, known, found = _read(settings, seed, say)
    samples, coded, codec, device = real, None, None, CPU if work is None else work.device
    if settings.codec is not None:
        codec = _codec(settings.codec, real, found, out, seed, work)
        samples, coded = _encoded(real, codec, found, device, say)
    scale, recorded = _scales(samples, settings, found)
    if scale.identity and (advice := advice_on_scale(samples.target, image=samples.image)):
        warn(advice)
    embedded = None if known is None else known.about
    record = {"scale": recorded.record, "conditions": embedded, "codec": coded}
    about = _about(samples, settings, source, seed).model_copy(update=record)
    if known is not None:
        conditions.write(out, known)
    if not isinstance(source, Noise):
        _write_source(out / SAMPLES, source, about, scale, seed, say, codec, device)
    generator = torch.Generator().manual_seed(derive_seed(seed, "order"))
    order = torch.randperm(about.pairs, generator=generator)
    if codec is not None:
        _write(out / ORIGINALS, _of_originals(about, real), real, order, Scale())
    _write(out, about, samples, order, scale, real.target)
    if metrics is not None:
        metrics.parent.mkdir(parents=True, exist_ok=True)
        metrics.write_text(json.dumps(found, indent=2) + "\n")


def _read(settings: Dataset, seed: int, say: Say) -> tuple[Samples, Table | None, dict[str, float]]:
    """Return the samples, the table of their conditions, and what they hold; say it."""
    samples = settings.read(derive_seed(seed, "target"))
    samples, known = conditioned(samples, settings.conditions)
    found = summary(samples)
    for line in lines(samples, found):
        say(line)
    if known is not None:
        say(f"data: {len(known)} conditions, {known.vectors[0].numel()} numbers each")
    return samples, known, found


def _about(samples: Samples, settings: Dataset, source: SourceOf, seed: int) -> About:
    return About(
        kind="independent",
        shape=list(samples.target.shape[1:]),
        image=samples.image,
        pairs=len(samples.target),
        seed=derive_seed(seed, "independent"),
        data=_described(settings),
        classes=None if samples.names is None else list(samples.names),
        source=None if isinstance(source, Noise) else _described(source),
    )


def conditioned(samples: Samples, given: Conditions | None) -> tuple[Samples, Table | None]:
    """Return the samples with the number of its condition as the label of each, and the table.

    Where a data set has no captions, the names of its classes are the texts.
    """
    if given is None:
        return samples, None
    captions, label = samples.captions, samples.label
    if captions is None and samples.names is not None and label is not None:
        captions = tuple(samples.names[i] for i in label.tolist())
    if captions is None:
        raise ReflowError(
            "data.conditions: this data has no texts, vectors or names of classes; add them as"
            " docs/data.md says, or remove data.conditions"
        )
    if isinstance(captions, Tensor):
        if given.encoder is not None:
            raise ReflowError("data.conditions.encoder: the conditions are vectors; remove it")
        known, label = conditions.of_vectors(captions)
    elif given.encoder is None:
        raise ReflowError(
            "data.conditions.encoder: is missing, and the conditions are texts; set it to {name:"
            " wordllama}, or to another encoder"
        )
    else:
        texts, label = conditions.unique_texts(captions)
        known = table_of(texts, given.encoder)
    return replace(samples, label=label, names=None, captions=None), known


def _codec(
    settings: Codec | TrainedCodec,
    real: Samples,
    found: Mapping[str, float],
    out: Path,
    seed: int,
    work: Work | None,
) -> Codec:
    """Return the codec of the samples; one that is trained here trains now, into `out`."""
    if real.image and not -1 <= found["min"] <= found["max"] <= 1:
        raise ReflowError(
            f"data.codec: it encodes images in [-1, 1], these have values from {found['min']:g} to"
            f" {found['max']:g}; map them there before, data.scale is that of the latents"
        )
    if isinstance(settings, Codec):
        return settings
    own = identities(real.target)
    rows = torch.from_numpy(~is_held_out(own, own)).nonzero()[:, 0]
    return trained.train_codec(
        settings, real.target, rows, out / trained.FOLDER, seed=derive_seed(seed, "codec"),
        device=CPU if work is None else work.device, log=unlogged if work is None else work.log,
        scratch=None if work is None else work.scratch,
    )  # fmt: skip


def _encoded(
    real: Samples, codec: Codec, found: dict[str, float], device: torch.device, say: Say
) -> tuple[Samples, dict[str, Any]]:
    """Return samples as latents, and the record of the codec; add its errors to what was `found`.

    They are measured on the first samples, `AGAIN` of them.
    """
    x, shape = real.target, tuple(real.target.shape[1:])

    def again(z: Tensor) -> Tensor:
        return latents.decoded(codec, z, shape, image=real.image, device=device)

    again(latents.encoded(codec, x[:1], device))  # what does not fit fails at once
    whole = latents.encoded(codec, x, device)
    found |= latents.errors(x[:AGAIN], again(whole[:AGAIN]))
    record = latents.record(codec, whole, shape, image=real.image)
    said = "x".join(str(side) for side in whole.shape[1:])
    say(
        f"codec: latents of shape {said}, {record['sha256'][:12]}; what comes back differs by"
        f" {found['reconstruction_rms']:.3g} (root mean square), {found['reconstruction_rel']:.2%}"
        " of the variance"
    )
    return replace(real, target=whole, image=False), record


def _of_originals(latent: About, real: Samples) -> About:
    """Return the description of the samples as they were: images are kept by their levels."""
    levels = Store(target="uint8").settled(image=True) if real.image else None
    own = {"shape": list(real.target.shape[1:]), "image": real.image, "store": levels}
    without = dict.fromkeys(("scale", "codec", "source", "conditions"))
    return latent.model_copy(update={**own, **without})


def _described(settings: Dataset) -> dict[str, Any]:
    return settings.model_dump(mode="json", exclude={"scale", "seed", "codec"})


def _write_source(
    out: Path,
    settings: Dataset,
    target: About,
    scale: Scale,
    seed: int,
    say: Say,
    codec: Codec | None,
    device: torch.device,
) -> None:
    """Write the source samples as prepared data of their own, in the units of the target.

    A path and its cost are differences of source and target, so both sides have one scale.
    """
    if not isinstance(settings.scale, AsIs):
        raise ReflowError("source.scale: both sides are mapped by data.scale; remove source.scale")
    own = seed if settings.seed is None else settings.seed
    samples = settings.read(derive_seed(own, "source"))
    wanted = target.shape if target.codec is None else target.codec["shape"]
    if list(samples.target.shape[1:]) != wanted:
        raise ReflowError(
            f"source: samples of shape {list(samples.target.shape[1:])}, those of data have"
            f" {wanted}; choose data sets of one shape, or resize one"
        )
    for line in lines(samples, summary(samples)):
        say(line.replace("data:", "source:", 1))
    about = target.model_copy(
        update={
            "pairs": len(samples.target),
            "data": target.source,
            "source": None,
            "classes": None,
            "conditions": None,
            "codec": None,
        }
    )
    found = samples.target if codec is None else latents.encoded(codec, samples.target, device)
    unlabelled = replace(samples, target=found, label=None)
    _write(out, about, unlabelled, torch.arange(about.pairs), scale, samples.target)


def _write(
    out: Path,
    about: About,
    samples: Samples,
    order: Tensor,
    scale: Scale,
    real: Tensor | None = None,
) -> None:
    """Write samples in an order and in model units, shard by shard, then the manifest.

    `real` [N, *D] are the samples by which they are identified; without, they are so themselves.
    """
    real = samples.target if real is None else real
    width = 4 * samples.target[0].numel()
    starts = range(0, len(order), max(1, min(SHARD_ROWS, SHARD_BYTES // width)))
    for index, start in enumerate(starts):
        rows = order[start : start + starts.step]
        label = None if samples.label is None else samples.label[rows]
        ids = np.arange(start, start + len(rows), dtype=np.int64)
        target = scale.forward(samples.target[rows])
        real_id = identities(real[rows])  # in own units: a scale may depend on all data
        write_shard(out, index, table(about, ids, target, label=label, real_id=real_id))
    finish(out, about, len(starts))
