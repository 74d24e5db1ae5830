"""States of paths come in with their pairs, go out with them, and train what learns pieces."""

import json
import pickle

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from pydantic import ValidationError

from fmcore import own
from fmcore.couple import Couple, couple
from fmcore.coupling.compact import Store
from fmcore.coupling.read import open_coupling, read
from fmcore.coupling.write import About, finish, table, write_shard
from fmcore.network.store import load
from fmcore.outside import agreement
from fmcore.outside.export import LAYOUTS, export
from fmcore.outside.imported import Imported, importer_of
from fmcore.outside.states import States, checked, even, places, settled
from fmcore.settings import ReflowError
from fmcore.solve.solver import Solver
from fmcore.train import Train, train
from fmcore.work.executor import Executor
from fmcore.work.work import Work
from tests.chains import scratch_model
from tests.fmcore.outside.layouts import READ, data, pairs, taken

QUARTERS = (0.75, 0.5, 0.25)


@pytest.fixture
def root(tmp_path):
    torch.set_num_threads(1)
    data(tmp_path)
    return tmp_path


def path(own, times=QUARTERS):
    """Return states [N, S, D] of curved paths, whose ends are those of the pairs."""
    t = np.array(times, np.float32)[:, None]
    source, target = own["source"][:, None], own["target"][:, None]
    return t * source + (1 - t) * target + t * (1 - t) * np.sin(3 * source)


def npz(root, **arrays):
    np.savez(root / "p.npz", **arrays)
    return {"kind": "npz", "path": str(root / "p.npz")}


def with_states(root, times=QUARTERS, **how):
    own = pairs()
    return npz(root, **own, path=path(own, times), **how) | {
        "states": {"name": "path", "times": list(times)}
    }


def refused(root, says, **how):
    with pytest.raises(ReflowError, match=says) as error:
        taken(root, **how)
    assert "\n" not in str(error.value) and len(str(error.value)) < 400
    assert not (root / "out").exists()


def sampled(root, name="rf1", pieces=4, **store):
    """Sample a coupling of a model that keeps the states of its solver."""
    if not (root / "model").exists():
        scratch_model(root / "model", dim=2)
    settings = Couple(
        pairs=100,
        shard=32,
        solver=Solver(name="heun", steps=8),
        store=Store(pieces=pieces, **store),
    )
    work = Work(scratch=root / f"{name}-scratch", seed=5)
    couple(root / "model", root / "data", root / name, root / f"{name}.json", settings, work)
    return root / name


def same(found, whole):
    names = ("target", "source", "trajectory", "pair_id")
    return all(torch.equal(getattr(found, n), getattr(whole, n)) for n in names)


def test_times_that_cut_a_path_into_pieces_of_one_length():
    assert even(1) == () and even(4) == QUARTERS
    assert places((1.0, 0.75, 0.5, 0.25, 0.0), 4) == [1, 2, 3]
    assert places(QUARTERS[::-1], 4) == [2, 1, 0] and places(QUARTERS, 2) == [1]
    assert places((0.6667, 0.3333), 3) == [0, 1]  # decimals are rounded
    assert settled(Store(), QUARTERS).pieces == 4 and settled(Store(), ()).pieces == 1
    assert settled(Store(), (0.9, 0.5, 0.2)).pieces == 2
    assert settled(Store(pieces=2), QUARTERS).pieces == 2
    assert settled(Store(pieces=1), QUARTERS).pieces == 1  # left out
    twice = settled(settled(Store(target="float16"), QUARTERS), QUARTERS)
    assert twice.pieces == 4 and twice.target == "float16"
    for store, times, says in (
        (Store(pieces=4), (0.5,), r"multiples of 1/4, the states of the pairs are at t = 0\.5;"),
        (Store(pieces=4), (), "are none, or none whose times are said"),
        (Store(), (0.937, 0.833, 0.624), "cut no path into pieces of one length"),
    ):
        with pytest.raises(ReflowError, match=says):
            settled(store, times)


@pytest.mark.parametrize("times", [[0.5, 0.5], [0.5, 0.75, 0.25], [1.2, 0.5], [1.0, 0.0], []])
def test_times_are_different_in_order_and_between_the_ends(times):
    with pytest.raises(ValidationError, match="expected|less than or equal to 1"):
        States(times=times)
    with pytest.raises(ReflowError, match="p: times: expected"):
        checked(np.array(times), "p")


@pytest.mark.parametrize("store", [{}, {"source": False, "target": "float16"}])
def test_a_coupling_of_another_project_brings_its_states(root, store):
    whole = read(open_coupling(sampled(root, **store)))
    found = taken(root, kind="reflow", path=str(root / "rf1"))
    assert whole.trajectory.shape == (100, 3, 2) and same(found, whole)
    about = open_coupling(root / "out").about
    assert about.form.store.pieces == 4 and about.origin["times"] == list(QUARTERS)
    half = taken(root, name="half", kind="reflow", path=str(root / "rf1"), store={"pieces": 2})
    assert torch.equal(half.trajectory, whole.trajectory[:, 1:2])
    ends = taken(root, name="ends", kind="reflow", path=str(root / "rf1"), store={"pieces": 1})
    assert ends.trajectory is None and torch.equal(ends.target, whole.target)
    with pytest.raises(ReflowError, match=r"multiples of 1/8.*are at t = 0\.75, 0\.5, 0\.25"):
        taken(root, name="x", kind="reflow", path=str(root / "rf1"), store={"pieces": 8})


@pytest.mark.parametrize("kind", LAYOUTS)
def test_states_go_out_and_come_in_again_the_same(root, kind):
    whole = read(open_coupling(sampled(root)))
    assert export(root / "rf1", root / "exported", kind) == 100
    said = json.loads((root / "exported/_origin.json").read_text())
    assert said["times"] == list(QUARTERS)
    assert same(taken(root, kind=kind, path=str(root / "exported")), whole)
    origin = open_coupling(root / "out").about.origin
    assert origin["states"].startswith("states") and origin["times"] == list(QUARTERS)


@pytest.mark.parametrize("kind", LAYOUTS)
def test_states_of_others_come_in_by_their_name(root, kind):
    """As FastGen and others keep them: from the noise on to the target, both ends among them."""
    own, times = pairs(), (1.0, 0.75, 0.5, 0.25, 0.0)
    arrays = {"real": own["target"], "path": path(own, times)}
    ending = ".npy" if kind == "webdataset" else ""
    how = {"kind": kind, "path": str(written(kind, root, arrays)), "target": f"real{ending}"}
    found = taken(root, **how, states={"name": "path", "times": list(times)})
    assert np.array_equal(found.target, own["target"])
    assert np.array_equal(found.source, path(own, (1.0,))[:, 0])  # the noise is in the path alone
    assert np.array_equal(found.trajectory, path(own))
    if kind == "npz":
        del how["target"]
        bare = taken(root, name="bare", **how, states={"name": "path", "times": list(times)})
        assert np.array_equal(bare.target, path(own, (0.0,))[:, 0])


def written(kind, root, arrays):
    """Write named arrays [N, ...] by the tools of others."""
    folder = root / "theirs"
    folder.mkdir()
    if kind in ("parquet", "datasets"):
        rows = {name: x.reshape(len(x), -1) for name, x in arrays.items()}  # flat, as is usual
        if kind == "parquet":
            pq.write_table(pa.table({n: list(x) for n, x in rows.items()}), folder / "a.parquet")
        else:
            import datasets

            datasets.Dataset.from_dict({n: x.tolist() for n, x in rows.items()}).save_to_disk(
                folder
            )
    elif kind == "npy":
        for name, x in {**arrays, "target": arrays["real"]}.items():
            np.save(folder / f"{name}.npy", x)
    elif kind == "npz":
        np.savez(folder / "a.npz", **arrays)
    elif kind == "safetensors":
        from safetensors.numpy import save_file

        save_file({n: np.ascontiguousarray(x) for n, x in arrays.items()}, folder / "a.safetensors")
    elif kind == "pt":
        for i in range(len(arrays["real"])):
            torch.save({n: torch.from_numpy(x[i]) for n, x in arrays.items()}, folder / f"{i}.pt")
    else:
        import webdataset

        with webdataset.TarWriter(str(folder / "a.tar")) as sink:
            for i in range(len(arrays["real"])):
                members = {f"{n}.npy": x[i] for n, x in arrays.items()}
                sink.write({"__key__": f"{i:06d}", **members})
    return folder


@pytest.mark.parametrize("kind", ["parquet", "datasets"])
def test_raw_bytes_with_columns_of_shape_and_type(root, kind):
    """As FastVideo writes trajectories: the ends are in them."""
    own, times = pairs(), (1.0, 0.75, 0.5, 0.25, 0.0)
    whole = path(own, times)
    name = "trajectory_latents"
    columns = {
        f"{name}_bytes": [x.tobytes() for x in whole],
        f"{name}_shape": [[5, 2]] * 120,
        f"{name}_dtype": ["float32"] * 120,
    }
    how = {"kind": kind, "path": str(root / "theirs")}
    how["states"] = {"name": f"{name}_bytes", "times": list(times)}

    def write(**change):
        (root / "theirs").mkdir(exist_ok=True)
        rows = pa.table({**columns, **change})
        if kind == "parquet":
            pq.write_table(rows, root / "theirs/a.parquet", row_group_size=50)
            return
        file = str(root / "theirs/a.arrow")
        with pa.OSFile(file, "wb") as sink, pa.ipc.new_stream(sink, rows.schema) as stream:
            stream.write_table(rows, max_chunksize=50)

    write()
    found = taken(root, **how)
    assert np.array_equal(found.trajectory, path(own))
    assert np.array_equal(found.source, whole[:, 0]) and np.array_equal(found.target, whole[:, -1])
    for column, value, says in (
        ("dtype", "bfloat16", r"40 bytes in a row, which are no bfloat16 of the shape \[5, 2\]"),
        ("shape", [5, 3], r"no float32 of the shape \[5, 3\]"),
    ):
        write(**{f"{name}_{column}": [value] * 120})
        with pytest.raises(ReflowError, match=says):
            taken(root, name="x", **how)


def test_a_student_learns_the_pieces_of_imported_paths(root):
    """To the bytes of one on the coupling itself: how states came here is no matter."""
    export(sampled(root), root / "exported", "safetensors")
    taken(root, kind="safetensors", path=str(root / "exported"))
    made = {}
    for name, pieces in (("rf1", 4), ("out", 4), ("ends", 1)):
        folder = root / ("out" if name == "ends" else name)
        paths = (root / f"s-{name}", root / f"{name}.csv", root / f"s-{name}.json")
        work = Work(scratch=root / f"s-{name}-scratch", seed=1)
        settings = Train(steps=30, batch=32, pieces=pieces)
        train(folder, root / "model", *paths, settings, name="s", work=work)
        made[name] = (paths[0] / "model.safetensors").read_bytes()
        assert load(paths[0]).config.get("pieces", 1) == pieces
    assert made["rf1"] == made["out"] != made["ends"]


def test_a_round_of_pieces_needs_states(root):
    taken(root, **npz(root, **pairs()))
    scratch_model(root / "model", dim=2)
    paths = (root / "s", root / "s.csv", root / "s.json")
    with pytest.raises(ReflowError, match="keeps 1 pieces of each path; make it again"):
        settings, work = Train(steps=3, batch=32, pieces=4), Work(scratch=root / "w")
        train(root / "out", root / "model", *paths, settings, name="s", work=work)


def test_compact_states_are_as_near_as_is_stated(root):
    found = taken(root, **with_states(root), store={"target": "float16"})
    whole = torch.from_numpy(path(pairs()))
    torch.testing.assert_close(found.trajectory, whole, rtol=2.0**-11, atol=2.0**-25)
    assert not torch.equal(found.trajectory, whole)


@pytest.mark.parametrize(
    "executor", ["processes:2", pytest.param("dask:1", marks=pytest.mark.slow)]
)
def test_workers_and_stopped_runs_give_the_same_bytes(root, executor):
    how = with_states(root)
    taken(root, **how)
    stopped = Work(scratch=root / "w", log=lambda _, done: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        taken(root, name="others", work=stopped, **how)
    logged = []
    work = Work(
        scratch=root / "w", executor=Executor.parse(executor), log=lambda _, n: logged.append(n)
    )
    taken(root, name="others", work=work, **how)
    assert logged[0] == 50 and logged[-1] == 120  # the first shard was there
    for file in (root / "out").iterdir():
        assert file.read_bytes() == (root / "others" / file.name).read_bytes()


@pytest.mark.parametrize("kind", [*LAYOUTS, "reflow"])
def test_what_is_sent_to_a_worker_has_states(root, kind):
    folder = sampled(root)
    if kind != "reflow":
        export(folder, root / "exported", kind)
        folder = root / "exported"
    how = READ.validate_python({"kind": kind, "path": str(folder)})
    here = importer_of(root / "data", Imported(of=how, shard=30).settled())
    sent = pickle.loads(pickle.dumps(here))
    assert [sent.shard(i) for i in (3, 0)] == [here.shard(i) for i in (3, 0)]
    assert "trajectory" in here.shard(1).column_names


def test_states_are_read_only_where_they_are_kept(root):
    importer = importer_of(
        root / "data",
        Imported(of=READ.validate_python(with_states(root)), store=Store(pieces=1)).settled(),
    )
    assert importer.rows.read(0, 5).states is None
    assert "trajectory" not in importer.shard(0).column_names


def test_other_times_are_another_coupling(root):
    taken(root, **with_states(root))
    own = pairs()
    how = npz(root, **own, path=path(own)) | {"states": {"name": "path", "times": [0.8, 0.5, 0.3]}}
    taken(root, name="b", **how)
    a, b = (open_coupling(root / n).about for n in ("out", "b"))
    assert a.form.store.pieces == 4 and b.form.store.pieces == 2 and a.origin != b.origin


def test_images_with_channels_last_turn_with_their_states(tmp_path):
    real = np.random.default_rng(0).standard_normal((20, 3, 4, 5), dtype=np.float32)
    about = About(kind="independent", shape=[3, 4, 5], image=True, pairs=20, seed=0)
    write_shard(tmp_path / "data", 0, table(about, np.arange(20), torch.from_numpy(real)))
    finish(tmp_path / "data", about, 1)
    own = {"target": real + 1, "source": np.flip(real, 0).copy()}
    t = np.array([0.5], np.float32)[:, None, None, None]
    states = (1 - t) * own["target"][:, None] + t * own["source"][:, None]
    turned = {n: np.moveaxis(x, 1, -1) for n, x in own.items()}
    how = npz(tmp_path, **turned, states=np.moveaxis(states, 2, -1), times=np.array([0.5]))
    found = taken(tmp_path, **how, channels_last=True)
    assert np.array_equal(found.trajectory, states) and np.array_equal(found.target, real + 1)


def test_units_of_states(root):
    """Noise is in units of the model, so states between it and targets in others are in none."""
    own, scale = pairs(), {"mean": [2.0, -1.0], "std": [2.0, 4.0]}
    about = About(kind="independent", shape=[2], pairs=60, seed=0, scale=scale)
    target = about.units.forward(torch.from_numpy(own["target"]))
    write_shard(root / "data", 0, table(about, np.arange(60), target[:60]))
    finish(root / "data", about, 1)
    refused(root, r"units of the noise: give.*import\.units: model", **with_states(root))
    mapped = {"target": target.numpy(), "source": own["source"]}
    how = npz(root, **mapped, states=path(mapped), times=np.array(QUARTERS))
    found = taken(root, **how, units="model")
    assert np.array_equal(found.trajectory, path(mapped))


def test_states_of_paths_from_real_samples_are_mapped_with_them(root):
    scale = {"mean": [2.0, -1.0], "std": [2.0, 4.0]}
    own = pairs()
    about = About(
        kind="independent", shape=[2], pairs=60, seed=0, scale=scale, source={"name": "some"}
    )
    ends = {n: about.units.forward(torch.from_numpy(x)) for n, x in own.items()}
    write_shard(root / "data", 0, table(about, np.arange(60), ends["target"][:60]))
    finish(root / "data", about, 1)
    of = about.model_copy(update={"source": None, "pairs": 60})
    write_shard(root / "data/_source", 0, table(of, np.arange(60), ends["source"][:60]))
    finish(root / "data/_source", of, 1)
    found = taken(root, **with_states(root))
    wanted = about.units.forward(torch.from_numpy(path(own)[:, 1]))
    torch.testing.assert_close(found.trajectory[:, 1], wanted)


def test_states_without_times(root):
    own = pairs()
    how = npz(root, **own, path=path(own))
    refused(root, r"at which times its 'path' are; give import\.states\.times", **how,
            states={"name": "path"})  # fmt: skip
    refused(root, "none whose times are said", **how, store={"pieces": 4})
    assert taken(root, name="plain", **npz(root, **own, states=path(own))).trajectory is None


def test_states_of_another_count_shape_or_kind(root):
    own = pairs()
    how = npz(root, **own, path=path(own))
    for times, says in (
        ([0.5], r"the states of a pair have the shape \[3, 2\], their times are 1: \[0\.5\]"),
        ([0.8, 0.6, 0.4, 0.2], r"shape \[3, 2\], their times are 4"),
        ([0.9, 0.8, 0.7], "cut no path into pieces"),
    ):
        refused(root, says, **how, states={"name": "path", "times": times})
    asked = {"states": {"name": "path", "times": list(QUARTERS)}}
    wide = np.zeros((120, 3, 5), np.float32)
    refused(root, r"states of a pair has the shape \[5\]", **npz(root, **own, path=wide), **asked)
    whole = np.zeros((120, 3, 2), np.uint8)
    refused(root, "states hold uint8, expected floats", **npz(root, **own, path=whole), **asked)
    refused(root, "has no 'none'; it has: target, source", **npz(root, **own),
            states={"name": "none", "times": [0.5]})  # fmt: skip


def test_states_that_are_not_finite(root):
    own = pairs()
    broken = path(own)
    broken[70, 1, 0] = np.nan
    how = npz(root, **own, states=broken, times=np.array(QUARTERS))
    refused(root, r"states of pair 70 is not finite \(1 of 120", **how)


def test_states_of_some_parts_only(root):
    export(sampled(root), root / "exported", "npz")
    file = root / "exported/pairs-00002-of-00004.npz"
    held = dict(np.load(file))
    np.savez(file, **{name: x for name, x in held.items() if name != "states"})
    how = {"kind": "npz", "path": str(root / "exported")}
    refused(root, "pairs-00002-of-00004.npz: has no 'states', the files before have one", **how)
    np.savez(file, **{**held, "times": np.array([0.7, 0.5, 0.25])})
    refused(root, "all pairs need the same", **how)
    export(root / "rf1", root / "pt", "pt")
    torch.save(torch.load(root / "pt/00.pt") | {"states": torch.zeros(3)}, root / "pt/00.pt")
    refused(root, "00.pt|01.pt", kind="pt", path=str(root / "pt"))
    rows = torch.load(root / "pt/41.pt")
    del rows["states"]
    export(root / "rf1", root / "pt2", "pt")
    torch.save(rows, root / "pt2/41.pt")
    refused(root, "41.pt: has no 'states'", kind="pt", path=str(root / "pt2"))
    for file in (root / "exported").glob("*.npz"):
        np.savez(file, **{n: x for n, x in dict(np.load(file)).items() if n != "states"})
    refused(root, "has no 'states', of which the file beside it says the times", **how)


def test_states_that_are_on_no_path_between_their_ends(root):
    own = pairs()
    asked = {"states": {"name": "path", "times": list(QUARTERS)}}
    backwards = path(own)[:, ::-1].copy()
    refused(root, r"turn import\.states\.times round", **npz(root, **own, path=backwards), **asked)
    upwards = {"states": {"name": "path", "times": list(QUARTERS[::-1])}}
    found = taken(root, name="up", **npz(root, **own, path=backwards), **upwards)
    assert np.array_equal(found.trajectory, path(own))
    apart = {"target": np.roll(own["target"], 40, axis=0), "source": own["source"]}
    others = np.roll(path(apart), 1, axis=0)
    refused(root, "are they of other pairs", **npz(root, **apart, path=others), **asked)
    scaled = 6 * path(apart)
    refused(root, "or in other units", **npz(root, **apart, path=scaled), **asked)
    taken(root, name="right", **npz(root, **apart, path=path(apart)), **asked)
    times = (1.0, 0.75, 0.5, 0.25, 0.0)
    shifted = path(own, times) + 0.5
    ends = {"states": {"name": "path", "times": list(times)}}
    refused(root, r"at t = 0 are not the target", **npz(root, **own, path=shifted), **ends)


@pytest.mark.parametrize("far", [0.0, 50.0])
@pytest.mark.parametrize("spread", [1e-3, 1.0, 10.0])
def test_the_most_curved_paths_are_paths(far, spread):
    """x(t) = cos(t pi / 2) x(0) + sin(t pi / 2) x(1), the arcs of a diffusion."""
    draw = torch.Generator().manual_seed(0)
    source = torch.randn(256, 2, generator=draw)
    target = far + spread * torch.randn(256, 2, generator=draw)
    times = (1.0, 0.9, 0.75, 0.5, 0.25, 0.1, 0.0)
    angles = [torch.tensor(t * torch.pi / 2) for t in times]
    states = torch.stack([a.cos() * target + a.sin() * source for a in angles], 1)
    agreement.of_states(states, times, target, source)
    with pytest.raises(ReflowError, match="of other pairs"):
        agreement.of_states(states.roll(1, 0), times, target, source)


CODE = """
import torch
from fmcore.coupling.noise import gaussian_noise
from fmcore.outside.own import OwnPairs

class Teacher(OwnPairs):
    label: bool = False
    def times(self):
        return (0.75, 0.5, 0.25)
    def pairs(self, ids):
        z = gaussian_noise(7, ids, (2,))
        x = z + torch.tensor([2.0, -1.0])
        path = torch.stack([t * z + (1 - t) * x for t in self.times()], 1)
        return (x, z, torch.from_numpy(ids % 3), path) if self.label else (x, z, path)

class Without(Teacher):
    def pairs(self, ids):
        return super().pairs(ids)[:2]

class Never(Teacher):
    def times(self):
        return None

class Drifts(Teacher):
    def pairs(self, ids):
        x, z, path = super().pairs(ids)
        return x, z, path + len(ids)
"""


def test_a_class_of_ones_own_gives_states(root):
    (root / "teachers.py").write_text(CODE)
    own.trust(root, [f"teachers:{name}" for name in ("Teacher", "Without", "Drifts", "Never")])
    how = {"kind": "custom", "path": "teachers:Teacher", "pairs": 120}
    found = taken(root, **how)
    between = 0.25 * found.source + 0.75 * found.target
    torch.testing.assert_close(found.trajectory[:, 2], between)
    assert found.label is None
    labelled = taken(root, name="labelled", **how, settings={"label": True})
    assert labelled.label.tolist() == [i % 3 for i in range(120)]
    assert torch.equal(labelled.trajectory, found.trajectory)
    for name, says in (
        ("Without", r"and states \[3, 3, \*D\], got \[\[3, 2\], \[3, 2\]\]"),
        ("Never", "Never: times: expected numbers, got None"),
        ("Drifts", "the states of pair 1 is another one"),
    ):
        with pytest.raises(ReflowError, match=says):
            taken(root, name="x", **how | {"path": f"teachers:{name}"})
