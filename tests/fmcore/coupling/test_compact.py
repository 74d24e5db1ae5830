"""Compact couplings: the same sources, targets within a bound, fewer bytes, and hard errors."""

import json
from itertools import islice

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from pydantic import ValidationError

from fmcore.couple import Couple, couple
from fmcore.coupling import write as writing
from fmcore.coupling.checks import measure
from fmcore.coupling.compact import Store, record
from fmcore.coupling.noise import gaussian_noise
from fmcore.coupling.read import open_coupling, read
from fmcore.coupling.verify import verify
from fmcore.coupling.write import About, finish, is_whole, shard_name, table, write_shard
from fmcore.settings import ReflowError
from fmcore.solve.solver import Solver
from fmcore.train import Train, train
from fmcore.training.batches import batches
from fmcore.work.work import Work
from tests.chains import gaussian_data, scratch_model

DRAWN = Store(source=False)
HALF = Store(source=False, target="float16")
BYTES = Store(source=False, target="uint8", low=-8, high=8)
STORES = [DRAWN, HALF, BYTES, Store(target="float16"), Store(target="uint8", low=-8, high=8)]


def make(folder, store=DRAWN, *, pairs=200, shard=64, shape=(3,), mixed=False, **said):
    """Write a small coupling whose target is a function of its noise."""
    kind = "mixed" if mixed else "generated"
    about = About(
        kind=kind, shape=list(shape), pairs=pairs, seed=7, store=store.settled(image=False), **said
    )
    count = -(-pairs // shard)
    for index in range(count):
        ids = np.arange(index * shard, min((index + 1) * shard, pairs))
        source = gaussian_noise(7, ids, shape)
        target = 1.5 * source.tanh() + 1
        extra = None
        if mixed:
            extra = {"kind": np.where(ids % 3 == 0, "inverted", "generated")}
            source[ids % 3 == 0] = target[ids % 3 == 0] / 2  # what a solver would give
        gap = np.where(ids % 10, np.nan, 0.25).astype(np.float32)
        rows = table(about, ids, target, source, solver_gap=gap, extra=extra)
        write_shard(folder, index, rows)
    finish(folder, about, count)
    return folder


def bound(store, target):
    """Return the largest error of each number that the settings state."""
    if store.target == "float16":
        return target.abs() * 2.0**-11 + 2.0**-25
    if store.target == "uint8":
        return torch.full_like(target, (store.high - store.low) / 255 / 2 * 1.0001)
    return torch.zeros_like(target)


@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize("store", STORES, ids=str)
def test_sources_are_the_same_bytes_and_targets_within_the_bound(
    tmp_path, store, mixed, monkeypatch
):
    whole = read(open_coupling(make(tmp_path / "whole", Store(), mixed=mixed)))
    monkeypatch.setattr(writing, "ROW_GROUP_BYTES", 900)  # blocks of ten pairs
    folder = make(tmp_path / "compact", store, mixed=mixed)
    found = read(verify(folder))
    assert len(open_coupling(folder).groups) > 20
    assert torch.equal(found.source, whole.source)
    assert torch.equal(found.pair_id, whole.pair_id)
    assert bool(((found.target - whole.target).abs() <= bound(store, whole.target)).all())
    for split in ("train", "held_out"):
        some = read(open_coupling(folder), split=split, limit=7)
        rows = torch.isin(found.pair_id, some.pair_id)
        assert torch.equal(some.source, found.source[rows])


@pytest.mark.parametrize("mixed", [False, True])
def test_batches_of_windows_are_those_of_the_whole_coupling(tmp_path, mixed):
    whole = open_coupling(make(tmp_path / "whole", Store(), mixed=mixed))
    compact = open_coupling(make(tmp_path / "compact", mixed=mixed))
    small = dict(batch=10, seed=1, memory=6000)  # one shard a window
    for a, b in zip(*(islice(batches(c, **small), 40) for c in (whole, compact)), strict=True):
        assert torch.equal(a.source, b.source) and torch.equal(a.target, b.target)


def trained(tmp_path, folder):
    init = scratch_model(tmp_path / "init", dim=3)
    out = tmp_path / f"{folder.name}-out"
    work = Work(scratch=out / "scratch", seed=3)
    settings = Train(steps=40, batch=32, checkpoint_every=20, log_every=10)
    files = out / "model", out / "curve.csv", out / "metrics.json"
    train(folder, init, *files, settings, name="rf2", work=work)
    weights = (files[0] / "model.safetensors").read_bytes()
    return weights, json.loads(files[2].read_text())


def test_training_is_bit_for_bit_that_on_stored_sources(tmp_path):
    torch.set_num_threads(1)
    whole, said = trained(tmp_path, make(tmp_path / "whole", Store()))
    weights, drawn = trained(tmp_path, make(tmp_path / "drawn", DRAWN))
    assert weights == whole and drawn == said
    # The loss is quadratic in the targets, whose error is at most 2^-11 of them.
    _, half = trained(tmp_path, make(tmp_path / "half", HALF))
    assert half["loss"] == pytest.approx(said["loss"], rel=1e-3)
    assert half["held_out_loss"] == pytest.approx(said["held_out_loss"], rel=1e-3)
    assert half["loss"] != said["loss"]


def test_metrics_are_those_of_the_whole_coupling(tmp_path):
    data = gaussian_data(tmp_path / "data", mu=[1.0] * 3, s=[1.0] * 3, pairs=300)
    measured = {
        name: measure(make(tmp_path / name, store), data, open_coupling(tmp_path / name).about)
        for name, store in {"whole": Store(), "drawn": DRAWN, "bytes": BYTES}.items()
    }
    assert measured["drawn"] == measured["whole"]
    assert measured["bytes"].pop("target_clipped") == 0
    assert measured["bytes"]["solver_gap_rms"] == measured["whole"]["solver_gap_rms"]
    assert measured["bytes"]["transport_cost"] == pytest.approx(
        measured["whole"]["transport_cost"], rel=0.05
    )


@pytest.mark.parametrize(
    ("store", "expected"),
    [(Store(), 24576), (DRAWN, 12288), (HALF, 6144), (Store(source=False, target="uint8"), 3072)],
    ids=str,
)
def test_bytes_of_a_pair_of_cifar(tmp_path, store, expected):
    """A million pairs: 24.6 GB whole, 3.1 GB with noise drawn again and targets of a byte."""
    about = About(kind="generated", shape=[3, 32, 32], image=True, pairs=400, seed=1)
    about = about.model_copy(update={"store": store.settled(image=True)})
    ids = np.arange(400)
    noise = gaussian_noise(1, ids, (3, 32, 32))
    file = write_shard(tmp_path, 0, table(about, ids, noise.clamp(-1, 1), noise))
    size = file.stat().st_size / 400
    assert expected < size < expected * 1.01 + 40
    assert store.width(3072) == expected


def test_images_of_bytes_come_back_to_the_last_digit(tmp_path):
    levels = torch.arange(256)
    image = (levels / 127.5 - 1).reshape(1, 1, 16, 16)
    about = About(kind="generated", shape=[1, 16, 16], image=True, pairs=1, seed=7)
    store = Store(source=False, target="uint8")
    about = about.model_copy(update={"store": store.settled(image=True)})
    rows = table(about, np.arange(1), image, gaussian_noise(7, np.arange(1), (1, 16, 16)))
    found = torch.from_numpy(about.form.target(rows))
    assert torch.equal(((found + 1) * 127.5).round().int(), ((image + 1) * 127.5).round().int())
    torch.testing.assert_close(found, image, rtol=0, atol=2e-7)


def test_levels_are_in_the_units_of_the_data(tmp_path):
    """Feature 1 has a standard deviation of 100 in its own units, so levels lie 10 apart there."""
    scale = {"mean": [0.0, 5.0], "std": [1.0, 100.0]}
    store = Store(target="uint8", low=-1275, high=1275)
    folder = make(tmp_path / "c", store, shape=(2,), scale=scale)
    whole = read(open_coupling(make(tmp_path / "whole", Store(), shape=(2,), scale=scale)))
    error = (read(open_coupling(folder)).target - whole.target).abs().amax(0)
    assert 2 < float(error[0]) <= 5 and 0.02 < float(error[1]) <= 0.05001


def test_what_is_beyond_the_range_is_counted_and_becomes_its_end(tmp_path):
    folder = make(tmp_path / "c", Store(source=False, target="uint8", low=0, high=1))
    whole = read(open_coupling(make(tmp_path / "whole", Store()))).target
    found = read(open_coupling(folder)).target
    beyond = (whole < 0) | (whole > 1)
    assert torch.equal(found[beyond], whole.clamp(0, 1)[beyond].round())
    data = gaussian_data(tmp_path / "data", mu=[1.0] * 3, s=[1.0] * 3, pairs=300)
    share = measure(folder, data, open_coupling(folder).about)["target_clipped"]
    half = 0.5 / 255
    assert share == float(((whole < -half) | (whole > 1 + half)).double().mean())


def restated(folder, change):
    """Change the compact metadata of the first shard, as damage that no checksum sees would."""
    file = folder / shard_name(0)
    rows = pq.read_table(file)
    said = record(rows.schema.metadata)
    change(said)
    metadata = {**rows.schema.metadata, b"store": json.dumps(said).encode()}
    pq.write_table(rows.replace_schema_metadata(metadata), file, row_group_size=said["rows"])


@pytest.mark.parametrize("mixed", [False, True])
def test_other_noise_than_that_of_the_pairs_is_an_error_of_one_line(tmp_path, mixed, monkeypatch):
    folder = make(tmp_path / "c", mixed=mixed)
    about = open_coupling(folder).about
    real = gaussian_noise

    def of_another_numpy(seed, ids, shape):
        noise = real(seed, ids, shape)
        noise[-1, 0] += 1e-6
        return noise

    monkeypatch.setattr("fmcore.coupling.compact.gaussian_noise", of_another_numpy)
    opened = open_coupling(folder)
    for reads in (
        lambda: read(opened, limit=3),
        lambda: next(batches(opened, batch=8, seed=0)),
        lambda: verify(folder),
        lambda: measure(folder, folder, about),
    ):
        with pytest.raises(ReflowError, match="sources of pairs 0 to 63, drawn again") as error:
            reads()
        assert "\n" not in str(error.value)
    assert not is_whole(folder / shard_name(0), about, range(64))


def test_hashes_of_other_blocks_are_an_error_of_one_line(tmp_path):
    folder = make(tmp_path / "c")
    restated(folder, lambda said: said["sources"].update({"0": "0" * 64}))
    with pytest.raises(ReflowError, match="drawn again"):
        read(open_coupling(folder))
    restated(folder, lambda said: said.pop("sources"))
    with pytest.raises(ReflowError, match="do not begin where a block") as error:
        read(open_coupling(folder))
    assert "\n" not in str(error.value)


def test_a_shard_in_another_form_is_not_taken_for_one_of_the_coupling(tmp_path):
    folder, other = make(tmp_path / "c"), make(tmp_path / "other", HALF)
    (folder / shard_name(0)).write_bytes((other / shard_name(0)).read_bytes())
    with pytest.raises(ReflowError, match="column 'target' is fixed_size_binary.*3 floats a row"):
        read(open_coupling(folder))


def test_a_coupling_is_sampled_grown_and_resumed_in_compact_form(tmp_path):
    torch.set_num_threads(1)
    data = gaussian_data(tmp_path / "data", mu=[1.0, 0.0], s=[1.0, 2.0], pairs=90)
    model = scratch_model(tmp_path / "model", dim=2)

    def run(name, pairs, *earlier, store=HALF, **mix):
        settings = Couple(pairs=pairs, shard=64, solver=Solver(steps=3), store=store, **mix)
        given = [{p.name: p for p in folder.iterdir()} for folder in earlier]
        out, work = tmp_path / name, Work(scratch=tmp_path / f"{name}-scratch", seed=5)
        couple(model, data, out, tmp_path / f"{name}.json", settings, work, given)
        return {p.name: p.read_bytes() for p in out.iterdir()}

    small = run("small", 100)
    grown = run("grown", 200, tmp_path / "small")
    assert grown == run("fresh", 200) and grown[shard_name(0)] == small[shard_name(0)]
    run("whole", 200, store=Store())
    mix = {"generated": 0.5, "inverted": 0.5}
    pairs, expected = (read(open_coupling(tmp_path / n)) for n in ("grown", "whole"))
    assert torch.equal(pairs.source, expected.source)
    run("mixed", 200, store=DRAWN, mix=mix)
    run("mixed_whole", 200, store=Store(), mix=mix)
    pairs, expected = (read(verify(tmp_path / n)) for n in ("mixed", "mixed_whole"))
    assert torch.equal(pairs.source, expected.source)
    assert torch.equal(pairs.target, expected.target)
    with pytest.raises(ReflowError, match="store.source false needs generated pairs"):
        run("inverted", 200, store=DRAWN, mix={"inverted": 1.0})


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"target": "uint8", "low": 0.0}, "both low and high"),
        ({"target": "float16", "low": 0.0, "high": 1.0}, "are of uint8"),
        ({"target": "uint8", "low": 1.0, "high": 1.0}, "low is below"),
        ({"target": "int4"}, "float32"),
    ],
)
def test_settings_that_mean_nothing_are_refused(given, message):
    with pytest.raises(ValidationError, match=message):
        Store(**given)


def test_uint8_of_vectors_needs_a_range():
    with pytest.raises(ReflowError, match="needs store.low and store.high"):
        Store(target="uint8").settled(image=False)


def test_targets_beyond_float16_are_refused(tmp_path):
    about = About(kind="generated", shape=[1], pairs=2, seed=0, store=HALF.settled(image=False))
    with pytest.raises(ReflowError, match="holds numbers to 65,504, the largest.* is 7e"):
        table(about, np.arange(2), torch.tensor([[7e4], [0.0]]), torch.zeros(2, 1))
