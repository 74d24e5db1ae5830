"""The coupling data set: noise by number, atomic shards, verification, streams."""

import json
import resource
import shutil
from itertools import islice

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.dataset
import pyarrow.parquet as pq
import pytest
import torch

from fmcore.coupling import write as writing
from fmcore.coupling.checks import repeats, row_hashes
from fmcore.coupling.noise import gaussian_noise, uniform
from fmcore.coupling.read import open_coupling, read
from fmcore.coupling.verify import verify
from fmcore.coupling.write import About, finish, table, write_shard
from fmcore.settings import ReflowError
from fmcore.training.batches import batches


def make(folder, *, pairs=200, shard=64, kind="generated", order=None, shape=(3,)):
    """Write a small coupling whose target is a function of its noise."""
    about = About(kind=kind, shape=list(shape), pairs=pairs, seed=7)
    count = -(-pairs // shard)
    for index in order or range(count):
        ids = np.arange(index * shard, min((index + 1) * shard, pairs))
        source = gaussian_noise(7, ids, shape)
        rows = table(about, ids, 2 * source + 1, None if kind == "independent" else source)
        write_shard(folder, index, rows)
    finish(folder, about, count)
    return folder


def contents(folder):
    return {p.name: p.read_bytes() for p in folder.iterdir()}


def test_noise_depends_on_the_pair_alone():
    ids = np.arange(1000)
    whole = gaussian_noise(3, ids, (4,))
    shuffled = np.random.default_rng(0).permutation(1000)
    torch.testing.assert_close(gaussian_noise(3, shuffled, (4,)), whole[shuffled], rtol=0, atol=0)
    assert len(torch.unique(whole[:, 0])) == 1000
    assert not bool((gaussian_noise(4, ids, (4,)) == whole).any())


@pytest.mark.parametrize("shape", [(1,), (3,), (4, 5)])
def test_each_pair_has_the_stream_of_a_generator_of_its_own(shape):
    """An odd number of draws leaves half a word in the generator, which the next pair must not
    see."""
    ids = np.array([0, 1, 5, 5, 2**40, 3])
    keys = [np.array([2**62 + 1, i], dtype=np.uint64) for i in ids]
    alone = [np.random.Generator(np.random.Philox(key=k)) for k in keys]
    noise = np.stack([g.standard_normal(shape, dtype=np.float32) for g in alone])
    assert np.array_equal(gaussian_noise(2**62 + 1, ids, shape).numpy(), noise)
    for draw in (0, 1, 5):
        alone = [np.random.Generator(np.random.Philox(key=k, counter=1 << 192)) for k in keys]
        drawn = [g.random(draw + 1)[draw] for g in alone]
        assert uniform(2**62 + 1, ids, draw=draw).tolist() == drawn


@pytest.mark.parametrize("size", [1, 2, 7])
def test_rows_that_occur_again_are_counted_over_shards(size):
    x = np.unique(np.random.default_rng(0).standard_normal((2000, size), dtype=np.float32), axis=0)
    near = x.copy()
    near[:, -1] = np.nextafter(near[:, -1], np.float32(9))  # one bit of one value differs
    near = near[(near[:, -1:] != x[:, -1]).all(1)]
    shards = [x, near, x[:3], x[:0], x[:2]]
    assert len(near) > 1000 and repeats(map(row_hashes, shards[:2])) == 0
    assert repeats(map(row_hashes, shards)) == 5
    assert repeats([]) == 0


def test_noise_is_standard_normal():
    x = gaussian_noise(0, np.arange(20000), (4,)).double().flatten()
    n = len(x)
    assert abs(float(x.mean())) < 4 / n**0.5
    assert abs(float(x.square().mean()) - 1) < 4 * (2 / n) ** 0.5
    assert abs(float((x**4).mean()) - 3) < 4 * (96 / n) ** 0.5


def test_order_of_shards_does_not_change_a_byte(tmp_path):
    one = make(tmp_path / "one")
    other = make(tmp_path / "other", order=[2, 0, 3, 1])
    assert contents(one) == contents(other)


def test_pandas_and_pyarrow_open_it_with_one_call(tmp_path):
    folder = make(tmp_path / "c")
    frame = pd.read_parquet(folder)
    assert list(frame.columns) == ["pair_id", "target", "source", "split"]
    assert frame.pair_id.tolist() == list(range(200))
    assert frame.split.value_counts().to_dict() == {"train": 190, "held_out": 10}
    assert pyarrow.dataset.dataset(folder, format="parquet").count_rows() == 200


def test_round_trip(tmp_path):
    pairs = read(open_coupling(make(tmp_path / "c", shape=(1, 2, 2))))
    expected = gaussian_noise(7, np.arange(200), (1, 2, 2))
    torch.testing.assert_close(pairs.source, expected, rtol=0, atol=0)
    torch.testing.assert_close(pairs.target, 2 * expected + 1, rtol=0, atol=0)


def test_metadata_is_in_every_shard(tmp_path):
    folder = make(tmp_path / "c")
    about = json.loads(pq.read_schema(folder / "part-00001.parquet").metadata[b"fm"])
    assert about["seed"] == 7 and about["convention"].startswith("t=0 target")


def flip(path, where):
    data = bytearray(path.read_bytes())
    data[where] ^= 1
    path.write_bytes(bytes(data))


def damage_truncate(folder):
    path = folder / "part-00001.parquet"
    path.write_bytes(path.read_bytes()[:-100])


def damage_alter(folder):
    flip(folder / "part-00001.parquet", 300)


def damage_remove(folder):
    (folder / "part-00001.parquet").unlink()


def damage_foreign(folder):
    shutil.copy(folder / "part-00001.parquet", folder / "part-00009.parquet")


def damage_swap(folder):
    shutil.copy(folder / "part-00000.parquet", folder / "part-00001.parquet")


@pytest.mark.parametrize(
    ("damage", "word", "file"),
    [
        (damage_truncate, "truncated", "part-00001"),
        (damage_alter, "altered", "part-00001"),
        (damage_remove, "missing", "part-00001"),
        (damage_foreign, "foreign", "part-00009"),
        (damage_swap, "altered", "part-00001"),
    ],
)
def test_verify_names_the_bad_shard(tmp_path, damage, word, file):
    folder = make(tmp_path / "c")
    verify(folder)
    damage(folder)
    with pytest.raises(ReflowError, match=word) as error:
        verify(folder)
    assert file in str(error.value)


def test_reading_for_training_notices_a_flipped_bit(tmp_path):
    folder = make(tmp_path / "c")
    size = (folder / "part-00000.parquet").stat().st_size
    flip(folder / "part-00000.parquet", size // 3)
    with pytest.raises(ReflowError, match="part-00000"):
        read(open_coupling(folder))


def test_a_shard_of_another_coupling_is_refused(tmp_path):
    folder, other = make(tmp_path / "c"), tmp_path / "other"
    about = About(kind="generated", shape=[3], pairs=64, seed=8)
    ids = np.arange(64)
    noise = gaussian_noise(8, ids, (3,))
    shutil.copy(
        write_shard(other, 0, table(about, ids, noise, noise)), folder / "part-00000.parquet"
    )
    with pytest.raises(ReflowError, match="another coupling"):
        read(open_coupling(folder))


def test_a_parquet_file_of_another_schema_is_refused(tmp_path):
    folder = make(tmp_path / "c")
    pq.write_table(pa.table({"a": [1, 2]}), folder / "part-00000.parquet")
    with pytest.raises(ReflowError, match="another schema.*'pair_id'"):
        read(open_coupling(folder))


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"about": {"schema_version": 99}}', "null"])
def test_a_bad_manifest_is_one_clear_error(tmp_path, text):
    folder = make(tmp_path / "c")
    (folder / "_manifest.json").write_text(text)
    with pytest.raises(ReflowError, match="_manifest"):
        open_coupling(folder)


def test_a_folder_without_manifest_is_not_a_coupling(tmp_path):
    with pytest.raises(ReflowError, match="not a coupling"):
        open_coupling(tmp_path)


def test_values_that_are_not_finite_are_refused(tmp_path):
    about = About(kind="generated", shape=[2], pairs=3, seed=0)
    target = torch.tensor([[0.0, 1], [float("nan"), 0], [0, 0]])
    with pytest.raises(ReflowError, match="target of pair 1 is not finite"):
        table(about, np.arange(3), target, torch.zeros(3, 2))


def test_a_full_disk_leaves_finished_shards_and_no_half_file(tmp_path):
    folder = tmp_path / "c"
    about = About(kind="generated", shape=[64], pairs=4000, seed=7)
    ids = np.arange(2000)
    noise = gaussian_noise(7, ids, (64,))
    first = write_shard(folder, 0, table(about, ids[:100], noise[:100], noise[:100]))
    before = first.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    import signal

    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, hard))
    try:
        with pytest.raises(ReflowError, match=r"part-00001\.parquet: cannot be written"):
            write_shard(folder, 1, table(about, ids, noise, noise))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)
    assert [p.name for p in folder.iterdir() if p.name[0] != "."] == ["part-00000.parquet"]
    assert first.read_bytes() == before


def test_a_missing_shard_stops_the_manifest(tmp_path):
    about = About(kind="generated", shape=[3], pairs=20, seed=7)
    with pytest.raises(ReflowError, match="missing"):
        finish(tmp_path, about, 1)


def test_batches_resume_at_any_step(tmp_path):
    coupling = open_coupling(make(tmp_path / "c"))
    whole = [p.pair_id.tolist() for p in islice(batches(coupling, batch=32, seed=1), 20)]
    for start in (1, 5, 6, 13):
        again = islice(batches(coupling, batch=32, seed=1, start=start), 20 - start)
        assert [p.pair_id.tolist() for p in again] == whole[start:]
    epoch = sum(whole[:5], [])
    assert len(set(epoch)) == len(epoch) == 160
    assert not any(i % 20 == 19 for i in epoch), "held-out pairs must never train"


def test_batches_of_a_coupling_larger_than_memory_see_every_pair(tmp_path, monkeypatch):
    monkeypatch.setattr(writing, "ROW_GROUP_BYTES", 1000)
    coupling = open_coupling(make(tmp_path / "c", pairs=400, shard=100))
    assert len(coupling.groups) > 8
    small = dict(batch=10, seed=1, memory=4000)
    first = [p.pair_id.tolist() for p in islice(batches(coupling, **small), 60)]
    again = [p.pair_id.tolist() for p in islice(batches(coupling, start=17, **small), 43)]
    assert again == first[17:]
    assert len(set(sum(first, []))) > 350


def test_the_independent_coupling_is_drawn_afresh(tmp_path):
    """Freezing the random pairing once is a well-known mistake of reflow code."""
    coupling = open_coupling(make(tmp_path / "c", kind="independent", pairs=40))
    drawn = list(islice(batches(coupling, batch=38, seed=1), 3))
    by_pair = [dict(zip(p.pair_id.tolist(), p.source[:, 0].tolist(), strict=True)) for p in drawn]
    assert by_pair[0].keys() == by_pair[1].keys()
    assert all(by_pair[0][k] != by_pair[1][k] for k in by_pair[0])
    torch.testing.assert_close(read(coupling).source, read(coupling).source, rtol=0, atol=0)


def test_a_limit_is_kept_for_every_split(tmp_path, monkeypatch):
    monkeypatch.setattr(writing, "ROW_GROUP_BYTES", 1000)
    coupling = open_coupling(make(tmp_path / "c", pairs=400, shard=100))
    for split in ("train", "held_out", "all"):
        whole = read(coupling, split=split)
        part = read(coupling, split=split, limit=15)
        assert part.pair_id.tolist() == whole.pair_id[:15].tolist()
    assert len(read(coupling, split="held_out", limit=1000)) == 20
