"""Target samples: two-dimensional densities, public data sets, the user's own images and arrays."""

from typing import Annotated

import numpy as np
from pydantic import Field

from fmcore.dataset import public
from fmcore.dataset.densities import (
    Checkerboard,
    Density,
    EightGaussians,
    Gaussian,
    TwoMoons,
    draw,
    log_density,
)
from fmcore.dataset.files import Array, Images, read_array, read_images
from fmcore.dataset.public import CIFAR10, Digits, Emoji, FashionMNIST, MNIST5k
from fmcore.dataset.samples import Samples

__all__ = [
    "CIFAR10",
    "Array",
    "Checkerboard",
    "Dataset",
    "Density",
    "Digits",
    "EightGaussians",
    "Emoji",
    "FashionMNIST",
    "Gaussian",
    "Images",
    "MNIST5k",
    "Samples",
    "TwoMoons",
    "load",
    "log_density",
]

Dataset = Annotated[
    EightGaussians
    | TwoMoons
    | Checkerboard
    | Gaussian
    | Digits
    | FashionMNIST
    | MNIST5k
    | CIFAR10
    | Emoji
    | Images
    | Array,
    Field(discriminator="name"),
]


def load(settings: Dataset, *, seed: int) -> Samples:
    """Return the samples of a data set; a density draws them from the seed."""
    if isinstance(settings, Density):
        return draw(settings, np.random.Generator(np.random.Philox(seed)))
    if isinstance(settings, FashionMNIST):
        return public.fashion_mnist(settings)
    if isinstance(settings, MNIST5k):
        return public.mnist_5k()
    if isinstance(settings, CIFAR10):
        return public.cifar10(settings)
    if isinstance(settings, Emoji):
        return public.emoji(settings)
    if isinstance(settings, Images):
        return read_images(settings)
    if isinstance(settings, Array):
        return read_array(settings)
    return public.digits()
