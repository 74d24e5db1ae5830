"""Verb: sample the coupling that a velocity's own ODE produces (rectification).

Generated pairs: source ~ N(0, I) as a function of (seed, pair_id), target the ODE's endpoint at
t = 0. Inverted pairs: target from the real data, source the ODE's endpoint at t = 1. Imported
pairs: somebody else made them, and they are copied.
"""

import errno
import json
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import pyarrow.ipc

from fmcore.checked import sha256
from fmcore.conditions import table as conditions
from fmcore.coupling.checks import Measured, measure, measured
from fmcore.coupling.manifest import MANIFEST, recorded
from fmcore.coupling.write import adopt, finish, holds, is_whole, shard_name, write_shard
from fmcore.network.flops import flops_per_evaluation
from fmcore.outside.imported import Imported, Importer, importer_of
from fmcore.sampling.pairs import Couple, PairSampler
from fmcore.sampling.sampler import sampler_of
from fmcore.work.work import Work
from fmcore.work.workers import start_workers

__all__ = ["Couple", "Imported", "couple", "couple_shards", "missing_shards", "shard_count"]

Pairs = Couple | Imported
"""Settings of pairs: how they are sampled, or where they come from."""

SHARDS = "shards"
"""The subfolder of a stage's scratch folder that collects finished shards."""


CLIPPED = 0.01
"""Share of numbers beyond the range of uint8 that is told."""

NO_LINKS = {errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK, errno.EXDEV}
"""What a file system says that has no hard links, or no more of them."""

Files = Mapping[str, Path]
"""The files of an earlier coupling by their names in its folder, wherever they lie."""


def couple(
    model: Path,
    data: Path,
    out: Path,
    metrics: Path,
    settings: Pairs,
    work: Work,
    earlier: Sequence[Files] = (),
) -> None:
    """Sample `settings.pairs` pairs from the model into the folder `out`; write its metrics (json).

    With `Imported` settings, once they are `settled`, the pairs are copied instead.

    Shards are collected in the scratch folder and linked into `out` when all are complete and their
    metrics are accepted. A complete shard is not sampled again, so a killed run continues where it
    stopped, even if `out` was deleted after it. The executor samples, only this process writes:
    every executor gives the same bytes.

    A shard is a function of (model, settings, index), not of the number of pairs, so shards of the
    `earlier` couplings are kept if they are whole, hold the same pairs and state the same origin.
    The caller vouches that those were sampled by the same code.
    """
    sampler = _maker(model, data, settings, work)
    about, folder = sampler.about, work.scratch / SHARDS
    count = shard_count(settings)
    known: dict[str, Measured] = {}
    _fill(sampler, folder, range(count), work, earlier, known)
    if sampler.table is not None:
        conditions.write(folder, sampler.table)
    manifest = finish(folder, about, count, keep_hashes=True)
    size = sum(s["bytes"] for s in manifest["shards"])
    found = {"pairs": about.pairs, **measure(folder, data, about, known), "bytes": size}
    if about.probe is not None:
        found["solver_error"] = about.probe["error"]
    if (share := found.get("target_clipped", 0.0)) > CLIPPED:
        work.warn(
            f"couplings: {share:.1%} of the numbers of targets were beyond store.low or store.high"
            " and became those; widen them"
        )
    if isinstance(sampler, PairSampler):
        found["flops_pairs"] = _flops(sampler, found)
    work.accept(found)
    metrics.parent.mkdir(parents=True, exist_ok=True)
    metrics.write_text(json.dumps(found, indent=2) + "\n")
    _put(folder, out)


def _maker(model: Path, data: Path, settings: Pairs, work: Work) -> PairSampler | Importer:
    """Return what makes the shards; pairs from outside are not sampled from the model."""
    if isinstance(settings, Imported):
        return importer_of(data, settings)
    return sampler_of(model, data, settings, work)


def _flops(sampler: PairSampler, found: Mapping[str, float]) -> int:
    """Return the FLOPs of all pairs: an audited pair is solved again with twice the steps.

    For dopri5, whose tolerances are tightened, twice is an estimate.
    """
    assert sampler.flow.made_of is not None
    evaluations = found["nfe"] * (found["pairs"] + 2 * found["audited"])
    return round(flops_per_evaluation(sampler.flow.made_of[0]) * evaluations)


def _put(folder: Path, out: Path) -> None:
    """Put the shards and the manifest into the new folder `out`: all or none, as hard links.

    On a file system without hard links the folder itself is moved.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    linked = folder.with_name("linked")
    shutil.rmtree(linked, ignore_errors=True)
    try:
        linked.mkdir()
        for file in folder.glob("[!.]*"):
            os.link(file, linked / file.name)
    except OSError as error:
        if error.errno not in NO_LINKS:
            raise
        for file in folder.glob(".*"):
            file.unlink()
        linked = folder
    linked.replace(out)


def couple_shards(
    model: Path,
    data: Path,
    settings: Pairs,
    shards: Iterable[int],
    work: Work,
    earlier: Sequence[Files] = (),
) -> None:
    """Sample some shards into the scratch folder, where `couple` finds them.

    Other processes may sample other shards at the same time.
    """
    sampler = _maker(model, data, settings, work)
    _fill(sampler, work.scratch / SHARDS, shards, work, earlier)


def missing_shards(model: Path, data: Path, settings: Pairs, work: Work) -> list[int]:
    """Return the shards that are incomplete in the scratch folder, or of another coupling."""
    about, folder = _maker(model, data, settings, work).about, work.scratch / SHARDS
    return [
        index
        for index in range(shard_count(settings))
        if not is_whole(folder / shard_name(index), about, settings.ids(index))
    ]


def shard_count(settings: Pairs) -> int:
    """Return the number of shards of a coupling."""
    count = settings.count if isinstance(settings, Imported) else settings.pairs
    return -(-count // settings.shard)


def _fill(
    sampler: PairSampler | Importer,
    folder: Path,
    shards: Iterable[int],
    work: Work,
    earlier: Sequence[Files],
    known: dict[str, Measured] | None = None,
) -> None:
    """Sample those of the shards that neither the folder nor an earlier coupling has.

    `known` gets the sums of each, measured while the next one is sampled where another process or
    a GPU does that.
    """
    about, settings = sampler.about, sampler.settings
    done, wanted = 0, []
    for index in shards:
        if _is_there(sampler, folder, index) or _kept(sampler, folder, index, earlier):
            done += len(settings.ids(index))
        else:
            wanted.append(index)
    if done:
        work.log({}, done)
    if not wanted:
        return
    with start_workers(work.executor, sampler, sampler.device) as run:
        for index, (packed, nfe) in run(wanted):
            if about.nfe is not None and nfe != about.nfe:
                raise AssertionError(f"{nfe} evaluations counted, {about.nfe} recorded")
            write_shard(folder, index, pyarrow.ipc.open_stream(packed).read_all())
            del packed  # or it is in memory while the next shard is sampled
            if known is not None:
                known[shard_name(index)] = measured(folder / shard_name(index), about)
            pyarrow.default_memory_pool().release_unused()  # sampling takes memory elsewhere
            done += len(settings.ids(index))
            work.log({}, done)


def _is_there(sampler: PairSampler | Importer, folder: Path, index: int) -> bool:
    return is_whole(folder / shard_name(index), sampler.about, sampler.settings.ids(index))


def _kept(
    sampler: PairSampler | Importer, folder: Path, index: int, earlier: Sequence[Files]
) -> bool:
    """Copy a shard from the first earlier coupling that has it; say whether one has."""
    name, ids = shard_name(index), sampler.settings.ids(index)
    for files in earlier:
        file, manifest = files.get(name), files.get(MANIFEST)
        if file is None or manifest is None or not file.exists():
            continue
        if recorded(manifest).get(name) == sha256(file) and holds(file, sampler.about, ids):
            adopt(folder, index, file)
            return True
    return False
