"""Two-dimensional densities and plain Gaussians: independent samples of known laws."""

import math
from abc import abstractmethod
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor

from fmcore.dataset.samples import Data, Known, Samples
from fmcore.settings import Length, SeveralSamples

LEAST_NOISE = 1e-3
"""Noise of the moons as a share of a moon: their density is summed over cells as fine as that."""
MOST_DIMENSIONS = 10_000
"""Dimensions of a Gaussian: the Frechet distance needs their covariance, here of 800 MB."""
MOST_NUMBERS = 10**10
"""Numbers of all samples together: 80 GB while they are drawn."""


class Density(Data):
    """The base of the densities below: the number of independent samples."""

    samples: SeveralSamples = 10000
    """How many independent samples are drawn. Raise it when held_out_ratio shows that the
    network remembers its data."""

    def read(self, seed: int) -> Samples:
        """Return the points, drawn from the seed."""
        points = self.draw(np.random.Generator(np.random.Philox(seed)))
        return Samples(torch.tensor(points, dtype=torch.float32), None, image=False)

    def known(self) -> Known:
        """Return what the settings say of the points."""
        return Known(shape=(2,), image=False, classes=0, samples=self.samples)

    @abstractmethod
    def draw(self, rng: np.random.Generator) -> np.ndarray:
        """Return independent points [samples, d]."""


class EightGaussians(Density):
    """Eight Gaussians on a circle."""

    name: Literal["eight_gaussians"]
    radius: Length = 4.0
    """Radius of the circle on which the eight centres lie."""
    std: Length = 0.5
    """Standard deviation of each Gaussian. Lower it for sharper modes, which are harder to
    learn."""

    def modes(self) -> Tensor:
        """Return the centres [8, 2]."""
        angle = torch.arange(8, dtype=torch.float64) * (math.pi / 4)
        return self.radius * torch.stack([angle.cos(), angle.sin()], dim=1)

    def draw(self, rng: np.random.Generator) -> np.ndarray:
        """Return a random centre plus noise for each sample."""
        angle = rng.integers(8, size=self.samples) * math.pi / 4
        modes = self.radius * np.stack([np.cos(angle), np.sin(angle)], axis=1)
        return np.asarray(modes + self.std * rng.standard_normal(modes.shape))

    def log_density(self, x: Tensor) -> Tensor:
        """Return log p [N] of the mixture."""
        return _mixture(x.double(), self.modes(), self.std)


class TwoMoons(Density):
    """Two half circles with noise, angles drawn uniformly (scikit-learn's are evenly spaced)."""

    name: Literal["two_moons"]
    size: Length = 2.0
    """Factor for all coordinates, noise included. At 1 each moon is half a unit circle."""
    std: float = Field(default=0.1, ge=0, le=1e6)
    """Standard deviation of the noise around the moons, before `size`. At 0 the law has no
    density, so there is no exact likelihood."""

    @model_validator(mode="before")
    @classmethod
    def _former_name(cls, given: Any) -> Any:
        """Read a number under `scale`, as this factor was called, as `size`."""
        if isinstance(given, dict) and isinstance(given.get("scale"), int | float):
            given = {**given, "size": given["scale"]}
            del given["scale"]
        return given

    @model_validator(mode="after")
    def _noise_can_be_summed(self) -> "TwoMoons":
        if 0 < self.std < LEAST_NOISE:
            raise ValueError(f"std is 0 or at least {LEAST_NOISE:g}, got {self.std:g}")
        return self

    def draw(self, rng: np.random.Generator) -> np.ndarray:
        """Return a random point of the upper or the lower moon plus noise for each sample."""
        angle = rng.uniform(0, math.pi, self.samples)
        upper = rng.integers(2, size=self.samples) == 0
        x = np.where(upper, np.cos(angle), 1 - np.cos(angle)) - 0.5
        y = np.where(upper, np.sin(angle), 0.5 - np.sin(angle)) - 0.25
        points = np.stack([x, y], axis=1)
        return np.asarray(self.size * (points + self.std * rng.standard_normal(points.shape)))

    def log_density(self, x: Tensor) -> Tensor | None:
        """Return log p [N], integrated over the angle by the midpoint rule, finer than the noise.

        Without noise the moons have no density.
        """
        if not self.std:
            return None
        cells = max(200, math.ceil(20 / self.std))
        angle = (torch.arange(cells, dtype=torch.float64) + 0.5) * (math.pi / cells)
        upper = torch.stack([angle.cos() - 0.5, angle.sin() - 0.25], dim=1)
        lower = torch.stack([0.5 - angle.cos(), 0.25 - angle.sin()], dim=1)
        centres = self.size * torch.cat([upper, lower])
        return _mixture(x.double(), centres, self.size * self.std)


class Checkerboard(Density):
    """The uniform law on the dark squares of a 4 x 4 board of side 8."""

    name: Literal["checkerboard"]

    def draw(self, rng: np.random.Generator) -> np.ndarray:
        """Return a uniform point in a random dark square for each sample."""
        column = rng.integers(4, size=self.samples)
        row = 2 * rng.integers(2, size=self.samples) + column % 2
        corner = np.stack([column, row], axis=1) * 2.0 - 4.0
        return np.asarray(corner + rng.uniform(0, 2, corner.shape))

    def log_density(self, x: Tensor) -> Tensor:
        """Return log p [N]: -log 32 on the dark squares, -infinity elsewhere."""
        x = x.double()
        cell = ((x + 4) / 2).floor()
        dark = ((cell.sum(1) % 2) == 0) & ((x.abs() <= 4).all(1))
        return torch.where(dark, -math.log(32.0), -math.inf)


class Gaussian(Density):
    """Independent Gaussians, for which everything about a chain is known in closed form."""

    name: Literal["gaussian"]
    mean: list[Annotated[float, Field(ge=-1e6, le=1e6)]] = Field(
        min_length=1, max_length=MOST_DIMENSIONS
    )
    """Mean of each dimension. Its length is the dimension of the data."""
    std: list[Length] = Field(min_length=1, max_length=MOST_DIMENSIONS)
    """Standard deviation of each dimension; as many numbers as `mean`."""

    @model_validator(mode="after")
    def _same_length(self) -> "Gaussian":
        if len(self.mean) != len(self.std):
            raise ValueError(f"mean has {len(self.mean)} numbers, std {len(self.std)}")
        if self.samples * len(self.mean) > MOST_NUMBERS:
            raise ValueError(
                f"{self.samples} samples of {len(self.mean)} numbers each: at most"
                f" {MOST_NUMBERS:.0e} numbers; lower samples"
            )
        return self

    def known(self) -> Known:
        """Return what the settings say of the points."""
        return Known((len(self.mean),), image=False, classes=0, samples=self.samples)

    def draw(self, rng: np.random.Generator) -> np.ndarray:
        """Return mean + std noise."""
        noise = rng.standard_normal((self.samples, len(self.mean)))
        return np.asarray(np.array(self.mean) + np.array(self.std) * noise)

    def log_density(self, x: Tensor) -> Tensor:
        """Return log p [N] in closed form."""
        mean, std = (torch.tensor(v, dtype=torch.float64) for v in (self.mean, self.std))
        scaled = (x.double() - mean) / std
        constant = std.log().sum() + len(mean) * math.log(2 * math.pi) / 2
        return -scaled.square().sum(1) / 2 - constant


def _mixture(x: Tensor, centres: Tensor, std: float) -> Tensor:
    """Return log p [N] under equally weighted isotropic Gaussians at centres [K, 2]."""
    parts = [
        torch.logsumexp(-torch.cdist(rows, centres).square() / (2 * std**2), dim=1)
        for rows in x.split(4096)
    ]
    return torch.cat(parts) - math.log(len(centres) * 2 * math.pi * std**2)
