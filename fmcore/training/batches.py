"""A coupling as an endless stream of training batches, in bounded memory."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from itertools import count
from typing import TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute
import torch
from torch import Tensor

from fmcore.coupling.pairs import Pairs, joined
from fmcore.coupling.read import Coupling, Group, open_shard, parts, readable
from fmcore.coupling.source import turns
from fmcore.settings import ReflowError, derive_seed

W = TypeVar("W")


def batches(
    coupling: Coupling,
    *,
    batch: int,
    seed: int,
    start: int = 0,
    memory: int = 2 << 30,
    shorter_than: float | None = None,
) -> Iterator[Pairs]:
    """Yield training batches without end, from step `start`; step k is a function of (seed, k).

    Row groups are taken in windows of at most `memory` bytes, one of which is in memory; a window
    is shuffled as a whole and cut into batches, and the windows themselves are shuffled in each
    epoch. A coupling that fits is one window, read once. Pairs are drawn independently, so their
    order on disk is random already and nothing is lost by shuffling in windows. An independent
    coupling gets new sources each step. Pairs with |target - source| of `shorter_than` or more are
    left out.
    """
    windows = _windows(coupling, memory)
    sizes = [_train_rows(coupling, w, shorter_than) for w in windows]
    windows = [w for w, n in zip(windows, sizes, strict=True) if n]
    if not windows:
        raise ReflowError(f"{coupling.path}: no training pairs; ask for more `pairs` or data")
    load = partial(_train_pairs, coupling, shorter_than=shorter_than)
    yield from _epochs(windows, load, [n for n in sizes if n], batch, seed, start)


def shuffled_batches(pairs: Pairs, *, batch: int, seed: int, start: int = 0) -> Iterator[Pairs]:
    """Yield training batches of pairs in memory without end, as `batches` does for one window."""
    if not len(pairs):
        raise ReflowError("no training pairs; give at least one")
    yield from _epochs([pairs], lambda window: window, [len(pairs)], batch, seed, start)


def _epochs(
    windows: list[W],
    load: Callable[[W], Pairs],
    sizes: list[int],
    batch: int,
    seed: int,
    start: int,
) -> Iterator[Pairs]:
    """Shuffle the windows in each epoch, and the pairs in each window; cut them into batches."""
    cuts = [max(1, n // batch) for n in sizes]
    step = 0
    held: dict[int, Pairs] = {}
    for epoch in count():
        if step + sum(cuts) <= start:  # skip a finished epoch without reading it
            step += sum(cuts)
            continue
        for w in _shuffled(len(windows), seed, "windows", epoch).tolist():
            if step + cuts[w] <= start:
                step += cuts[w]
                continue
            if w not in held:
                held.clear()  # before the next one is read: there is memory for one
                held[w] = load(windows[w])
            order = _shuffled(len(held[w]), seed, "rows", epoch, w)
            for cut in range(cuts[w]):
                if step >= start:
                    yield _fresh(held[w].rows(order[cut * batch :][:batch]), seed, step)
                step += 1


def longest(coupling: Coupling, share: float) -> float | None:
    """Return the length |target - source| that `share` of the training pairs reach; None for 0."""
    if not share:
        return None
    lengths = [part.lengths() for part in parts(coupling, coupling.groups, "train")]
    return float(np.quantile(torch.cat(lengths).numpy(), 1 - share))


def _train_pairs(coupling: Coupling, groups: list[Group], shorter_than: float | None) -> Pairs:
    """Read a window; of an independent coupling without its source, which each step draws anew."""
    found = parts(coupling, groups, "train", sources=shorter_than is not None)
    if shorter_than is not None:
        found = (p.rows((p.lengths() < shorter_than).nonzero()[:, 0]) for p in found)
    with readable(coupling.path):
        return joined(found, sum(rows for _, _, rows in groups))


def _windows(coupling: Coupling, memory: int) -> list[list[Group]]:
    width = 4 * int(np.prod(coupling.about.shape)) * 2 + 64
    windows: list[list[Group]] = [[]]
    used = 0
    for group in coupling.groups:
        if windows[-1] and used + group[2] * width > memory:
            windows.append([])
            used = 0
        windows[-1].append(group)
        used += group[2] * width
    return windows


def _train_rows(coupling: Coupling, groups: list[Group], shorter_than: float | None) -> int:
    if shorter_than is not None:
        return sum(len(_train_pairs(coupling, [group], shorter_than)) for group in groups)
    rows = 0
    for name in dict.fromkeys(file for file, _, _ in groups):
        wanted = [i for file, i, _ in groups if file == name]
        with readable(coupling.path / name):
            shard = open_shard(coupling, name)
            split = shard.read_row_groups(wanted, columns=["split"])["split"]
        rows += pa.compute.sum(pa.compute.equal(split, "train")).as_py() or 0
    return rows


def _shuffled(n: int, *names: str | int) -> Tensor:
    generator = torch.Generator().manual_seed(derive_seed(int(names[0]), *names[1:]))
    return torch.randperm(n, generator=generator)


def _fresh(pairs: Pairs, seed: int, step: int) -> Pairs:
    if not pairs.independent:
        return pairs
    own = derive_seed(seed, "source", step)
    if pairs.pool is not None:
        rows = turns(own, np.arange(len(pairs)), len(pairs.pool))
        return replace(pairs, source=pairs.pool[rows])
    generator = torch.Generator().manual_seed(own)
    return replace(pairs, source=torch.randn(pairs.target.shape, generator=generator))
