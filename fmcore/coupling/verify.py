"""Verifying a coupling: every byte of it, and what is beside it."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fmcore.checked import MEND, sha256
from fmcore.codec import trained
from fmcore.conditions import table as conditions
from fmcore.coupling.manifest import MANIFEST
from fmcore.coupling.read import Coupling, open_coupling, open_shard, readable, tables
from fmcore.coupling.source import ORIGINALS, SAMPLES
from fmcore.settings import ReflowError


def verify(path: Path) -> Coupling:
    """Check every byte: hashes, rows, schema, foreign files, ids; a ReflowError names the fault.

    Sources that are not stored are drawn again and compared with their hashes.
    """
    coupling = open_coupling(path)
    listed = {s["file"] for s in coupling.shards}
    if coupling.remote is not None:
        raise ReflowError(
            f"{path}: its shards are in S3, and are checked whenever they arrive; `reflow couplings"
            " get` fetches all of them to be verified here"
        )
    if coupling.independent and coupling.about.source is not None:
        verify(path / SAMPLES)
        listed |= {SAMPLES}
    if coupling.independent and coupling.about.codec is not None:
        verify(path / ORIGINALS)
        listed |= {ORIGINALS}
        if (path / trained.FOLDER).is_dir():
            trained.verify(path / trained.FOLDER, coupling.about.codec["sha256"])
            listed |= {trained.FOLDER}
    if coupling.conditions is not None:
        listed |= {conditions.FILE}
    for file in sorted(path.iterdir()):
        if file.name not in listed | {MANIFEST}:
            raise ReflowError(f"{file}: foreign file, the manifest does not list it; remove it")
    seen: list[NDArray[np.int64]] = []
    for shard in coupling.shards:
        file = path / shard["file"]
        if not file.exists():
            raise ReflowError(f"{file}: shard is missing; {MEND}")
        size = file.stat().st_size
        if size != shard["bytes"]:
            raise ReflowError(
                f"{file}: truncated or altered: {shard['bytes']} bytes expected, {size} found"
            )
        if sha256(file) != shard["sha256"]:
            raise ReflowError(f"{file}: altered: its sha256 is not the one in the manifest")
        with readable(file):
            ids = open_shard(coupling, shard["file"]).read(columns=["pair_id"])["pair_id"]
        seen.append(ids.to_numpy())
        if not coupling.independent and not coupling.about.form.store.source:
            for rows in tables(coupling, [g for g in coupling.groups if g[0] == shard["file"]]):
                coupling.about.form.source(rows, file)
    every = np.concatenate(seen) if seen else np.empty(0, np.int64)
    if not np.array_equal(every, np.arange(coupling.about.pairs)):
        raise ReflowError(
            f"{path}: pair_id must run from 0 to {coupling.about.pairs - 1} once each"
        )
    return coupling
