"""Data of the shape of a chain's, for probes of its cost before anything was prepared."""

from pathlib import Path

import numpy as np

from flows.params.load import Params
from flows.params.seeds import seed_of
from fmcore.codec.kinds import DiffusersCodec, TrainedCodec
from fmcore.codec.latents import encoded, record
from fmcore.codec.trained import FOLDER, untrained
from fmcore.conditions import table as conditions
from fmcore.coupling.manifest import MANIFEST
from fmcore.coupling.noise import gaussian_noise
from fmcore.coupling.write import About, finish, table, write_shard
from fmcore.prepare import conditioned
from fmcore.settings import derive_seed


def some_data(root: Path, params: Params, path: str | None, folder: Path) -> Path:
    """Return the prepared data of the project if `path` holds it, else some noise of its shape."""
    if path and (root / path / MANIFEST).exists():
        return root / path
    samples = params.data.read(derive_seed(seed_of(params, "prepare"), "target"))
    shape, codec = tuple(samples.target.shape[1:]), None
    if params.data.codec is not None:
        of = params.data.codec
        if isinstance(of, TrainedCodec):  # as it is before its training: of the same shapes
            untrained(of, shape, seed=0).save_pretrained(folder / FOLDER)
            of = DiffusersCodec(name="diffusers", path=str(folder / FOLDER))
        few = encoded(of, samples.target[:2])
        codec, shape = record(of, few, shape, image=samples.image), few.shape[1:]
    ids = np.arange(min(1024, len(samples.target)))
    samples, known = conditioned(samples, params.data.conditions)
    about = About(
        kind="independent",
        shape=list(shape),
        image=samples.image and codec is None,
        pairs=len(ids),
        seed=0,
        conditions=None if known is None else known.about,
        codec=codec,
    )
    if known is not None:
        conditions.write(folder, known)
    label = None if samples.label is None else samples.label[: len(ids)]
    write_shard(folder, 0, table(about, ids, gaussian_noise(0, ids, shape), label=label))
    finish(folder, about, 1)
    return folder
