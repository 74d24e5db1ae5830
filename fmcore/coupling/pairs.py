"""Some pairs in memory, and how they are put there without a second copy."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from fmcore.coupling.noise import is_held_out

TENSORS = ("pair_id", "target", "source", "label", "real_id", "trajectory")
"""What has an entry for each pair."""


@dataclass(frozen=True)
class Pairs:
    """Some pairs in memory: ids [N], target and source [N, *D], label [N] or None.

    `real_id` [N] is the identity of the real sample of each pair, None where no pair has one.
    Training draws the source of `independent` pairs from the real samples `pool` [M, *D]; None is
    noise. `guided` is the guidance in the pairs, their own or one further up the chain; 1 is none.
    `trajectory` [N, K - 1, *D] has the states between source and target, at t = 1 - 1/K, 1 - 2/K,
    ..., 1/K; None where a coupling keeps none.

    Training draws a new source for `independent` pairs at every step; here it is a fixed one.
    """

    pair_id: Tensor
    target: Tensor
    source: Tensor
    label: Tensor | None = None
    independent: bool = False
    real_id: Tensor | None = None
    pool: Tensor | None = None
    guided: float = 1.0
    trajectory: Tensor | None = None

    def __len__(self) -> int:
        return len(self.target)

    @property
    def held_out(self) -> Tensor:
        """Which pairs [N] never train, here or in another coupling."""
        real_id = None if self.real_id is None else self.real_id.numpy()
        return torch.from_numpy(is_held_out(self.pair_id.numpy(), real_id))

    def lengths(self) -> Tensor:
        """Return |target - source| [N]."""
        gap = (self.target - self.source).flatten(1)
        return torch.linalg.vector_norm(gap, dim=1)  # type: ignore[no-any-return]

    def pieced(self, t: Tensor, pieces: int) -> "Pairs":
        """Return the pairs [N] whose straight path is that of the piece that t [N] is in.

        [0, 1] is cut into `pieces` of one length, whose ends are states of the trajectory. The line
        through both, drawn on to t = 0 and t = 1, is a pair, so that what learns from pairs learns
        piecewise straight paths (PeRFlow, Yan et al. 2024).
        """
        if self.trajectory is None:
            raise ValueError("pairs without a trajectory have one piece")
        states = torch.stack([self.source, *self.trajectory.unbind(1), self.target], dim=1)
        each, rest = divmod(states.shape[1] - 1, pieces)
        if rest:
            raise ValueError(f"{states.shape[1] - 1} pieces cannot be joined to {pieces}")
        # A step of Euler begins at the end of a piece: rounding must not put it in the one above.
        piece = ((1 - t) * pieces + 1e-4).long().clamp(0, pieces - 1)
        rows, high = torch.arange(len(self)), 1 - piece / pieces
        above, below = states[rows, each * piece], states[rows, each * (piece + 1)]
        velocity = pieces * (above - below)
        after = high.reshape(-1, *(1,) * (velocity.ndim - 1))
        target = above - after * velocity
        return replace(self, target=target, source=target + velocity, trajectory=None)

    def rows(self, index: Tensor) -> "Pairs":
        """Return the pairs at the positions `index` [M]."""
        taken: dict[str, Any] = {
            name: value.index_select(0, index) for name, value in self.tensors().items()
        }
        return replace(self, **taken)

    def tensors(self) -> dict[str, Tensor]:
        """Return what has an entry for each pair, by name."""
        return {name: v for name in TENSORS if (v := getattr(self, name)) is not None}

    def room(self, rows: int) -> "Pairs":
        """Return memory for `rows` pairs such as these; a source that is the target stays so."""
        empty: dict[str, Any] = {
            n: v.new_empty(rows, *v.shape[1:]) for n, v in self.tensors().items()
        }
        if self.source is self.target:
            empty["source"] = empty["target"]
        return replace(self, **empty)


def joined(parts: Iterable[Pairs], most: int) -> Pairs:
    """Return the first `most` pairs of some parts, put one behind the other.

    Memory for `most` pairs is taken once, so that the peak is the result and one part. Raises
    ValueError if only some parts have labels or real samples, or there is no part.
    """
    whole, count = None, 0
    for part in parts:
        whole = part.room(most) if whole is None else whole
        into, given = whole.tensors(), part.tensors()
        if odd := sorted(into.keys() ^ given.keys()):
            raise ValueError(f"only some of its pairs have a {odd[0]}")
        for name, value in given.items():
            into[name][count : count + len(part)] = value[: most - count]
        count = min(most, count + len(part))
        if count == most:
            break
    if whole is None:
        raise ValueError("it has no pairs")
    found: dict[str, Any] = {name: value[:count] for name, value in whole.tensors().items()}
    if count < most // 2:  # few of the rows asked for: memory for the rest is not kept
        found = {name: value.clone() for name, value in found.items()}
    return replace(whole, **found)
