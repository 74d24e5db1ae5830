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
    """How many independent samples are drawn. Raise it when held_out_ratio says that the network
    remembers its data."""


class EightGaussians(Density):
    """Eight Gaussians on a circle."""

    name: Literal["eight_gaussians"]
    radius: float = Field(default=4.0, gt=0)
    """Radius of the circle on which the eight centres lie."""
    std: float = Field(default=0.5, gt=0)
    """Standard deviation of each Gaussian. Lower it for sharper modes, which are harder to
    learn."""

    def modes(self) -> torch.Tensor:
        """Return the centres [8, 2]."""
        angle = torch.arange(8, dtype=torch.float64) * (math.pi / 4)
        return self.radius * torch.stack([angle.cos(), angle.sin()], dim=1)


class TwoMoons(Density):
    """Two half circles with noise, angles drawn uniformly (scikit-learn's are evenly spaced)."""

    name: Literal["two_moons"]
    scale: float = Field(default=2.0, gt=0)
    """Factor on the whole picture, noise included. At 1 each moon is half a unit circle."""
    std: float = Field(default=0.1, ge=0)
    """Standard deviation of the noise around the moons, before `scale`. At 0 the law has no
    density, so there is no exact likelihood."""


class Checkerboard(Density):
    """The uniform law on the dark squares of a 4 x 4 board of side 8."""

    name: Literal["checkerboard"]


class Gaussian(Density):
    """Independent Gaussians, for which all of a chain is known in closed form."""

    name: Literal["gaussian"]
    mean: list[float] = Field(min_length=1)
    """Mean of each dimension. Its length is the dimension of the data."""
    std: list[Annotated[float, Field(gt=0)]] = Field(min_length=1)
    """Standard deviation of each dimension; as many numbers as `mean`."""

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


def log_density(settings: Density, x: torch.Tensor) -> torch.Tensor | None:
    """Return log p [N] of points [N, d] in nats, float64; None for a law without a density.

    The moons are integrated over their angle by the midpoint rule, finer than their noise.
    """
    x = x.double()
    if isinstance(settings, Gaussian):
        mean, std = (torch.tensor(v, dtype=torch.float64) for v in (settings.mean, settings.std))
        scaled = (x - mean) / std
        constant = std.log().sum() + len(mean) * math.log(2 * math.pi) / 2
        return -scaled.square().sum(1) / 2 - constant
    if isinstance(settings, EightGaussians):
        return _mixture(x, settings.modes(), settings.std)
    if isinstance(settings, TwoMoons) and settings.std > 0:
        cells = max(200, math.ceil(20 / settings.std))
        angle = (torch.arange(cells, dtype=torch.float64) + 0.5) * (math.pi / cells)
        upper = torch.stack([angle.cos() - 0.5, angle.sin() - 0.25], dim=1)
        lower = torch.stack([0.5 - angle.cos(), 0.25 - angle.sin()], dim=1)
        centres = settings.scale * torch.cat([upper, lower])
        return _mixture(x, centres, settings.scale * settings.std)
    if isinstance(settings, Checkerboard):
        cell = ((x + 4) / 2).floor()
        dark = ((cell.sum(1) % 2) == 0) & ((x.abs() <= 4).all(1))
        return torch.where(dark, -math.log(32.0), -math.inf)
    return None


def _mixture(x: torch.Tensor, centres: torch.Tensor, std: float) -> torch.Tensor:
    """Return log p [N] under equal round Gaussians at centres [K, 2]."""
    parts = [
        torch.logsumexp(-torch.cdist(rows, centres).square() / (2 * std**2), dim=1)
        for rows in x.split(4096)
    ]
    return torch.cat(parts) - math.log(len(centres) * 2 * math.pi * std**2)


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
