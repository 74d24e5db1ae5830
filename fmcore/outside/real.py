"""Which samples of the prepared data the real samples among pairs from outside are."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from fmcore.coupling.noise import identities
from fmcore.coupling.read import Coupling, parts

NUMBERS = 8
"""Numbers by which a sample is found: itself, or its place along so many random directions."""
NEAR = 0.01
"""How far a sample may lie from the prepared one that it is, over the spread of all: scaled to own
units and back it errs by 1e-7, as float16 by 5e-4, as a byte by 4e-3."""


@dataclass(frozen=True)
class Real:
    """The prepared samples of one side by their place, and their identities [M].

    An identity is a hash of a sample in the data's own units. A sample in units of the model, a
    latent or a rounded one has another hash, so it is held out as the prepared one that it is.
    `tree` is None where the data has no samples on that side.
    """

    side: str
    tree: Any
    real_id: NDArray[np.int64]
    near: float

    def identities(self, ends: Mapping[str, tuple[Tensor, Tensor]]) -> NDArray[np.int64]:
        """Return the identity [N] of the real end of pairs, which is given in units of the model
        and as it lies in the file, both [N, *D].

        It is that of the nearest prepared sample; one that is far from all keeps its own.
        """
        x, own = ends[self.side]
        if self.tree is None:
            return identities(own)
        gap, row = self.tree.query(_places(x), distance_upper_bound=self.near)
        found = np.isfinite(gap)
        return np.where(found, self.real_id[np.where(found, row, 0)], identities(own))


def real_of(data: Coupling, side: str | None) -> Real | None:
    """Return the prepared samples on the side that is said to be real; None for no side."""
    if side is None:
        return None
    from scipy.spatial import KDTree  # its import takes a third of a second

    if not (found := list(_samples(data, side))):
        return Real(side, None, np.empty(0, np.int64), 0.0)
    places = np.concatenate([_places(x) for x, _ in found])
    spread = float(np.sqrt(((places - places.mean(0)) ** 2).sum(1).mean()))
    ids = np.concatenate([real_id for _, real_id in found])
    return Real(side, KDTree(places), ids, NEAR * spread)


def _samples(data: Coupling, side: str) -> Iterator[tuple[Tensor, NDArray[np.int64]]]:
    """Yield the prepared samples of a side in units of the model, with their identities."""
    if side == "source":
        pool = data.source
        if pool.samples is not None and pool.real_id is not None:  # else it is noise
            yield pool.samples, pool.real_id.numpy()
        return
    for some in parts(data, data.groups, "all", sources=False):
        known = identities(some.target) if some.real_id is None else some.real_id.numpy()
        yield some.target, known


def _places(x: Tensor) -> NDArray[np.float64]:
    """Return samples x [N, *D] as a few numbers [N, d]: near ones have near numbers."""
    flat = x.flatten(1).double().numpy()
    if flat.shape[1] <= NUMBERS:
        return flat
    directions = np.random.default_rng(0).standard_normal((flat.shape[1], NUMBERS))
    return np.asarray(flat @ (directions / np.sqrt(flat.shape[1])))
