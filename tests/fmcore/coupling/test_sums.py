"""The sums of a shard are made block by block, with the bits of sums over all of it."""

import tracemalloc

import numpy as np
import pytest
import torch

from fmcore.coupling import checks
from fmcore.coupling.checks import measured, row_hashes
from fmcore.coupling.noise import gaussian_noise
from fmcore.coupling.write import About, table, write_shard


def shard(folder, pairs, shape):
    """Write a shard; return its file, its description and its sources and targets [N, D]."""
    about = About(kind="generated", shape=list(shape), pairs=pairs, seed=7)
    ids = np.arange(pairs)
    source = gaussian_noise(7, ids, shape)
    target = 2 * source + torch.sin(9 * source)
    gap = np.full(pairs, np.nan, dtype=np.float32)
    file = write_shard(folder, 0, table(about, ids, target, source, solver_gap=gap))
    return file, about, source.flatten(1).numpy(), target.flatten(1).numpy()


@pytest.mark.parametrize("shape", [(1,), (2,), (3,), (1, 4, 5)])
def test_sums_by_blocks_have_the_bits_of_sums_at_once(tmp_path, monkeypatch, shape):
    file, about, x, target = shard(tmp_path, 1501, shape)
    flat = x.astype(np.float64).reshape(-1)
    square = np.square(flat)
    monkeypatch.setattr(checks, "AT_ONCE", 256)  # numpy adds up to 128 numbers without halving
    found = measured(file, about)
    assert found.moments.tolist() == [
        len(flat), flat.sum(), square.sum(), np.square(square).sum(),
    ]  # fmt: skip
    assert found.cost == np.square(target.astype(np.float64) - x).sum()
    count, mean, variance = found.end
    assert count == 1501 and np.array_equal(mean, target.mean(0, np.float64))
    assert np.array_equal(variance, target.var(0, dtype=np.float64))
    assert np.array_equal(found.hashes, row_hashes(x))


def test_a_shard_is_summed_beside_its_numbers_and_some_blocks(tmp_path):
    file, about, x, target = shard(tmp_path, 4000, (784,))
    measured(file, about)  # what a first call loads is not counted
    tracemalloc.start()
    try:
        measured(file, about)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < x.nbytes + target.nbytes + 5 * 8 * checks.AT_ONCE
