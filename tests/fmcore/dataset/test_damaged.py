"""Damaged files of every kind: they are read, or refused in one line; never a traceback."""

import gzip
import pickle

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from fmcore.dataset.arrays import Array
from fmcore.dataset.images import Images
from fmcore.dataset.public import CIFAR10, FashionMNIST
from fmcore.dataset.summary import lines, summary
from fmcore.settings import ReflowError

TRIALS = 60

VALUES = np.random.default_rng(0).normal(size=(20, 3)).astype("float32")
LABELS = np.array(list("ab") * 10)
PICTURE = np.random.default_rng(1).integers(0, 256, (8, 8, 3), dtype=np.uint8)


def text(path):
    rows = [f"{u},{v},{k}\n" for (u, v, _), k in zip(VALUES, LABELS, strict=True)]
    path.write_text("u,v,label\n" + "".join(rows))


def picture(path, **settings):
    Image.fromarray(PICTURE).save(path, **settings)


def plain_lists(path):
    lists = pa.FixedSizeListArray.from_arrays(pa.array(VALUES.ravel()), 3)
    pq.write_table(pa.table({"target": lists}), path, compression="none", use_dictionary=False)


def batch(path):
    data = np.random.default_rng(2).integers(0, 256, (2, 3072), dtype=np.uint8)
    path.write_bytes(pickle.dumps({b"data": data, b"labels": [1, 2]}, protocol=2))


KINDS = {
    "x.npy": lambda path: np.save(path, VALUES),
    "x.npz": lambda path: np.savez(path, target=VALUES, label=LABELS),
    "packed.npz": lambda path: np.savez_compressed(path, target=VALUES),
    "x.parquet": lambda path: pq.write_table(
        pa.table({"target": VALUES.tolist(), "label": LABELS}), path
    ),
    "plain.parquet": plain_lists,
    "x.csv": text,
    "x.png": picture,
    "x.jpg": picture,
    "x.bmp": picture,
    "x.webp": picture,
    "x.tif": picture,
    "packed.tiff": lambda path: picture(path, compression="tiff_lzw"),
    "x.gif": picture,
    "test_batch": batch,
}


def damaged(good, trial, rng):
    """Cut a file, flip bits of its head or anywhere, or change a byte of its foot."""
    data = bytearray(good)
    if trial % 4 == 0:
        return data[: rng.integers(len(data))]
    head, foot = min(len(data), 400), max(0, len(data) - 200)
    low, high = ((0, head), (0, len(data)), (foot, len(data)))[trial % 4 - 1]
    for _ in range(rng.integers(1, 4)):
        data[rng.integers(low, high)] ^= 1 << rng.integers(8)
    return data


def read(path):
    if path.name == "test_batch":
        return CIFAR10(name="cifar10", root=str(path.parent), split="test").read(0)
    if path.suffix in (".npy", ".npz", ".parquet", ".csv"):
        return Array(name="array", path=str(path)).read(0)
    return Images(name="images", root=str(path.parent), frame=0).read(0)


@pytest.mark.parametrize("name", KINDS)
def test_a_damaged_file_is_read_or_refused_in_one_line(tmp_path, name):
    path, rng = tmp_path / name, np.random.default_rng(0)
    KINDS[name](path)
    read(path)
    good, refused = path.read_bytes(), []
    for trial in range(TRIALS):
        path.unlink()  # a new file: the old one may be mapped
        path.write_bytes(damaged(good, trial, rng))
        try:
            samples = read(path)
            lines(samples, summary(samples))
        except ReflowError as error:
            refused.append(str(error))
    assert len(refused) > TRIALS // 8
    assert all(str(tmp_path) in line and "\n" not in line for line in refused)


def test_damaged_idx_files_are_refused(tmp_path):
    path, rng = tmp_path / "t10k-images-idx3-ubyte.gz", np.random.default_rng(0)
    good = gzip.compress(PICTURE.tobytes())
    for trial in range(TRIALS):
        path.write_bytes(damaged(good, trial, rng))
        with pytest.raises(ReflowError, match="t10k-images-idx3-ubyte.gz: (cannot be|not the)"):
            FashionMNIST(name="fashion_mnist", root=str(tmp_path), split="test").read(0)


def test_labels_that_no_batch_of_cifar_has_are_refused(tmp_path):
    data = np.zeros((2, 3072), np.uint8)
    for labels in ([1], [1, 10], [-1, 2], ["a", "b"], [[1], [2]], [0.5, 1.0]):
        (tmp_path / "test_batch").write_bytes(pickle.dumps({b"data": data, b"labels": labels}))
        with pytest.raises(ReflowError, match="test_batch: expected a label from 0 to 9"):
            read(tmp_path / "test_batch")
    (tmp_path / "test_batch").unlink()
    (tmp_path / "test_batch.bin").write_bytes(b"\x0a" * 3073)
    with pytest.raises(ReflowError, match=r"test_batch\.bin: expected a label from 0 to 9"):
        read(tmp_path / "test_batch")


def test_an_empty_file_of_every_kind_is_refused(tmp_path):
    for name in KINDS:
        (tmp_path / name).touch()
        with pytest.raises(ReflowError, match=name.replace(".", r"\.")):
            read(tmp_path / name)
        (tmp_path / name).unlink()
