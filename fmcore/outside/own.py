"""Pairs that a class of the user's own makes, such as a teacher behind any API."""

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from fmcore.outside.rows import Block, Rows
from fmcore.outside.states import Times, apart, checked
from fmcore.own import Own, called
from fmcore.settings import ReflowError, Settings

Made = tuple[Tensor, Tensor] | tuple[Tensor, Tensor, Tensor | list[str], *tuple[Tensor, ...]]
"""Target and source [N, *D], where pairs have one the label [N], a class or a text, and at last,
where the class has `times`, the states [N, S, *D]."""
CLOSE = 1e-3
"""How near a pair must be to itself when it is made again beside others, relative to its size."""


class OwnPairs(Settings):
    """The base of pairs of your own (`kind: custom`).

    It has `pairs` and its settings as fields; a file or folder named in them is an input. Pairs are
    made shard by shard, by any executor, and kept when a run is stopped, so each must be a function
    of its id alone: draw noise with `fmcore.coupling.noise.gaussian_noise(seed, ids, shape)`.
    """

    @abstractmethod
    def pairs(self, ids: NDArray[np.int64]) -> Made:
        """Return target and source [N, *D], and perhaps label [N], of the pairs `ids` [N].

        A label is a class, or a list of N texts that are conditions of the data. With `times` [S]
        the last of all are the states [N, S, *D] between both ends.
        """

    def times(self) -> Sequence[float]:
        """Return the times of the states that `pairs` gives, such as (0.75, 0.5, 0.25); or none."""
        return ()

    def count(self) -> int | None:
        """Return how many pairs there are; None where as many can be made as are asked for."""
        return None


class Custom(Own):
    """Pairs of the user's own, made by a subclass of `OwnPairs` for any range of ids."""

    base: ClassVar[type] = OwnPairs
    name: Literal["custom"] = Field(default="custom", alias="kind")
    units: Literal["data", "model"] = "data"
    """Units of the targets: those of the data, mapped by data.scale as prepared data are, or those
    of the model."""
    real: Literal["target", "source"] | None = None
    """The side that holds real samples: what is held out then depends on their content, as it does
    for prepared data. null holds out by the number of the pair."""

    def open(self, place: str | None = None) -> "OwnRows":
        """Return the pairs, to be made when they are read."""
        return OwnRows(self)


class OwnRows(Rows):
    """The pairs of a class of the user's own."""

    def __init__(self, settings: Custom) -> None:
        self.settings = settings

    @property
    def count(self) -> int | None:
        """How many pairs the class has."""
        found = self._asked(lambda: self.settings.own.count())
        if found is not None and (not isinstance(found, int) or found < 1):
            raise ReflowError(f"{self.settings.path}: count must give a number above 0 or None")
        return found

    @property
    def origin(self) -> dict[str, Any]:
        """The class and its settings."""
        return {"path": self.settings.path, "settings": self.settings.settings}

    @property
    def times(self) -> Times:
        """The times of the states that the class gives."""
        found = self._asked(lambda: self.settings.own.times())
        none = isinstance(found, tuple | list) and not found
        return () if none else checked(found, self.settings.path)

    def read(self, first: int, last: int, *, states: bool = False) -> Block:
        """Return the pairs `first` to `last` - 1, checked."""
        ids = np.arange(first, last, dtype=np.int64)
        found = self._asked(lambda: self.settings.own.pairs(ids))
        times, sides = self.times, found if isinstance(found, tuple | list) else ()
        path = sides[-1] if times and len(sides) > 2 else None
        sides = sides[:-1] if path is not None else sides
        texts = len(sides) == 3 and _are_texts(sides[2])
        wrong = len(sides) not in (2, 3) or (path is None) != (not times)
        tensors = [*sides[: 2 if texts else 3], *([] if path is None else [path])]
        wrong = wrong or not all(isinstance(x, Tensor) for x in tensors)
        if wrong or any(len(x) != len(ids) for x in [*sides, *tensors]):
            shown = [*sides, *([] if path is None else [path])]
            got = [list(x.shape) if isinstance(x, Tensor) else type(x).__name__ for x in shown]
            last_are = f", and states [{len(ids)}, {len(times)}, *D]" if times else ""
            raise ReflowError(
                f"{self.settings.path}: pairs must give tensors target and source [{len(ids)}, *D]"
                f" and perhaps label [{len(ids)}], or as many texts{last_are}, got"
                f" {got or type(found).__name__}"
            )
        target, source = (x.detach().cpu().float().numpy() for x in sides[:2])
        label = sides[2] if len(sides) == 3 else None
        if label is not None:
            label = np.array(label, dtype=object) if texts else label.detach().cpu().numpy()
        if path is None or not states:
            return Block(target, source, label)
        kept = apart(path.detach().cpu().float().numpy(), times, self.settings.path)
        return Block(target, source, label, states=kept)

    def check(self) -> None:
        """Raise ReflowError if a pair is another one when it is made beside others."""
        if (self.count or 3) < 3:
            return
        with_states = bool(self.times)
        beside, alone = (self.read(*some, states=with_states) for some in ((0, 3), (1, 2)))
        for side in ("target", "source", *(["states"] if with_states else [])):
            whole, one = (torch.from_numpy(getattr(b, side)) for b in (beside, alone))
            gap = float((whole[1:2] - one).abs().max())
            if gap > CLOSE * max(1e-6, float(one.abs().max())):
                raise ReflowError(
                    f"{self.settings.path}: the {side} of pair 1 is another one without pair 0"
                    f" beside it (by {gap:.2g}); each pair must be a function of its id alone"
                )

    def _asked(self, call: Any) -> Any:
        try:
            return called(self.settings.path, call)
        except ValueError as error:
            raise ReflowError(str(error)) from None


def _are_texts(label: object) -> bool:
    return isinstance(label, list | tuple) and all(isinstance(text, str) for text in label)
