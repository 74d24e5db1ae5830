"""Metrics of a finished coupling: cost, solver gap, and tests of its noise."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from torch import Tensor

from fmcore.coupling.compact import record
from fmcore.coupling.read import open_coupling, read, readable
from fmcore.coupling.write import About
from fmcore.matching.interpolant import Schedule
from fmcore.settings import ReflowError

ENDS_WITHIN = 0.05
"""How far alpha(1) may be from 0 and sigma(1) from 1 for a flow that starts from real samples."""

SEEN = 20000
"""Number of real samples with which the endpoints are compared."""

SIDES = {"source", "target"}
"""The columns that are decoded into rows of numbers."""

AT_ONCE = 1 << 18
"""Numbers of a shard that are in float64 at a time while they are summed."""


@dataclass(frozen=True)
class Measured:
    """The sums of one shard, from which the metrics of its coupling are made."""

    moments: NDArray[np.float64]
    """Of the noise: count, and sums of x, x^2 and x^4."""
    end: tuple[int, NDArray[np.float64], NDArray[np.float64]]
    """Count, mean [D] and variance [D] of the targets."""
    hashes: NDArray[np.uint64]
    """One for each source that is noise."""
    cost: float
    gap: float
    audited: int
    spent: int
    clipped: int


def measured(file: Path, about: About) -> Measured:
    """Return the sums of one shard, read from its file, whose checksums are verified."""
    with readable(file):
        source, target, rows = _columns(file, about)
        clipped = record(rows.schema.metadata).get("clipped", 0)
    gaps = np.zeros(0)
    if "solver_gap" in rows.column_names:  # pairs from outside may lack it
        gaps = rows["solver_gap"].drop_null().to_numpy().astype(np.float64)
    drawn = source
    if "kind" in rows.column_names:
        drawn = source[rows["kind"].to_numpy(zero_copy_only=False) == "generated"]
    noise = about.kind != "inverted"
    return Measured(
        moments=_powers(drawn) if noise else np.zeros(4),
        end=(len(target), target.mean(0, np.float64), _variance(target)),
        hashes=row_hashes(drawn) if noise else np.zeros(0, np.uint64),
        cost=_cost(target, source),
        gap=float(np.square(gaps).sum()),
        audited=len(gaps),
        spent=int(rows["nfe"].to_numpy().sum()) if "nfe" in rows.column_names else 0,
        clipped=clipped,
    )


def _columns(file: Path, about: About) -> tuple[NDArray[np.float32], NDArray[np.float32], pa.Table]:
    """Return the sources and targets [N, D] of a shard and its other columns.

    One row group is decoded beside them: all of them at once would be in memory twice.
    """
    form, done, others = about.form, 0, []
    with pq.ParquetFile(file, page_checksum_verification=True) as shard:
        shape = shard.metadata.num_rows, form.size
        source, target = np.empty(shape, np.float32), np.empty(shape, np.float32)
        for group in range(shard.num_row_groups):
            rows = shard.read_row_group(group)
            part = slice(done, done + rows.num_rows)
            source[part] = form.source(rows, file).reshape(-1, form.size)
            target[part] = form.target(rows).reshape(-1, form.size)
            others.append(rows.select([n for n in rows.column_names if n not in SIDES]))
            done = part.stop
    return source, target, pa.concat_tables(others)


def measure(
    folder: Path, data: Path, about: About, known: Mapping[str, Measured] | None = None
) -> dict[str, Any]:
    """Return the metrics of the coupling in `folder`, shard by shard.

    `known` has the sums of shards by the names of their files; the others are read.
    noise_z: largest z-score of mean, variance and fourth moment of the generated source.
    noise_repeats: sources that occur twice. Neither is measured where the source is no noise.
    endpoint_shift: squared gap of the targets' mean and
    standard deviations from those of the real data, relative to its variance. solver_gap_rel:
    RMS solver gap relative to the data's standard deviation. target_clipped: share of the numbers
    of targets beyond the range of uint8, if they are stored so. Of pairs from outside neither their
    NFE is known, nor their solver gap unless they have one.
    """
    known, form = known or {}, about.form
    files = sorted(folder.glob("part-*.parquet"))
    shards = [known.get(file.name) or measured(file, about) for file in files]
    audited = sum(s.audited for s in shards)
    rms = float((sum(s.gap for s in shards) / max(1, audited)) ** 0.5)
    shift, std, size = _shift([s.end for s in shards], data)
    z = _z(np.sum([s.moments for s in shards], axis=0))
    noise = {"noise_z": z, "noise_repeats": repeats(s.hashes for s in shards)}
    clipped = sum(s.clipped for s in shards) / (about.pairs * form.size)
    spent = sum(s.spent for s in shards) / about.pairs
    gap = {"solver_gap_rms": rms, "solver_gap_rel": rms / std}
    made_here = about.origin is None
    return {
        **({"nfe": about.nfe if about.nfe is not None else spent} if made_here else {}),
        "transport_cost": sum(s.cost for s in shards) / about.pairs,
        **(gap if made_here or audited else {}),
        "target_rms": size,
        "audited": audited,
        **(noise if about.source is None else {}),
        **({"target_clipped": clipped} if form.levels else {}),
        "endpoint_shift": shift,
    }


def check_labels(label: Tensor | None, classes: int, place: str) -> None:
    """Raise ReflowError if labels [N] do not suit a network with `classes` classes.

    A network without classes ignores labels.
    """
    if not classes:
        return
    if label is None:
        raise ReflowError(
            f"network.classes is {classes}, but {place} has no labels; set network.classes: 0, or"
            " give the data labels"
        )
    least, most = int(label.min()), int(label.max())
    if least < 0 or most >= classes:
        says = "is the null class of guidance" if most == classes else "is beyond"
        cure = "number them from 0" if least else f"set network.classes: {most + 1}"
        raise ReflowError(
            f"network.classes is {classes}, so labels are 0 to {classes - 1}, but {place} has"
            f" labels {least} to {most}: {most} {says}; {cure}"
        )


def check_source(source: Mapping[str, Any] | None, interpolant: Schedule) -> None:
    """Raise ReflowError if an interpolant does not end at the samples of a real source."""
    end = torch.ones((), dtype=torch.float64)
    alpha, sigma = float(interpolant.alpha(end)), float(interpolant.sigma(end))
    if source is not None and max(abs(alpha), abs(sigma - 1)) > ENDS_WITHIN:
        raise ReflowError(
            f"train.interpolant: at t = 1 it is {alpha:.3g} target + {sigma:.3g} source, so its"
            " flow would not start from the samples of `source`; use linear, cosine or polynomial"
        )


def row_hashes(x: NDArray[np.float32]) -> NDArray[np.uint64]:
    """Return a hash [N] of the bits of each row [N, D]: their sum with odd random weights."""
    weights = np.random.default_rng(0).integers(1 << 63, size=x.shape[1], dtype=np.uint64)
    bits = np.ascontiguousarray(x).view(np.uint32)
    found = np.einsum("nd,d->n", bits, 2 * weights + 1, dtype=np.uint64, casting="safe")
    return np.asarray(found)


def repeats(hashes: Iterable[NDArray[np.uint64]]) -> int:
    """Return how many of the hashes of all shards occurred before."""
    seen = np.concatenate([np.zeros(0, dtype=np.uint64), *hashes])
    return len(seen) - len(np.unique(seen))


def _powers(x: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return (count, sum x, sum x^2, sum x^4)."""
    flat = x.reshape(-1)

    def sums(some: slice) -> NDArray[np.float64]:
        first = flat[some].astype(np.float64)
        square = np.square(first)
        return np.array([first.sum(), square.sum(), np.square(square).sum()])

    return np.array([len(flat), *_halved(sums, 0, len(flat))])


def _cost(target: NDArray[np.float32], source: NDArray[np.float32]) -> float:
    """Return the sum of the squares of target - source."""
    a, b = target.reshape(-1), source.reshape(-1)

    def sums(some: slice) -> NDArray[np.float64]:
        return np.array([np.square(a[some].astype(np.float64) - b[some]).sum()])

    return float(_halved(sums, 0, len(a))[0])


def _halved(
    sums: Callable[[slice], NDArray[np.float64]], first: int, last: int
) -> NDArray[np.float64]:
    """Return sums over the numbers from `first` to `last`, of which few are in float64 at a time.

    It halves them where numpy does in its pairwise summation: the bits are those of one sum.
    """
    count = last - first
    if count <= AT_ONCE:
        return sums(slice(first, last))
    middle = first + count // 2 - count // 2 % 8
    return _halved(sums, first, middle) + _halved(sums, middle, last)


def _variance(x: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return the variance [D] of rows [N, D]: numpy makes a copy in float64, here of some columns.

    A single column is summed in another order, so there are two at least, unless D is 1.
    """
    parts = np.array_split(x, max(1, min(x.size // AT_ONCE, x.shape[1] // 2)), axis=1)
    return np.concatenate([part.var(0, dtype=np.float64) for part in parts])


def noise_z(x: NDArray[np.float32]) -> float:
    """Return the largest z-score of the moments of rows [N, D] against N(0, 1)."""
    return _z(_powers(x))


def _z(moments: NDArray[np.float64]) -> float:
    """Return the largest |z| of the first, second and fourth moment against N(0, 1)."""
    n, first, second, fourth = moments
    if not n:
        return 0.0
    z = np.array([first, second - n, fourth - 3 * n]) / np.sqrt(n * np.array([1.0, 2.0, 96.0]))
    return float(np.abs(z).max())


def _shift(
    ends: list[tuple[int, NDArray[np.float64], NDArray[np.float64]]], data: Path
) -> tuple[float, float, float]:
    """Return the relative shift of the endpoints, the data's standard deviation, and its size.

    The size is the root mean square, which a mean far from 0 raises.
    """
    weight = np.array([n for n, _, _ in ends], dtype=np.float64) / sum(n for n, _, _ in ends)
    mean = sum(w * m for w, (_, m, _) in zip(weight, ends, strict=True))
    second = sum(w * (v + m * m) for w, (_, m, v) in zip(weight, ends, strict=True))
    targets = read(open_coupling(data), limit=SEEN, sources=False).target
    real = targets.flatten(1).to(torch.float64).numpy()
    variance = real.var(axis=0)
    spread = np.sqrt(np.maximum(second - np.square(mean), 0)) - np.sqrt(variance)
    gap = np.square(mean - real.mean(axis=0)).sum() + np.square(spread).sum()
    size = float(np.square(real).mean() ** 0.5)
    return float(gap / max(variance.sum(), 1e-12)), float(max(variance.mean() ** 0.5, 1e-6)), size
