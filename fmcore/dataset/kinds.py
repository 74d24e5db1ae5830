"""Target and source samples: densities, public data sets, the user's own images and arrays."""

from typing import Annotated, ClassVar, Literal, cast

from pydantic import Field
from torch import Tensor

from fmcore.dataset.arrays import Array
from fmcore.dataset.densities import Checkerboard, EightGaussians, Gaussian, TwoMoons
from fmcore.dataset.emoji import Emoji
from fmcore.dataset.images import Images
from fmcore.dataset.public import CIFAR10, Digits, FashionMNIST, MNIST5k
from fmcore.dataset.samples import Data, Known, Samples
from fmcore.own import Own, called
from fmcore.settings import ReflowError, Settings


class Custom(Own, Data):
    """A data set of the user's own, a subclass of `Data`."""

    base: ClassVar[type] = Data

    def check(self, own: Data) -> None:
        """Raise ValueError for what would have no effect there: it belongs beside path."""
        if isinstance(own.scale, Settings) and own.scale.name != "none":
            raise ValueError("scale belongs beside path, not into settings: data.scale")
        if own.codec is not None:
            raise ValueError("codec belongs beside path, not into settings: data.codec")
        if isinstance(own.conditions, Settings):
            raise ValueError("conditions belongs beside path, not into settings: data.conditions")
        if own.seed is not None:
            raise ValueError("seed belongs beside path, not into settings: data.seed")

    def read(self, seed: int) -> Samples:
        """Return the user's samples, checked."""
        try:
            found = called(self.path, self.own.read, seed)
            if not isinstance(found, Samples):
                raise ValueError(f"{self.path}: read must give Samples, got {type(found).__name__}")
            called(self.path, found.check)
        except ValueError as error:
            raise ReflowError(str(error)) from None
        return found

    def known(self) -> Known:
        """Return what the user's class says of its samples before they are read."""
        found = called(self.path, self.own.known)
        if not isinstance(found, Known):
            raise ReflowError(f"{self.path}: known must give Known, got {type(found).__name__}")
        return found

    def log_density(self, x: Tensor) -> Tensor | None:
        """Return the user's log p [N], or None."""
        return cast(Tensor | None, self.own.log_density(x))


class Noise(Settings):
    """Standard normal noise N(0, I) of the target's shape."""

    name: Literal["noise"] = "noise"


_Kind = (
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
    | Array
    | Custom
)

Dataset = Annotated[_Kind, Field(discriminator="name")]

SourceOf = Annotated[Noise | _Kind, Field(discriminator="name")]
"""The law of the source: noise, or any data set."""
