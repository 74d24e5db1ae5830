"""Two-dimensional densities and plain Gaussians: independent samples of known laws."""

import math
from typing import Annotated, Literal

import numpy as np
import torch
from pydantic import Field, model_validator

from fmcore.dataset.samples import Samples
from fmcore.settings import Settings


class Density(Settings):
    """What the two-dimensional densities share: how many independent samples."""

    samples: int = Field(default=10000, gt=1)


class EightGaussians(Density):
    """Eight Gaussians on a circle."""

    name: Literal["eight_gaussians"]
    radius: float = Field(default=4.0, gt=0)
    std: float = Field(default=0.5, gt=0)


class TwoMoons(Density):
    """Two half circles with noise, angles drawn uniformly (scikit-learn's are evenly spaced)."""

    name: Literal["two_moons"]
    scale: float = Field(default=2.0, gt=0)
    std: float = Field(default=0.1, ge=0)


class Checkerboard(Density):
    """The uniform law on the dark squares of a 4 x 4 board of side 8."""

    name: Literal["checkerboard"]


class Gaussian(Density):
    """Independent Gaussians, for which all of a chain is known in closed form."""

    name: Literal["gaussian"]
    mean: list[float] = Field(min_length=1)
    std: list[Annotated[float, Field(gt=0)]] = Field(min_length=1)

    @model_validator(mode="after")
    def _same_length(self) -> "Gaussian":
        if len(self.mean) != len(self.std):
            raise ValueError(f"mean has {len(self.mean)} numbers, std {len(self.std)}")
        return self


def draw(settings: Density, rng: np.random.Generator) -> Samples:
    """Return the samples of a density."""
    if isinstance(settings, EightGaussians):
        points = _eight_gaussians(settings, rng)
    elif isinstance(settings, TwoMoons):
        points = _two_moons(settings, rng)
    elif isinstance(settings, Gaussian):
        noise = rng.standard_normal((settings.samples, len(settings.mean)))
        points = np.array(settings.mean) + np.array(settings.std) * noise
    else:
        points = _checkerboard(settings.samples, rng)
    return Samples(torch.tensor(points, dtype=torch.float32), None, image=False)


def _eight_gaussians(settings: EightGaussians, rng: np.random.Generator) -> np.ndarray:
    angle = rng.integers(8, size=settings.samples) * math.pi / 4
    modes = settings.radius * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    return np.asarray(modes + settings.std * rng.standard_normal(modes.shape))


def _two_moons(settings: TwoMoons, rng: np.random.Generator) -> np.ndarray:
    angle = rng.uniform(0, math.pi, settings.samples)
    upper = rng.integers(2, size=settings.samples) == 0
    x = np.where(upper, np.cos(angle), 1 - np.cos(angle)) - 0.5
    y = np.where(upper, np.sin(angle), 0.5 - np.sin(angle)) - 0.25
    points = np.stack([x, y], axis=1)
    return np.asarray(settings.scale * (points + settings.std * rng.standard_normal(points.shape)))


def _checkerboard(samples: int, rng: np.random.Generator) -> np.ndarray:
    column = rng.integers(4, size=samples)
    row = 2 * rng.integers(2, size=samples) + column % 2
    corner = np.stack([column, row], axis=1) * 2.0 - 4.0
    return np.asarray(corner + rng.uniform(0, 2, corner.shape))
