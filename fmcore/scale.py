"""Scale: the affine map between the data's own units and those in which a model is trained."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from pydantic import BeforeValidator, Field
from torch import Tensor

from fmcore.settings import ReflowError, Settings, by_name


@dataclass(frozen=True)
class Scale:
    """Model units = (own units - mean) / std; a model is trained and sampled in model units.

    `mean` and `std` have a number for each feature of vectors [N, d], for each channel of arrays
    [N, C, ...], or one for all.
    """

    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)

    @classmethod
    def of(cls, record: Mapping[str, Any] | None) -> "Scale":
        """Return the scale that a coupling or a model records; the identity for None."""
        if record is None:
            return cls()
        try:
            found = cls(*(tuple(float(v) for v in record[key]) for key in ("mean", "std")))
        except (KeyError, TypeError, ValueError):
            raise ReflowError(f"scale: expected lists mean and std, got {record}") from None
        if not all(math.isfinite(v) for v in found.mean) or not all(
            math.isfinite(v) and v > 0 for v in found.std
        ):
            raise ReflowError(f"scale: expected finite means and std above 0, got {record}")
        return found

    @property
    def identity(self) -> bool:
        """Whether both units are the same."""
        return self == Scale()

    @property
    def record(self) -> dict[str, list[float]] | None:
        """What `of` reads, for JSON; None for the identity."""
        return None if self.identity else {"mean": [*self.mean], "std": [*self.std]}

    def forward(self, x: Tensor) -> Tensor:
        """Return x [N, *D] in model units, float32; x itself for the identity."""
        if self.identity:
            return x
        return ((x.double() - _along(self.mean, x)) / _along(self.std, x)).float()

    def inverse(self, x: Tensor) -> Tensor:
        """Return x [N, *D] in the data's own units, float32; x itself for the identity."""
        if self.identity:
            return x
        return (x.double() * _along(self.std, x) + _along(self.mean, x)).float()

    def log_std(self, shape: tuple[int, ...]) -> float:
        """Return the sum of log std over all numbers of a sample of `shape` [*D].

        log p(x) in own units = log p(forward(x)) in model units - log_std.
        """
        logs = math.fsum(math.log(s) for s in self.std)
        return logs * math.prod(shape) / len(self.std)


def _along(values: tuple[float, ...], x: Tensor) -> Tensor:
    """Return values for dimension 1 of x [N, *D], ready to be broadcast."""
    if len(values) not in (1, x.shape[1]):
        raise ReflowError(
            f"scale: mean and std of {len(values)} numbers do not fit samples of shape"
            f" {list(x.shape[1:])}; give one number, or {x.shape[1]}"
        )
    return torch.tensor(values, dtype=torch.float64, device=x.device).reshape(
        -1, *[1] * (x.ndim - 2)
    )


def same_units(model: Scale, data: Scale, place: str) -> None:
    """Raise ReflowError if a model and the data at `place` are in different units."""
    if model != data:
        raise ReflowError(
            f"{place}: in other units than the model, which was trained with another data.scale;"
            " train it again on this data"
        )


class AsIs(Settings):
    """Data as it is: it should be near mean 0 and standard deviation 1, as the noise is."""

    name: Literal["none"] = "none"

    def fit(self, x: Tensor) -> Scale:
        """Return the identity."""
        return Scale()


class Standardise(Settings):
    """Mean 0 and standard deviation 1 for each feature of vectors, each channel of images.

    A feature without any spread is only moved to 0.
    """

    name: Literal["standardise"]

    def fit(self, x: Tensor) -> Scale:
        """Return the scale of samples x [N, *D]."""
        mean, std = moments(x)
        std = torch.where(std > 0, std, 1.0)
        return Scale(tuple(mean.tolist()), tuple(std.tolist()))


class Range(Settings):
    """One map for all numbers: the smallest to -1, the largest to 1."""

    name: Literal["range"]

    def fit(self, x: Tensor) -> Scale:
        """Return the scale of samples x [N, *D]."""
        low, high = float(x.min()), float(x.max())
        return Scale(((low + high) / 2,), ((high - low) / 2 or 1.0,))


Centre = Annotated[float, Field(ge=-1e12, le=1e12)]
Positive = Annotated[float, Field(gt=0, le=1e12)]


def _listed(value: Any) -> Any:
    """Read a number as a list of one."""
    return value if isinstance(value, list) else [value]


class Affine(Settings):
    """A mean that is subtracted, then a standard deviation by which is divided."""

    name: Literal["affine"] = "affine"
    mean: Annotated[
        list[Centre], BeforeValidator(_listed, json_schema_input_type=Centre | list[Centre])
    ] = Field(min_length=1)
    """What is subtracted: one number for all, or a list with one for each feature (of images, each
    channel)."""
    std: Annotated[
        list[Positive], BeforeValidator(_listed, json_schema_input_type=Positive | list[Positive])
    ] = Field(min_length=1)
    """By what is divided then: one number for all, or a list as for `mean`."""

    def fit(self, x: Tensor) -> Scale:
        """Return the scale that is given; raise ReflowError if it does not fit x [N, *D]."""
        for key, values in (("mean", self.mean), ("std", self.std)):
            if len(values) not in (1, x.shape[1]):
                raise ReflowError(
                    f"data.scale.{key}: {len(values)} numbers for samples of shape"
                    f" {list(x.shape[1:])}; give one, or {x.shape[1]}"
                )
        return Scale(tuple(self.mean), tuple(self.std))


def _short(value: Any) -> Any:
    """Read `standardise` as {name: standardise}, {mean, std} as that of `affine`, {} as none."""
    if isinstance(value, dict):
        return {"name": "affine" if value else "none", **value}
    return by_name(value)


ScaleOf = Annotated[
    AsIs | Standardise | Range | Affine, Field(discriminator="name"), BeforeValidator(_short)
]


def moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation [D1] of x [N, D1, ...] by feature or channel, float64.

    The deviation of a feature that is constant is exactly 0.
    """
    count, mean = 0, torch.zeros(x.shape[1], dtype=torch.float64)
    squares, low, high = torch.zeros_like(mean), mean + math.inf, mean - math.inf
    for rows in x.split(max(1, BLOCK_VALUES // max(1, x[0].numel()))):
        part = rows.transpose(0, 1).flatten(1).double()
        size, centre = part.shape[1], part.mean(dim=1)
        low, high = torch.minimum(low, part.amin(dim=1)), torch.maximum(high, part.amax(dim=1))
        # Chan, Golub and LeVeque's update: sums of squares of large means would cancel.
        shift, total = centre - mean, count + size
        squares += part.sub_(centre[:, None]).square_().sum(dim=1)
        squares += shift.square() * count * size / total
        mean, count = mean + shift * size / total, total
    return mean, torch.where(low == high, 0.0, (squares / count).sqrt())


BLOCK_VALUES = 1 << 20
"""How many numbers are in memory at a time: the samples may be larger than the memory."""

FAR, SMALL, LARGE = 10.0, 0.05, 20.0
"""Means beyond FAR, deviations outside of [SMALL, LARGE]: data far from the noise's unit scale.

A straight path mixes both as (1 - t) target + t source, so with a deviation of 20 the noise counts
only in the last twentieth of the time, and with 0.05 the data only there; beyond a mean of 10 the
network spends its training on a shift. Images in [-1, 1] and the built-in densities lie within.
"""


def advice_on_scale(x: Tensor, *, image: bool = False) -> str | None:
    """Return a warning if targets x [N, *D], trained on as they are, are far from the noise.

    A feature without spread counts by its mean. None if the targets are near.
    """
    mean, std = moments(x)
    ratio = torch.where(std > 0, torch.maximum(std / LARGE, SMALL / std), 0.0)
    badness = torch.maximum(mean.abs() / FAR, ratio)
    worst = int(badness.argmax())
    if float(badness[worst]) <= 1:
        return None
    what = "channel" if x.ndim > 2 else "feature"
    cure = "range" if image and max(-float(x.min()), float(x.max())) > 1 else "standardise"
    return (
        f"data: {what} {worst} has mean {float(mean[worst]):.4g} and standard deviation"
        f" {float(std[worst]):.4g}, the noise 0 and 1; training on data so far from it is slow or"
        f" fails: set data.scale: {cure}"
    )
