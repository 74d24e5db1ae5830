"""Verb: sample the coupling that a velocity's own ODE produces (rectification).

Generated pairs: source ~ N(0, I) as a function of (seed, pair_id), target the ODE's endpoint at
t = 0. Inverted pairs: target from the real data, source the ODE's endpoint at t = 1.
"""

import json
from collections.abc import Iterable
from pathlib import Path

import pyarrow.ipc
import torch

from fmcore.coupling.checks import measure
from fmcore.coupling.write import finish, is_whole, shard_name, write_shard
from fmcore.sampling.pairs import Couple, PairSampler, sampler_of
from fmcore.settings import Accept, Log
from fmcore.work.compute import Compute
from fmcore.work.executor import IN_PROCESS, Executor, start_workers

SHARDS = "shards"
"""The folder in a stage's scratch where shards gather."""


def couple(
    model: Path,
    data: Path,
    out: Path,
    metrics: Path,
    settings: Couple,
    *,
    seed: int,
    device: torch.device,
    scratch: Path,
    log: Log,
    compute: Compute | None = None,
    accept: Accept = lambda _: None,
    executor: Executor = IN_PROCESS,
) -> None:
    """Sample `settings.pairs` pairs from the model into the folder `out`; write its metrics (json).

    Shards gather in `scratch` and move to `out` when all are there and their metrics are accepted.
    A shard that is complete is not sampled again, so a killed run goes on where it stopped. The
    executor says who samples, this process alone writes: the same bytes from any of them.
    """
    sampler = sampler_of(model, data, settings, seed, device, compute or Compute())
    about, folder = sampler.about, scratch / SHARDS
    count = shard_count(settings)
    _fill(sampler, folder, range(count), executor, log)
    manifest = finish(folder, about, count)
    size = sum(s["bytes"] for s in manifest["shards"])
    found = {"pairs": about.pairs, **measure(folder, data, about), "bytes": size}
    accept(found)
    out.parent.mkdir(parents=True, exist_ok=True)
    folder.replace(out)
    metrics.parent.mkdir(parents=True, exist_ok=True)
    metrics.write_text(json.dumps(found, indent=2) + "\n")


def couple_shards(
    model: Path,
    data: Path,
    settings: Couple,
    shards: Iterable[int],
    *,
    seed: int,
    device: torch.device,
    scratch: Path,
    log: Log,
    compute: Compute | None = None,
    executor: Executor = IN_PROCESS,
) -> None:
    """Sample some shards into `scratch`, where `couple` finds them; others may sample beside."""
    sampler = sampler_of(model, data, settings, seed, device, compute or Compute())
    _fill(sampler, scratch / SHARDS, shards, executor, log)


def missing_shards(
    model: Path,
    data: Path,
    settings: Couple,
    *,
    seed: int,
    device: torch.device,
    scratch: Path,
    compute: Compute | None = None,
) -> list[int]:
    """Return the shards that are not whole in `scratch`, or not of this very coupling."""
    sampler = sampler_of(model, data, settings, seed, device, compute or Compute())
    folder = scratch / SHARDS
    return [
        index
        for index in range(shard_count(settings))
        if not is_whole(folder / shard_name(index), sampler.about)
    ]


def shard_count(settings: Couple) -> int:
    """Return the number of shards of a coupling."""
    return -(-settings.pairs // settings.shard)


def _fill(
    sampler: PairSampler, folder: Path, shards: Iterable[int], executor: Executor, log: Log
) -> None:
    """Sample those of the shards that are not there yet."""
    about, settings = sampler.about, sampler.settings
    done, wanted = 0, []
    for index in shards:
        if is_whole(folder / shard_name(index), about):
            done += _rows(settings, index)
        else:
            wanted.append(index)
    if done:
        log({}, done)
    if not wanted:
        return
    with start_workers(executor, sampler, sampler.device) as run:
        for index, (packed, nfe) in run(wanted):
            if about.nfe is not None and nfe != about.nfe:
                raise AssertionError(f"{nfe} evaluations counted, {about.nfe} recorded")
            write_shard(folder, index, pyarrow.ipc.open_stream(packed).read_all())
            done += _rows(settings, index)
            log({}, done)


def _rows(settings: Couple, index: int) -> int:
    return min(settings.shard, settings.pairs - index * settings.shard)
