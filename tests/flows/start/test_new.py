"""`reflow new`: what it chooses for which data, and what it says of data that cannot be used."""

import dataclasses

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

import flows.start.choose
from flows.cli.main import app
from flows.params.load import load
from flows.start.choose import sections
from flows.start.look import Seen
from flows.start.new import HEAD, Source, _text, new
from fmcore.calibrate import calibrate
from fmcore.dataset.samples import Samples
from fmcore.dataset.summary import summary
from fmcore.initialise import initialise
from fmcore.prepare import prepare
from fmcore.settings import ReflowError
from fmcore.work.work import Work


@pytest.fixture
def root(tmp_path, monkeypatch):
    root = tmp_path / "project"
    (root / "data").mkdir(parents=True)
    for name in ("dvc.yaml", "params.yaml"):
        (root / name).write_text("{}\n")
    monkeypatch.chdir(root)
    monkeypatch.setenv("COLUMNS", "300")
    return root


def pictures(folder, count=50, size=(8, 8), mode="L", seed=0):
    draw = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    shape = (size[1], size[0]) + ((3,) if mode == "RGB" else ())
    for i in range(count):
        pixels = draw.integers(256, size=shape, dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")


def table(path, count=200, **more):
    draw = np.random.default_rng(0)
    columns = {f"f{i}": draw.normal(100 * i, 10, count) for i in range(12)}
    pd.DataFrame({**columns, **more}).to_parquet(path, index=False)


def written(root, source, gpu=False):
    file, _ = new(root, "mine", source, gpu=gpu, force=False)
    return load(file, root), file.read_text()


def test_a_wide_table_becomes_features_of_unit_scale(root):
    table(root / "data/t.parquet", kind=["a", "b"] * 100, id=range(200))
    params, text = written(root, Source(parquet=root / "data/t.parquet"))
    assert params.data.columns == [f"f{i}" for i in range(12)] and params.data.label == "kind"
    assert "12 columns of numbers, one feature each; left out: id" in text
    assert params.data.scale.name == "standardise" and "means of up to" in text
    assert params.data.path == "data/t.parquet"
    assert params.yardstick.samples == 100 and params.yardstick.features.kind == "identity"


def test_two_dimensions_near_the_noise_need_no_scale(root):
    np.save("data/x.npy", np.random.default_rng(0).normal(size=(3000, 2)).astype(np.float32))
    params, text = written(root, Source(array=root / "data/x.npy"))
    assert params.data.scale.name == "none" and params.network.width == 64
    assert params.compute.threads == 1 and "too small to gain by more" in text


def test_a_file_outside_of_the_project_is_named_in_full(root, tmp_path):
    np.save(tmp_path / "a b: c.npy", np.random.default_rng(0).normal(size=(60, 30)))
    params, text = written(root, Source(array=tmp_path / "a b: c.npy"))
    assert params.data.path == str(tmp_path / "a b: c.npy") and "outside of the project" in text


def test_a_constant_column_beside_others_is_said(root):
    table(root / "data/t.parquet", still=7.0)
    params, text = written(root, Source(parquet=root / "data/t.parquet"))
    assert "still" in params.data.columns and "1 of them constant" in " ".join(text.split())


def test_small_gray_images_are_for_an_mlp(root):
    pictures(root / "data/small")
    params, text = written(root, Source(images=root / "data/small"))
    assert params.network.name == "residual_mlp" and params.data.resize is None
    assert params.data.mode == "gray" and "50 of 50 files are gray" in text


def test_photos_of_several_sizes_are_brought_to_one(root):
    pictures(root / "data/pets/cat", 30, (50, 40), "RGB")
    pictures(root / "data/pets/dog", 30, (90, 64), "RGB", seed=1)
    params, text = written(root, Source(images=root / "data/pets"))
    assert (params.data.resize, params.data.crop, params.data.mode) == (32, "centre", "rgb")
    assert params.network.name == "unet" and params.yardstick.features.kind == "classifier"
    assert "50 to 90 wide and 40 to 64 high" in text and "2 classes of 30 samples" in text
    assert all(len(line) <= 100 for line in text.splitlines() if "  # " in line)


def test_a_photo_that_was_held_upright_counts_as_it_is_seen(root):
    pictures(root / "data/pets", 49, (50, 40), "RGB")
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (40, 50)).save(root / "data/pets/held.jpg", exif=exif)
    _, text = written(root, Source(images=root / "data/pets"))
    assert "50 wide and 40 high" in text


def test_few_samples_of_a_class_train_no_classifier(root, monkeypatch):
    pictures(root / "data/pets/cat", 45, (32, 32), "RGB")
    pictures(root / "data/pets/dog", 5, (32, 32), "RGB", seed=1)
    for there, kind in ((None, "identity"), (object(), "lite0")):
        monkeypatch.setattr(flows.start.choose, "find_spec", lambda name, there=there: there)
        file, _ = new(root, kind, Source(images=root / "data/pets"), gpu=False, force=False)
        assert load(file, root).yardstick.features.kind == kind
    assert "pip install 'reflow-chain[lite0]'" in (root / "params/identity.yaml").read_text()


def test_a_gpu_gets_larger_images_and_networks(root):
    pictures(root / "data/large", 40, (80, 80), "RGB")
    small, _ = written(root, Source(images=root / "data/large"))
    file, _ = new(root, "gpu", Source(images=root / "data/large"), gpu=True, force=False)
    large = load(file, root)
    assert (small.data.resize, large.data.resize) == (32, 64)
    assert large.network.channels[0] > small.network.channels[0]
    assert large.rounds["rf1"].train.steps > small.rounds["rf1"].train.steps


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["table", "small", "photos"])
def test_what_is_chosen_can_be_prepared_and_calibrated(root, kind, monkeypatch):
    monkeypatch.setattr(flows.start.choose, "find_spec", lambda name: None)  # no lite0: it is slow
    if kind == "table":
        table(root / "data/t.parquet", 40)
        source = Source(parquet=root / "data/t.parquet")
    elif kind == "small":
        pictures(root / "data/p", 40)
        source = Source(images=root / "data/p")
    else:
        pictures(root / "data/p/a", 20, (30, 36), "RGB")
        pictures(root / "data/p/b", 20, (36, 30), "RGB", seed=1)
        source = Source(images=root / "data/p")
    params, _ = written(root, source)
    prepare(root / "couplings", params.data, seed=0)
    features = params.yardstick.features.model_copy(update={"epochs": 2})
    work = Work(scratch=root / "scratch", device=torch.device("cpu"), compute=params.compute)
    yardstick = params.yardstick.model_copy(update={"features": features})
    calibrate(root / "couplings", root / "yardstick", yardstick, work)
    initialise(root / "couplings", root / "scratch_model", params.network, seed=0)


@pytest.mark.parametrize("gpu", [False, True])
@pytest.mark.parametrize("count", [40, 41, 999, 60_000, 10_000_000])
@pytest.mark.parametrize(
    "shape",
    [
        (1,),
        (2,),
        (12,),
        (784,),
        (1, 8, 8),
        (3, 16, 16),
        (1, 28, 28),
        (3, 9, 9),
        (3, 34, 48),
        (3, 64, 64),
    ],
)
def test_every_size_of_data_gives_a_file_that_loads(root, shape, count, gpu):
    few = Samples(torch.randn(50, *shape).clamp(-1, 1), None, len(shape) == 3)

    class Many(Seen):
        count = property(lambda self: number)

    number = count
    named = {"name": "images", "root": "x"} if few.image else {"name": "array", "path": "x.npy"}
    seen = Many(named, {}, few, summary(few), [])
    assert dataclasses.is_dataclass(seen) and sections(seen, gpu=gpu)
    (root / "params").mkdir()
    file = root / "params" / "x.yaml"
    file.write_text(HEAD.format(name="x") + _text(seen, gpu))
    params = load(file, root)
    assert 2 <= params.yardstick.samples <= count // 2
    assert params.rounds["rf1"].train.batch <= count // 2
    assert 1000 <= params.rounds["rf2"].train.steps <= params.rounds["rf1"].train.steps
    if params.network.name == "unet":
        params.network.check_shape(shape)


def nan(root):
    np.save("data/x.npy", np.array([[1.0, np.nan]] * 50))
    return ["--array", "data/x.npy"]


def constant(root):
    np.save("data/x.npy", np.full((50, 3), 7.0))
    return ["--array", "data/x.npy"]


def alike(root):
    np.save("data/x.npy", np.array([[1.0, 2.0]] * 50))
    return ["--array", "data/x.npy"]


def one(root):
    np.save("data/x.npy", np.ones((1, 3)))
    return ["--array", "data/x.npy"]


def empty(root):
    (root / "data/none").mkdir()
    (root / "data/none/a.txt").write_text("a")
    return ["--images", "data/none"]


def broken(root):
    pictures(root / "data/p")
    (root / "data/p/7.png").write_text("no picture")
    return ["--images", "data/p"]


def texts(root):
    pd.DataFrame({"a": ["x"] * 50, "b": ["y"] * 50}).to_parquet("data/t.parquet")
    return ["--parquet", "data/t.parquet"]


def cells(root):
    table("data/t.parquet", 60, f99=[None, *range(59)])
    return ["--parquet", "data/t.parquet"]


def noise(root):
    (root / "data/t.parquet").write_text("no table")
    return ["--parquet", "data/t.parquet"]


def axes(root):
    np.save("data/x.npy", np.random.default_rng(0).normal(size=(50, 3, 8, 3)))
    return ["--array", "data/x.npy"]


def column(root):
    table("data/t.parquet")
    return ["--parquet", "data/t.parquet", "--label", "sort"]


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (nan, "data/x.npy: sample 0 is not finite in float32; remove it"),
        (constant, "data/x.npy: every number is 7; expected samples that differ"),
        (alike, "data/x.npy: all 50 samples are alike; expected samples that differ"),
        (one, "data/x.npy: 1 sample; expected at least 40"),
        (empty, "data/none: no image in it; expected PNG or JPEG files; left out: 1 no image by"),
        (broken, "data/p/7.png: not an image that can be read; remove it"),
        (texts, "data/t.parquet: no column of numbers or of lists of numbers; it has: a, b"),
        (cells, "column 'f99' has empty cells; fill them or remove the rows"),
        (noise, "data/t.parquet: not a Parquet file that can be read"),
        (axes, "images or vectors, and which axis is which?"),
        (column, "--label: no column 'sort' in data/t.parquet; it has: f0, f1"),
        (lambda root: ["--images", "data/nowhere"], "data/nowhere: no such folder"),
        (lambda root: ["--array", "data/nowhere.npy"], "data/nowhere.npy: no such file"),
        (lambda root: ["--array", "params.yaml"], "params.yaml: expected a .npy, .npz, .parquet"),
        (lambda root: ["--parquet", "a.npy"], "--parquet: a.npy: expected a .parquet file"),
        (lambda root: [], "name the data once: --images FOLDER, --array FILE"),
        (lambda root: ["--images", "a", "--array", "b"], "name the data once"),
        (lambda root: ["--images", "a", "--label", "b"], "--label, --layout: are for files"),
    ],
)
def test_data_that_cannot_be_used_get_one_line_and_no_file(root, make, says):
    done = CliRunner().invoke(app, ["new", "mine", *make(root)])
    assert done.exit_code == 2, done.output
    assert says in done.stderr and done.stderr.count("\n") == 1, done.stderr
    assert not (root / "params").exists()


@pytest.mark.parametrize("name", ["Cats", "a b", "../x", "1", ""])
def test_a_name_that_is_none_is_refused(root, name):
    with pytest.raises(ReflowError, match="expected a name of small letters"):
        new(root, name, Source(), gpu=False, force=False)


def test_a_file_that_is_there_is_replaced_by_force_alone(root):
    np.save("data/x.npy", np.random.default_rng(0).normal(size=(60, 3)))
    words = ["new", "mine", "--array", "data/x.npy"]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    assert "next: reflow use params/mine.yaml && reflow run" in done.stdout
    assert "train@rf1" in done.stdout and " here, measuring aside" in done.stdout
    again = CliRunner().invoke(app, words)
    assert again.exit_code == 2 and "params/mine.yaml: is there" in again.stderr
    assert CliRunner().invoke(app, [*words, "--force", "--no-estimate"]).exit_code == 0


def test_names_of_columns_and_classes_cannot_write_lines_of_the_file(root):
    text = np.array(["a", "b"] * 100)
    table(root / "data/t.parquet", **{"kind": text, "note\nseed: 7\n#": list(range(200))})
    params, text = written(root, Source(parquet=root / "data/t.parquet"))
    assert params.seed == 0 and "\nseed: 7" not in text
