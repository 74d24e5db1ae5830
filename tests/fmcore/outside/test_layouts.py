"""Every layout comes in as it is, and goes out so that it comes in again."""

import itertools
import pickle
import tracemalloc

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from fmcore.coupling.noise import identities, is_held_out
from fmcore.coupling.read import open_coupling
from fmcore.outside import tables
from fmcore.outside.export import LAYOUTS, export
from fmcore.outside.imported import Imported, importer_of
from fmcore.settings import ReflowError
from fmcore.work.executor import Executor
from fmcore.work.work import Work
from tests.fmcore.outside.layouts import READ, data, pairs, taken, write


@pytest.fixture
def root(tmp_path):
    torch.set_num_threads(1)
    data(tmp_path)
    return tmp_path


def equal(found, own):
    return all(np.array_equal(getattr(found, side), own[side]) for side in ("target", "source"))


@pytest.mark.parametrize("kind", LAYOUTS)
def test_what_other_tools_write_comes_in_as_it_is(root, kind):
    own = pairs()
    found = taken(root, kind=kind, path=str(write(kind, root, own)))
    assert equal(found, own) and len(found) == 120
    about = open_coupling(root / "out").about
    assert about.kind == "imported" and about.origin["kind"] == kind and about.origin["digest"]


@pytest.mark.parametrize("kind", LAYOUTS)
def test_what_is_exported_comes_in_again_equal(root, kind):
    own = pairs()
    np.savez(root / "in.npz", **own, label=np.arange(120) % 3)
    first = taken(root, name="first", kind="npz", path=str(root / "in.npz"))
    assert export(root / "first", root / "exported", kind) == 120
    again = taken(root, kind=kind, path=str(root / "exported"))
    assert equal(again, own) and torch.equal(again.label, first.label)
    assert open_coupling(root / "out").about.origin["stated"]["pairs"] == 120


def test_others_read_what_is_exported(root):
    own = pairs()
    taken(root, name="first", kind="npy", path=str(write("npy", root, own)))
    for kind in ("datasets", "webdataset"):
        export(root / "first", root / f"to-{kind}", kind)
    import datasets
    import webdataset

    rows = datasets.load_from_disk(root / "to-datasets")
    assert np.array_equal(np.array(rows["source"], np.float32), own["source"])
    shard = str(root / "to-webdataset/pairs-000000.tar")
    row = next(iter(webdataset.WebDataset(shard, shardshuffle=False).decode()))
    assert np.array_equal(row["target.npy"], own["target"][0])


@pytest.mark.parametrize(
    "executor", ["processes:2", pytest.param("dask:1", marks=pytest.mark.slow)]
)
def test_workers_give_the_same_bytes(root, executor):
    how = {"kind": "webdataset", "path": str(write("webdataset", root, pairs()))}
    taken(root, **how)
    work = Work(scratch=root / "w", executor=Executor.parse(executor))
    taken(root, name="others", work=work, **how)
    for file in (root / "out").iterdir():
        assert file.read_bytes() == (root / "others" / file.name).read_bytes()


@pytest.mark.parametrize("kind", [*LAYOUTS, "reflow"])
def test_what_is_sent_to_a_worker_makes_the_same_shards(root, kind):
    """Executors differ in how they send it: what they send is this."""
    how = {"kind": kind, "path": str(root / "out")}
    if kind == "reflow":
        taken(root, kind="npz", path=str(write("npz", root, pairs())))
    else:
        how["path"] = str(write(kind, root, pairs()))
    here = importer_of(root / "data", Imported(of=READ.validate_python(how), shard=50).settled())
    sent = pickle.loads(pickle.dumps(here))
    assert [sent.shard(i) for i in (2, 0)] == [here.shard(i) for i in (2, 0)]


def test_an_import_goes_on_where_it_was_stopped(root):
    how = {"kind": "npz", "path": str(write("npz", root, pairs()))}
    work = Work(scratch=root / "w", log=lambda _, done: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        taken(root, work=work, **how)
    logged = []
    work = Work(scratch=root / "w", log=lambda _, done: logged.append(done))
    assert equal(taken(root, work=work, **how), pairs())
    assert logged == [50, 100, 120]  # the first shard was there


def test_rows_are_read_in_blocks_not_all_at_once(root, monkeypatch):
    """A Parquet file of one row group, ten times as large as what may be in memory."""
    count, size = 20000, 64
    noise = np.random.default_rng(0).standard_normal((count, size), dtype=np.float32)
    column = pa.FixedSizeListArray.from_arrays(pa.array(noise.reshape(-1)), size)
    rows = pa.table({"target": column, "source": column})
    pq.write_table(rows, root / "p.parquet", row_group_size=count)
    del rows, column
    monkeypatch.setattr(tables, "BLOCK_BYTES", 1 << 16)
    piece = tables.ParquetPiece(root / "p.parquet")
    before = pa.total_allocated_bytes()
    peak = 0
    tracemalloc.start()
    for first in range(0, count, 500):
        part = piece.read(["target"], first, first + 500)
        assert np.array_equal(part["target"], noise[first : first + 500])
        peak = max(peak, pa.total_allocated_bytes() - before)
    _, python = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak + python < noise.nbytes / 4


def test_a_shard_reads_its_own_files_alone(root, monkeypatch):
    how = {"kind": "pt", "path": str(write("pt", root, pairs(40)))}
    read, load = [], torch.load
    monkeypatch.setattr(torch, "load", lambda file, **k: read.append(str(file)) or load(file, **k))
    taken(root, shard=10, pairs=20, **how)
    assert {f.rpartition("_")[2] for f in read} == {f"{i}.pt" for i in range(20)}


def test_images_of_bytes_with_channels_last(tmp_path):
    from fmcore.coupling.noise import gaussian_noise
    from fmcore.coupling.write import About, finish, table, write_shard

    images = np.random.default_rng(0).integers(0, 256, (20, 4, 5, 3), dtype=np.uint8)
    own = torch.from_numpy(images).movedim(-1, 1).float() / 127.5 - 1
    about = About(kind="independent", shape=[3, 4, 5], image=True, pairs=20, seed=0)
    write_shard(tmp_path / "data", 0, table(about, np.arange(20), own.contiguous()))
    finish(tmp_path / "data", about, 1)
    noise = gaussian_noise(0, np.arange(20), (4, 5, 3)).numpy()
    np.savez(tmp_path / "p.npz", target=images, source=noise)
    how = {"kind": "npz", "path": str(tmp_path / "p.npz"), "channels_last": True}
    found = taken(tmp_path, **how, range=[-1.0, 1.0], real="target")
    assert torch.equal(found.target, own)
    assert torch.equal(found.source, torch.from_numpy(noise).movedim(-1, 1))
    # a real target is held out of every coupling, or of none
    assert np.array_equal(found.real_id, identities(own))
    assert np.array_equal(found.held_out, is_held_out(np.arange(20), identities(own)))
    with pytest.raises(ReflowError, match=r"bytes: give import\.range"):
        taken(tmp_path, name="x", **how)


def test_targets_are_mapped_into_the_units_of_the_model(root):
    from fmcore.coupling.write import About, finish, table, write_shard

    own, scale = pairs(), {"mean": [2.0, -1.0], "std": [2.0, 4.0]}
    about = About(kind="independent", shape=[2], pairs=60, seed=0, scale=scale)
    target = about.units.forward(torch.from_numpy(own["target"]))
    write_shard(root / "data", 0, table(about, np.arange(60), target[:60]))
    finish(root / "data", about, 1)
    found = taken(root, kind="npz", path=str(write("npz", root, own)))
    assert torch.equal(found.target, target) and np.array_equal(found.source, own["source"])
    export(root / "out", root / "exported", "safetensors")  # in model units, and it says so
    again = taken(root, name="again", kind="safetensors", path=str(root / "exported"))
    assert torch.equal(again.target, target)
    (file,) = (root / "exported").glob("pairs-00000-*")  # one of its files alone says it too
    some = taken(root, name="some", kind="safetensors", path=str(file))
    assert torch.equal(some.target, target[: len(some)]) and len(some) < 120


@pytest.mark.parametrize("units", ["own", "model", "scaled back", "float16"])
@pytest.mark.parametrize("shape", [(2,), (3, 4, 5)])
def test_real_samples_are_held_out_in_whichever_units_they_come(tmp_path, units, shape):
    from fmcore.coupling.write import About, finish, table, write_shard

    draw = np.random.default_rng(0)
    own = torch.from_numpy(draw.normal(7.3, 2.7, (200, *shape)).astype(np.float32))
    scale = {"mean": [7.3], "std": [2.7]}
    about = About(kind="independent", shape=list(shape), pairs=200, seed=0, scale=scale)
    target, known = about.units.forward(own), identities(own)
    write_shard(tmp_path / "data", 0, table(about, np.arange(200), target, real_id=known))
    finish(tmp_path / "data", about, 1)
    given = {
        "own": own, "model": target, "scaled back": about.units.inverse(target),
        "float16": target.half().float(),
    }[units]  # fmt: skip
    made = torch.from_numpy(draw.normal(0, 1, (50, *shape)).astype(np.float32)) + 20
    noise = draw.standard_normal((250, *shape), dtype=np.float32)
    np.savez(tmp_path / "p.npz", target=torch.cat([given.flip(0), made]).numpy(), source=noise)
    how = {"kind": "npz", "path": str(tmp_path / "p.npz"), "real": "target"}
    said = "data" if units in ("own", "scaled back") else "model"
    found = taken(tmp_path, **how, units=said)
    assert np.array_equal(found.real_id[:200].flip(0), known)
    assert np.array_equal(found.real_id[200:], identities(made))  # made, or of other data
    of = READ.validate_python({**how, "units": said})
    here = importer_of(tmp_path / "data", Imported(of=of, shard=50).settled())
    assert pickle.loads(pickle.dumps(here)).shard(2) == here.shard(2)  # as a worker gets it


def test_names_say_which_end_is_which(root):
    own = pairs()
    for at, names in ((1, ("x0", "x1")), (0, ("x1", "x0"))):
        folder = root / f"at{at}"
        folder.mkdir()
        path = str(write("npz", folder, own, names))
        assert equal(taken(root, name=f"o{at}", kind="npz", path=path, source_at=at), own)
    with pytest.raises(ReflowError, match=r"half of public code.*give import\.source_at"):
        taken(root, name="x", kind="npz", path=path)


def test_guidance_in_the_pairs_is_recorded(root):
    taken(root, kind="npz", path=str(write("npz", root, pairs())), guidance=2.0)
    about = open_coupling(root / "out").about
    assert about.guidance == about.guided == 2.0


@pytest.mark.parametrize(("name", "value"), [("target", "source"), ("seed", 1)])
def test_another_origin_keeps_no_shard(root, name, value):
    """What a layout says of its teacher is part of the coupling's identity."""
    own, path = pairs(), write("npz", root, pairs())
    taken(root, kind="npz", path=str(path))
    if name == "seed":
        (path / "metadata.json").write_text('{"teacher": "a", "seed": 1}')
        taken(root, name="b", kind="npz", path=str(path))
    else:
        np.savez(path / "0-of-2.npz", target=own["target"][:60] + 1, source=own["source"][:60])
        taken(root, name="b", kind="npz", path=str(path))
    a, b = (open_coupling(root / n).about.in_shard for n in ("out", "b"))
    assert a != b
    assert all(
        x["sha256"] != y["sha256"]
        for x, y in itertools.product(
            open_coupling(root / "out").shards, open_coupling(root / "b").shards
        )
    )
