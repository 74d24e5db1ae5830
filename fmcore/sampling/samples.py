"""Many samples on an executor: noise is cut into batches, each sampled to t = 0 by a worker."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from numpy.typing import NDArray
from torch import Tensor

from fmcore.choices.solvers import OdeSolver
from fmcore.sampling.flow import Flow, concatenated
from fmcore.settings import GuidanceWithin
from fmcore.solve.solver import Solution
from fmcore.work.workers import Run

Part = tuple[int, OdeSolver, NDArray[Any], NDArray[Any] | None]
"""First row, solver, noise [B, *D], labels [B]; arrays: pickle sends a tensor with its base."""

Ends = tuple[NDArray[Any], int, NDArray[Any] | None]
"""Endpoints [B, *D], the NFE, and the evaluations [B] of an adaptive solver."""


@dataclass(frozen=True)
class SampleJob:
    """The work of sampling, as an executor sends it to a worker."""

    flow: Flow
    guidance: float | GuidanceWithin
    device: torch.device

    def on(self, device: torch.device) -> Callable[[Part], Ends]:
        """Return `carry`, computing on `device`."""
        return replace(self, flow=self.flow.on(device), device=device).carry

    def carry(self, part: Part) -> Ends:
        """Integrate from the noise of a part to t = 0 in one batch, and count the evaluations."""
        _, solver, noise, label = part
        found = self.flow.sample(
            torch.from_numpy(noise),
            solver,
            device=self.device,
            batch=len(noise),
            label=None if label is None else torch.from_numpy(label),
            guidance=self.guidance,
        )
        counted = None if found.evaluations is None else found.evaluations.numpy()
        return found.x.numpy(), found.nfe, counted


class Rows(Protocol):
    """Sources [N, *D], in memory or drawn as they are asked for."""

    def __len__(self) -> int: ...

    def __getitem__(self, rows: slice, /) -> Tensor: ...


def solutions(
    run: Run[Part, Ends],
    noise: Rows,
    solver: OdeSolver,
    *,
    batch: int,
    label: Tensor | None = None,
) -> Iterator[Solution]:
    """Yield the solution of each batch of noise [N, *D] in order, as `run` integrates it to t = 0.

    start_workers gives `run` for a SampleJob. Samples are in model units. Batches, bytes and counts
    are those of `Flow.sample`, with every executor. A batch that is done waits for those before it.
    """

    def parts() -> Iterator[Part]:
        for cut in range(0, len(noise), batch):
            own = None if label is None else label[cut : cut + batch].numpy()
            yield cut, solver, noise[cut : cut + batch].numpy(), own

    done: dict[int, Solution] = {}
    due = 0
    for part, ends in run(parts()):
        done[part[0]] = _solution(*ends)
        while due in done:
            yield done.pop(due)
            due += batch


def sampled(
    run: Run[Part, Ends],
    noise: Rows,
    solver: OdeSolver,
    *,
    batch: int,
    label: Tensor | None = None,
) -> Solution:
    """Return what `solutions` yields as one solution."""
    return concatenated(list(solutions(run, noise, solver, batch=batch, label=label)))


def _solution(x: NDArray[Any], nfe: int, evaluations: NDArray[Any] | None) -> Solution:
    counted = None if evaluations is None else torch.from_numpy(evaluations)
    return Solution(torch.from_numpy(x), nfe, evaluations=counted)
