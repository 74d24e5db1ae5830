"""Verb: sample the coupling that a velocity's own ODE produces (rectification).

source ~ N(0, I) as a function of (seed, pair_id), target = the ODE's endpoint at t = 0.
"""

import json
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from fmcore.compute import in_tiles, numerics
from fmcore.coupling import About, finish, gaussian_noise, open_coupling, table, write_shard
from fmcore.coupling.write import shard_name
from fmcore.network import Model, load
from fmcore.settings import Log, Settings
from fmcore.solver import Solver, solve


class Couple(Settings):
    """How many pairs, by which solver; `batch` and `workers` never change the bytes on the CPU."""

    pairs: int = Field(gt=0)
    solver: Solver = Solver(name="heun", steps=18)
    weights: Literal["ema", "raw"] = "ema"
    batch: int = Field(default=1024, gt=0)
    shard: int = Field(default=4096, gt=0)
    audit_every: int = Field(default=32, gt=0)


def integrate(model: Model, source: Tensor, solver: Solver, *, batch: int) -> tuple[Tensor, int]:
    """Carry source [N, *D] to t = 0; returns the endpoints [N, *D] on the CPU and the NFE.

    The state is float32 whatever the network computes in: a half-precision state loses the pair.
    """
    velocity = in_tiles(model.network)
    device = next(model.network.parameters()).device
    solutions = [solve(velocity, z.to(device), solver) for z in source.split(batch)]
    return torch.cat([s.x.cpu() for s in solutions]), solutions[0].nfe


def sample_shard(model: Model, about: About, settings: Couple, index: int) -> tuple[pa.Table, int]:
    """Return shard `index` as a table: a pure function of (model, settings, index), and its NFE.

    Every `audit_every`-th pair is solved again with twice the steps; `solver_gap` is the RMS
    difference of the endpoints, an estimate of the discretisation error of that pair.
    """
    first = index * settings.shard
    ids: NDArray[np.int64] = np.arange(first, min(first + settings.shard, settings.pairs))
    source = gaussian_noise(about.seed, ids, tuple(about.shape))
    target, nfe = integrate(model, source, settings.solver, batch=settings.batch)
    gap = np.full(len(ids), np.nan, dtype=np.float32)
    audited = ids % settings.audit_every == 0
    if audited.any():
        rows = torch.from_numpy(audited)
        finer, _ = integrate(model, source[rows], settings.solver.refined(), batch=settings.batch)
        gap[audited] = (finer - target[rows]).flatten(1).square().mean(1).sqrt().numpy()
    return table(about, ids, target, source, solver_gap=gap), nfe


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
) -> None:
    """Sample `settings.pairs` pairs from the model into the folder `out`; write its metrics (json).

    Shards gather in `scratch` and move to `out` when all are there. A shard that is complete is
    not sampled again, so a killed run goes on where it stopped.
    """
    velocity = load(model, weights=settings.weights, device=str(device))
    about = About(
        kind="generated",
        shape=list(velocity.shape),
        image=open_coupling(data).about.image,
        pairs=settings.pairs,
        seed=seed,
        model=velocity.digest,
        weights=settings.weights,
        solver=settings.solver.model_dump(),
        nfe=_nfe(settings.solver),
        audit_every=settings.audit_every,
        numerics=numerics(device),
    )
    folder = scratch / "shards"
    count = -(-settings.pairs // settings.shard)
    for index in range(count):
        if not _complete(folder / shard_name(index), about):
            rows, nfe = sample_shard(velocity, about, settings, index)
            if nfe != about.nfe:
                raise AssertionError(f"{nfe} evaluations counted, {about.nfe} recorded")
            write_shard(folder, index, rows)
        log({}, min(settings.pairs, (index + 1) * settings.shard))
    manifest = finish(folder, about, count)
    out.parent.mkdir(parents=True, exist_ok=True)
    folder.replace(out)
    _write_metrics(metrics, out, about, sum(s["bytes"] for s in manifest["shards"]))


def _nfe(solver: Solver) -> int:
    """Return the NFE of a solver by counting on a trivial field."""
    return solve(lambda x, _: x, torch.zeros(1, 1), solver).nfe


def _complete(path: Path, about: About) -> bool:
    """Whether an earlier, interrupted run left this shard whole and of this very coupling."""
    if not path.exists():
        return False
    try:
        metadata = pq.read_table(path, page_checksum_verification=True).schema.metadata or {}
    except (OSError, pa.ArrowInvalid):
        return False
    return bool(json.loads(metadata.get(b"fm", b"null")) == about.model_dump(exclude_none=True))


def _write_metrics(path: Path, out: Path, about: About, size: int) -> None:
    cost = gap = 0.0
    audited = 0
    for file in sorted(out.glob("part-*.parquet")):
        rows = pq.read_table(file, page_checksum_verification=True)
        source, target = (
            rows[c].combine_chunks().flatten().to_numpy().astype(np.float64)
            for c in ("source", "target")
        )
        cost += float(np.square(target - source).sum())
        gaps = rows["solver_gap"].drop_null().to_numpy().astype(np.float64)
        gap, audited = gap + float(np.square(gaps).sum()), audited + len(gaps)
    result = {
        "pairs": about.pairs,
        "nfe": about.nfe,
        "transport_cost": cost / about.pairs,
        "solver_gap_rms": (gap / max(1, audited)) ** 0.5,
        "audited": audited,
        "bytes": size,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=2) + "\n")
