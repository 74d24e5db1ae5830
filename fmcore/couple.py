"""Verb: sample the coupling that a velocity's own ODE produces (rectification).

Generated pairs: source ~ N(0, I) as a function of (seed, pair_id), target the ODE's endpoint at
t = 0. Inverted pairs: target from the real data, source the ODE's endpoint at t = 1.
"""

import json
import os
import shutil
from collections.abc import Iterable
from pathlib import Path

import pyarrow.ipc

from fmcore.coupling.checks import measure
from fmcore.coupling.write import finish, is_whole, shard_name, write_shard
from fmcore.sampling.pairs import Couple, PairSampler, sampler_of
from fmcore.work.work import Work
from fmcore.work.workers import start_workers

__all__ = ["Couple", "couple", "couple_shards", "missing_shards", "shard_count"]

SHARDS = "shards"
"""The subfolder of a stage's scratch folder that collects finished shards."""


def couple(model: Path, data: Path, out: Path, metrics: Path, settings: Couple, work: Work) -> None:
    """Sample `settings.pairs` pairs from the model into the folder `out`; write its metrics (json).

    Shards are collected in the scratch folder and linked into `out` when all are complete and their
    metrics are accepted. A complete shard is not sampled again, so a killed run continues where it
    stopped, even if `out` was deleted after it. The executor samples, only this process writes:
    every executor gives the same bytes.
    """
    sampler = sampler_of(model, data, settings, work)
    about, folder = sampler.about, work.scratch / SHARDS
    count = shard_count(settings)
    _fill(sampler, folder, range(count), work)
    manifest = finish(folder, about, count)
    size = sum(s["bytes"] for s in manifest["shards"])
    found = {"pairs": about.pairs, **measure(folder, data, about), "bytes": size}
    work.accept(found)
    _put(folder, out)
    metrics.parent.mkdir(parents=True, exist_ok=True)
    metrics.write_text(json.dumps(found, indent=2) + "\n")


def _put(folder: Path, out: Path) -> None:
    """Put the files of a folder into the new folder `out`: all of them or none, as hard links.

    On a file system without hard links the folder itself is moved.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    linked = folder.with_name("linked")
    shutil.rmtree(linked, ignore_errors=True)
    try:
        linked.mkdir()
        for file in folder.iterdir():
            os.link(file, linked / file.name)
    except OSError:
        linked = folder
    linked.replace(out)


def couple_shards(
    model: Path, data: Path, settings: Couple, shards: Iterable[int], work: Work
) -> None:
    """Sample some shards into the scratch folder, where `couple` finds them.

    Other processes may sample other shards at the same time.
    """
    _fill(sampler_of(model, data, settings, work), work.scratch / SHARDS, shards, work)


def missing_shards(model: Path, data: Path, settings: Couple, work: Work) -> list[int]:
    """Return the shards that are incomplete in the scratch folder, or of another coupling."""
    about, folder = sampler_of(model, data, settings, work).about, work.scratch / SHARDS
    return [
        index
        for index in range(shard_count(settings))
        if not is_whole(folder / shard_name(index), about)
    ]


def shard_count(settings: Couple) -> int:
    """Return the number of shards of a coupling."""
    return -(-settings.pairs // settings.shard)


def _fill(sampler: PairSampler, folder: Path, shards: Iterable[int], work: Work) -> None:
    """Sample those of the shards that the folder does not have yet."""
    about, settings = sampler.about, sampler.settings
    done, wanted = 0, []
    for index in shards:
        if is_whole(folder / shard_name(index), about):
            done += _rows(settings, index)
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
            done += _rows(settings, index)
            work.log({}, done)


def _rows(settings: Couple, index: int) -> int:
    return min(settings.shard, settings.pairs - index * settings.shard)
