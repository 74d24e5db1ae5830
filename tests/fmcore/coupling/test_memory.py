"""Pairs are put into memory once, beside one row group."""

import subprocess
import sys

import numpy as np
import pytest
import torch

from fmcore.coupling import write as writing
from fmcore.coupling.pairs import Pairs, joined
from fmcore.coupling.read import open_coupling, parts, read
from fmcore.coupling.write import About, finish, table, write_shard
from tests.fmcore.coupling.test_coupling import make

PEAK = """
import sys
from fmcore.coupling.read import open_coupling, read
from fmcore.training.batches import batches

def of(name):
    return int(next(s for s in open("/proc/self/status") if s.startswith(name)).split()[1]) << 10

small, large, memory = open_coupling(sys.argv[1]), open_coupling(sys.argv[2]), int(sys.argv[3])
next(batches(small, batch=64, seed=0))  # libraries are loaded and their pools of memory are made
before = of("VmRSS")
if memory:
    stream = batches(large, batch=512, seed=0, memory=memory)
    rows = sum(len(next(stream)) for _ in range(3 * large.about.pairs // 1024))  # 1.5 epochs
else:
    rows = len(read(large))
print(rows, of("VmHWM") - before)
"""
DIM = 784
PAIR = 2 * 4 * DIM
SLACK = 40 << 20
"""Bytes of a row group as it is decoded, of batches and of what Arrow and malloc keep."""


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """Couplings of 200 and of 20,000 pairs, 125 MB."""
    root = tmp_path_factory.mktemp("large")
    for name, pairs in (("small", 200), ("large", 20_000)):
        about = About(kind="generated", shape=[DIM], pairs=pairs, seed=0)
        starts = range(0, pairs, 5000)
        for index, start in enumerate(starts):
            ids = np.arange(start, min(start + 5000, pairs))
            target = torch.from_numpy(ids).float()[:, None].expand(-1, DIM)
            write_shard(root / name, index, table(about, ids, target, -target))
        finish(root / name, about, len(starts))
    return root


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="/proc is Linux's")
@pytest.mark.parametrize("memory", [0, 80 << 20, 1 << 30])
def test_the_peak_is_the_window_and_a_row_group(large, memory):
    """Joining, filtering and casting whole windows took 2.7 times as much."""
    arguments = [str(large / "small"), str(large / "large"), str(memory)]
    done = subprocess.run(
        [sys.executable, "-c", PEAK, *arguments], capture_output=True, text=True, check=True
    )
    rows, peak = map(int, done.stdout.split())
    assert rows >= 20_000
    window = min(memory or 1 << 30, 20_000 * (PAIR + 64))
    assert window / 2 < peak < window + SLACK


@pytest.mark.parametrize("kind", ["generated", "independent"])
def test_pairs_do_not_depend_on_the_row_groups(tmp_path, monkeypatch, kind):
    whole = read(open_coupling(make(tmp_path / "one", kind=kind)), split="train")
    monkeypatch.setattr(writing, "ROW_GROUP_BYTES", 300)
    cut = open_coupling(make(tmp_path / "many", kind=kind))
    assert len(cut.groups) > 10
    for limit in (None, 37, 0):
        found = read(cut, split="train", limit=limit)
        for name, value in found.tensors().items():
            assert torch.equal(value, getattr(whole, name)[:limit])
            assert value.is_contiguous() and value.dtype == getattr(whole, name).dtype
    bare = joined(parts(cut, cut.groups, "train", sources=False), 10)
    shared = bare.source.data_ptr() == bare.target.data_ptr()
    assert shared == (kind == "independent")
    few = read(cut, split="held_out").target
    assert few.untyped_storage().nbytes() == few.nbytes  # not room for all pairs


def test_parts_are_joined_in_order_and_must_be_alike():
    def some(low, high, label=None):
        rows = torch.arange(low, high)
        return Pairs(rows, rows[:, None].float(), -rows[:, None].float(), label)

    found = joined(iter([some(0, 3), some(3, 3), some(3, 9), some(9, 99)]), 8)
    assert found.pair_id.tolist() == found.target[:, 0].tolist() == list(range(8))
    for mixed in (
        [some(0, 3, torch.zeros(3)), some(3, 5)],
        [some(3, 5), some(0, 1, torch.ones(1))],
    ):
        with pytest.raises(ValueError, match="only some of its pairs have a label"):
            joined(mixed, 9)
    with pytest.raises(ValueError, match="it has no pairs"):
        joined([], 9)
