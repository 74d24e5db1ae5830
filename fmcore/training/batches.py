"""A coupling as an endless stream of training batches, in bounded memory."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from itertools import count
from typing import Protocol, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute
import torch
from torch import Tensor

from fmcore.coupling.pairs import Pairs, joined
from fmcore.coupling.read import Coupling, Group, open_shard, parts, readable
from fmcore.coupling.source import turns
from fmcore.settings import ReflowError, derive_seed
from fmcore.training import processes
from fmcore.training.processes import ALONE
from fmcore.training.rows import SharedPairs

W = TypeVar("W")


class Window(Protocol):
    """Pairs that a window of a stream has: their number, and those at some positions."""

    def __len__(self) -> int: ...

    def rows(self, index: Tensor, /) -> Pairs:
        """Return the pairs at the positions `index` [M]."""


NO_PAIRS = "{}: no training pairs; ask for more `pairs` or data"


def batches(
    coupling: Coupling,
    *,
    batch: int,
    seed: int,
    start: int = 0,
    memory: int = 2 << 30,
    shorter_than: float | None = None,
    group: processes.Group = ALONE,
    whole: bool = False,
) -> Iterator[Pairs]:
    """Yield training batches without end, from step `start`; step k is a function of (seed, k).

    Row groups are taken in windows of at most `memory` bytes, one of which is in memory; a window
    is shuffled as a whole and cut into batches, and the windows themselves are shuffled in each
    epoch. A coupling that fits is one window, read once. Pairs are drawn independently, so their
    order on disk is random already and nothing is lost by shuffling in windows. An independent
    coupling gets new sources each step. Pairs with |target - source| of `shorter_than` or more are
    left out. The processes of a `group` share the reading: a batch has the same rows as for one
    process, of which each gets its part, or the `whole` batch.
    """
    windows = _windows(coupling, memory)
    if group.size > 1:
        shared = _Reader(coupling, shorter_than, group, whole)
        sizes = [sum(shared.counts[g] for g in window) for window in windows]
        kept = [(w, n) for w, n in zip(windows, sizes, strict=True) if n]
        if not kept:
            raise ReflowError(NO_PAIRS.format(coupling.path))
        yield from _epochs([w for w, _ in kept], shared, [n for _, n in kept], batch, seed, start)
        return
    sizes = [_train_rows(coupling, w, shorter_than) for w in windows]
    windows = [w for w, n in zip(windows, sizes, strict=True) if n]
    if not windows:
        raise ReflowError(NO_PAIRS.format(coupling.path))
    load = partial(_train_pairs, coupling, shorter_than=shorter_than)
    yield from _epochs(windows, load, [n for n in sizes if n], batch, seed, start)


def shuffled_batches(pairs: Pairs, *, batch: int, seed: int, start: int = 0) -> Iterator[Pairs]:
    """Yield training batches of pairs in memory without end, as `batches` does for one window."""
    if not len(pairs):
        raise ReflowError("no training pairs; give at least one")
    yield from _epochs([pairs], lambda window: window, [len(pairs)], batch, seed, start)


def _epochs(
    windows: list[W],
    load: Callable[[W], Window],
    sizes: list[int],
    batch: int,
    seed: int,
    start: int,
) -> Iterator[Pairs]:
    """Shuffle the windows in each epoch, and the pairs in each window; cut them into batches."""
    cuts = [max(1, n // batch) for n in sizes]
    step = 0
    held: dict[int, Window] = {}
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


class _Reader:
    """Reads of a coupling the row groups of this process; called with a window, it shares them."""

    def __init__(
        self, coupling: Coupling, shorter_than: float | None, group: processes.Group, whole: bool
    ) -> None:
        self.coupling, self.shorter_than = coupling, shorter_than
        self.group, self.whole = group, whole
        self.owner = {g: i % group.size for i, g in enumerate(coupling.groups)}
        counts = torch.zeros(len(self.owner), dtype=torch.int64)
        for i, (row_group, owner) in enumerate(self.owner.items()):
            if owner == group.rank:
                counts[i] = _train_rows(coupling, [row_group], shorter_than)
        self.counts = dict(zip(self.owner, group.added(counts).tolist(), strict=True))

    def __call__(self, window: list[Group]) -> Window:
        owners = [self.owner[g] for g in window]
        mine = [g for g, owner in zip(window, owners, strict=True) if owner == self.group.rank]
        own = None
        if any(self.counts[g] for g in mine):
            own = _train_pairs(self.coupling, mine, self.shorter_than)
        forms = self.group.told(None if own is None else replace(own.room(0), pool=None))
        if own is None:  # a window has pairs, so some process has told their form
            own = next(form for form in forms if form is not None)
            if self.coupling.independent:
                own = replace(own, pool=self.coupling.train_source.samples)
        counts = [self.counts[g] for g in window]
        return SharedPairs.of(own, counts, owners, self.group, self.whole)


def longest(coupling: Coupling, share: float, group: processes.Group = ALONE) -> float | None:
    """Return the length |target - source| that `share` of the training pairs reach; None for 0."""
    if not share:
        return None
    own = coupling.groups[group.rank :: group.size]
    lengths = [torch.empty(0), *(part.lengths() for part in parts(coupling, own, "train"))]
    return float(np.quantile(group.gathered(torch.cat(lengths)).numpy(), 1 - share))


def _train_pairs(coupling: Coupling, groups: list[Group], shorter_than: float | None) -> Pairs:
    """Read a window; of an independent coupling without its source, which each step draws anew."""
    found = parts(coupling, groups, "train", sources=shorter_than is not None)
    if shorter_than is not None:
        found = (p.rows((p.lengths() < shorter_than).nonzero()[:, 0]) for p in found)
    with readable(coupling.path):
        return joined(found, sum(rows for _, _, rows in groups))


def _windows(coupling: Coupling, memory: int) -> list[list[Group]]:
    states = 1 + coupling.about.form.store.pieces
    width = 4 * int(np.prod(coupling.about.shape)) * states + 64
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
            shard = open_shard(coupling, name, peek=True)
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
