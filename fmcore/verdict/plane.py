"""The plane in which samples and paths are drawn: that of the data, so one for all rounds."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from matplotlib.axes import Axes

ROWS = 1000
"""Real samples that determine a plane."""


@dataclass(frozen=True)
class Plane:
    """Two directions, what they are called, and the square that is shown.

    Data of two dimensions are drawn as they are, others in the two directions in which they vary
    most: their principal components. Noise varies equally in all directions, so it has none.
    """

    basis: Tensor | None
    names: tuple[str, str]
    middle: tuple[float, float] = (0.0, 0.0)
    half: float = 1.0

    @classmethod
    def of(cls, real: Tensor, source: Tensor | None = None) -> "Plane":
        """Return the plane of real samples [N, *D]; the square holds them and the sources [M, *D].

        A thousandth of the points may lie outside.
        """
        x = real[:ROWS].flatten(1).double()
        if x.shape[1] <= 2:
            plane = cls(None, ("dimension 1", "dimension 2"))
        else:
            names = ("first principal component of the data", "second principal component")
            plane = cls(_principal(x - x.mean(0)), names)
        sides = [plane.project(side) for side in (real, source) if side is not None]
        low = torch.stack([side.quantile(0.001, dim=0) for side in sides]).amin(0)
        high = torch.stack([side.quantile(0.999, dim=0) for side in sides]).amax(0)
        middle, half = (low + high) / 2, float((high - low).max()) / 2 * 1.1
        return cls(plane.basis, plane.names, (float(middle[0]), float(middle[1])), half or 1.0)

    def project(self, x: Tensor) -> Tensor:
        """Return the places [N, 2] of samples [N, *D], as float64."""
        x = x.flatten(1).double()
        if self.basis is not None:
            return x @ self.basis.T
        return x if x.shape[-1] == 2 else torch.cat([x, torch.zeros_like(x)], dim=-1)

    def show(self, axes: "Axes") -> None:
        """Let axes show the square, with one unit on both."""
        (x, y), half = self.middle, self.half
        axes.set(xlim=(x - half, x + half), ylim=(y - half, y + half), aspect="equal")


def _principal(x: Tensor) -> Tensor:
    """Return the first two principal components [2, d] of centred x [N, d].

    The products of rows are fewer numbers than those of columns where samples are large. The
    largest part of each component is positive: a component has no sign of its own.
    """
    if len(x) < x.shape[1]:
        basis = torch.linalg.eigh(x @ x.T)[1][:, -2:].T.flip(0) @ x
    else:
        basis = torch.linalg.eigh(x.T @ x)[1][:, -2:].T.flip(0)
    basis = basis / basis.norm(dim=1, keepdim=True).clamp(min=1e-12)
    largest = basis.gather(1, basis.abs().argmax(1, keepdim=True))
    signed: Tensor = basis * largest.sign()
    return signed
