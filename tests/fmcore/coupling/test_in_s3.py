"""Couplings read in place from S3 (a server on loopback): the same pairs, a bounded cache."""

import json
import os
import shutil
import threading
from itertools import islice

import boto3
import numpy as np
import pytest
import torch

import fmcore
from fmcore.checked import sealed
from fmcore.couple import couple
from fmcore.coupling.manifest import POINTER
from fmcore.coupling.noise import gaussian_noise
from fmcore.coupling.read import labels, open_coupling, read
from fmcore.coupling.verify import verify
from fmcore.coupling.write import About, finish, table, write_shard
from fmcore.outside.imported import Imported
from fmcore.outside.kinds import Chain
from fmcore.settings import ReflowError
from fmcore.train import Train, train
from fmcore.training.batches import batches
from fmcore.work.work import Work
from tests import s3
from tests.chains import gaussian_data, scratch_model

SHARDS, ROWS = 12, 200


@pytest.fixture(scope="module")
def server():
    with s3.serving() as serving:
        yield serving


@pytest.fixture
def lab(server, tmp_path, monkeypatch):
    """The person who may use the bucket, in a folder of their own, with a cache of 1 MB."""
    for name, value in server.env().items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_ENDPOINT_URL", server.url)
    monkeypatch.setenv("REFLOW_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("REFLOW_CACHE_MB", "1")
    return server


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A coupling of 3.9 MB in twelve shards."""
    folder = tmp_path_factory.mktemp("whole") / "rf1"
    about = About(kind="generated", shape=[200], pairs=SHARDS * ROWS, seed=7)
    for index in range(SHARDS):
        ids = np.arange(index * ROWS, (index + 1) * ROWS)
        source = gaussian_noise(7, ids, (200,))
        rows = table(about, ids, 0.5 * source + 1, source, torch.from_numpy(ids % 3))
        write_shard(folder, index, rows)
    finish(folder, about, SHARDS)
    return folder


@pytest.fixture
def url(whole, lab):
    """The coupling in the bucket."""
    client = boto3.client("s3", endpoint_url=lab.url, region_name="us-east-1")
    for file in whole.iterdir():
        client.upload_file(str(file), s3.BUCKET, f"shared/rf1/{file.name}")
    return f"s3://{s3.BUCKET}/shared/rf1"


def used(folder):
    """Return the bytes of a folder's files."""
    sizes = []
    for file in folder.glob("*"):
        try:
            sizes.append(file.stat().st_size)
        except FileNotFoundError:
            continue
    return sum(sizes)


@pytest.fixture
def watched(tmp_path):
    """The most bytes that the cache had while the test ran, looked at every millisecond."""
    seen, ended = [0], threading.Event()

    def watch():
        while not ended.wait(0.001):
            seen.append(used(tmp_path / "cache"))

    thread = threading.Thread(target=watch)
    thread.start()
    yield seen
    ended.set()
    thread.join()


def test_the_same_pairs_within_the_bound(whole, url, watched, tmp_path):
    here, there = open_coupling(whole), open_coupling(url)
    assert used(tmp_path / "cache") == 0, "opening fetches the manifest alone"
    assert torch.equal(labels(here), labels(there))
    assert used(tmp_path / "cache") == 0, "a column is read in place"
    for given in ({}, {"split": "held_out"}, {"split": "train", "limit": 450}):
        a, b = read(here, **given), fmcore.read_coupling(url, **given)
        assert torch.equal(a.target, b.target) and torch.equal(a.source, b.source)
    small = dict(batch=50, seed=1, memory=700_000)  # two shards a window
    for a, b in zip(*(islice(batches(c, **small), 90) for c in (here, there)), strict=True):
        assert torch.equal(a.source, b.source) and torch.equal(a.pair_id, b.pair_id)
    assert sum(f.stat().st_size for f in whole.iterdir()) > 3.8e6
    assert 600_000 < max(watched) <= 1_000_000


def pointed(folder, whole, url, endpoint, **change):
    """Write a folder with the manifest and the places of the shards, under names of their own."""
    folder.mkdir()
    shutil.copy(whole / "_manifest.json", folder)
    files = {file.name: f"rf1/{file.name}" for file in whole.iterdir()}
    said = {"url": url.removesuffix("/rf1"), "endpoint": endpoint, "files": files, **change}
    (folder / POINTER).write_text(json.dumps(sealed(said)))
    return folder


def trained(tmp_path, folder, name):
    init = scratch_model(tmp_path / "init", dim=200)
    out, settings = tmp_path / name, Train(steps=30, batch=64, memory_mb=1, checkpoint_every=10)
    files = out / "model", out / "curve.csv", out / "metrics.json"
    train(folder, init, *files, settings, name="rf2", work=Work(scratch=out / "scratch"))
    return [file.read_bytes() for file in (files[0] / "model.safetensors", *files[1:])]


def test_training_reads_in_place_and_gives_the_same_bytes(whole, url, lab, watched, tmp_path):
    torch.set_num_threads(1)
    folder = pointed(tmp_path / "rf1", whole, url, lab.url)
    os.environ.pop("AWS_ENDPOINT_URL")  # the folder says where
    assert trained(tmp_path, folder, "in_place") == trained(tmp_path, whole, "local")
    assert 600_000 < max(watched) <= 1_000_000
    assert used(folder) < 10_000
    with pytest.raises(ReflowError, match="its shards are in S3"):
        verify(folder)


def test_a_shard_that_arrives_damaged_is_refused(whole, url, lab):
    client = boto3.client("s3", endpoint_url=lab.url, region_name="us-east-1")
    content = bytearray((whole / "part-00001.parquet").read_bytes())
    content[1000] ^= 1
    client.put_object(Bucket=s3.BUCKET, Key="shared/rf1/part-00001.parquet", Body=bytes(content))
    with pytest.raises(ReflowError, match="part-00001.parquet arrived damaged") as error:
        read(open_coupling(url))
    assert "\n" not in str(error.value)
    assert len(read(open_coupling(url), limit=ROWS)) == ROWS, "the first one is whole"


@pytest.mark.parametrize("damage", ["cut short", "a flipped bit"])
def test_a_shard_that_is_damaged_in_the_cache_is_fetched_again(whole, url, tmp_path, damage):
    pairs = read(open_coupling(url), limit=ROWS)
    whole_bytes = (whole / "part-00000.parquet").read_bytes()
    cached = [f for f in (tmp_path / "cache").iterdir() if f.is_file()]
    [file] = [f for f in cached if f.read_bytes() == whole_bytes]  # the next may be there too
    content = bytearray(whole_bytes)
    content[len(content) // 2] ^= 1
    file.write_bytes(content[: len(content) // 2] if damage == "cut short" else content)
    assert torch.equal(read(open_coupling(url), limit=ROWS).target, pairs.target)
    assert file.read_bytes() == whole_bytes


def test_what_goes_wrong_is_one_line(whole, url, lab, monkeypatch, tmp_path):
    def said(match, path=url):
        with pytest.raises(ReflowError, match=match) as error:
            read(open_coupling(path))
        assert "\n" not in str(error.value)

    said("nothing/_manifest|_manifest.json cannot be fetched", f"s3://{s3.BUCKET}/nothing")
    said("no file part-00000.parquet is named", pointed(
        tmp_path / "few", whole, url, lab.url, files={"other": "other"}
    ))  # fmt: skip
    opened = open_coupling(url)
    opened.shards[0]["sha256"] = "../rf1"
    with pytest.raises(ReflowError, match="no sha256 of part-00000.parquet"):
        read(opened)
    monkeypatch.setenv("REFLOW_CACHE_MB", "0")
    said("REFLOW_CACHE_MB: expected megabytes")
    monkeypatch.setenv("REFLOW_CACHE_MB", "1")
    monkeypatch.setattr("fmcore.coupling.remote._most", lambda: 1000)
    said("a shard has 0 MB, the cache 0; raise REFLOW_CACHE_MB")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "nothing")
    said("_manifest.json cannot be fetched .*check the endpoint")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    said("_manifest.json cannot be fetched")


def test_a_coupling_in_s3_comes_in_as_one_of_another_chain(url, whole, lab, tmp_path):
    """`couplings.<name>.import: {kind: reflow, path: s3://...}`, shard by shard."""
    data = gaussian_data(tmp_path / "data", mu=[0.0] * 200, s=[1.0] * 200, pairs=50)
    bucket = url.removesuffix("/rf1")
    client = boto3.client("s3", endpoint_url=lab.url, region_name="us-east-1")
    for file in whole.iterdir():
        client.upload_file(str(file), s3.BUCKET, f"shared/couplings/rf1/{file.name}")
    of = Chain(kind="reflow", path=bucket, coupling="rf1")
    settings = Imported(of=of, pairs=1000, shard=300).settled()
    out, work = tmp_path / "out", Work(scratch=tmp_path / "scratch")
    couple(tmp_path, data, out, tmp_path / "m.json", settings, work)
    verify(out)
    ours, theirs = read(open_coupling(out)), read(open_coupling(whole))
    assert len(ours) == 1000
    assert torch.equal(ours.target, theirs.target[:1000])
    assert torch.equal(ours.source, theirs.source[:1000])
    with pytest.raises(ReflowError, match="no-such") as error:
        Imported(of=Chain(kind="reflow", path=f"{bucket}/no-such"), shard=300).settled()
    assert "\n" not in str(error.value)
