"""Samples that pass in parts: measured and dropped, so that memory does not grow with them."""

import time
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from fmcore.codec.latents import Units
from fmcore.solve.solver import Solution


def cut_anew(parts: Iterable[Tensor], sizes: Iterable[int]) -> Iterator[Tensor]:
    """Yield the rows of parts [n, *D] in order, in new parts of `sizes`, no longer than needed.

    >>> [len(x) for x in cut_anew([torch.zeros(5, 2), torch.zeros(4, 2)], [3, 3, 3])]
    [3, 3, 3]
    """
    waiting, given = torch.empty(0), iter(parts)
    for size in sizes:
        rows = [waiting] if len(waiting) else []
        missing = size - len(waiting)
        while missing > 0:
            part = next(given, None)
            if part is None:
                raise ValueError(f"{missing} samples are missing")
            rows.append(part)
            missing -= len(part)
        whole = torch.cat(rows) if len(rows) > 1 else rows[0]
        waiting = whole[size:]
        yield whole[:size]


def sizes(n: int, each: int) -> list[int]:
    """Return how many rows the parts of n rows have, `each` at most.

    >>> sizes(5, 2)
    [2, 2, 1]
    """
    return [min(each, n - first) for first in range(0, n, each)]


class Passing:
    """Solutions on their way: iterating gives their samples in the data's own units.

    What has passed is known then: the mean NFE, the seconds that it took to make them, and the
    first samples, `shown` of them.
    """

    def __init__(self, found: Iterable[Solution], units: Units, shown: int) -> None:
        self._found, self._units, self._left = iter(found), units, shown
        self._first: list[Tensor] = []
        self._evaluations, self.count, self.seconds = 0.0, 0, 0.0

    def __iter__(self) -> Iterator[Tensor]:
        while True:
            began = time.perf_counter()
            solution = next(self._found, None)
            self.seconds += time.perf_counter() - began
            if solution is None:
                return
            counted = solution.evaluations
            rows = len(solution.x)
            self._evaluations += solution.nfe * rows if counted is None else float(counted.sum())
            self.count += rows
            x = self._units.inverse(solution.x)
            if self._left > 0:
                self._first.append(x[: self._left].clone())
                self._left -= len(self._first[-1])
            yield x

    @property
    def nfe(self) -> float:
        """The counted evaluations of the network for one sample, the mean over samples."""
        return self._evaluations / self.count

    @property
    def shown(self) -> Tensor:
        """The first samples [shown, *D]."""
        return torch.cat(self._first)
