"""Many samples on an executor: noise is cut into batches, each sampled to t = 0 by a worker."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from fmcore.choices.solvers import OdeSolver
from fmcore.sampling.flow import Flow
from fmcore.work.workers import Run

Part = tuple[int, OdeSolver, NDArray[Any], NDArray[Any] | None]
"""First row, solver, noise [B, *D], labels [B]; arrays: pickle sends a tensor with its base."""


@dataclass(frozen=True)
class SampleJob:
    """The work of sampling, as an executor sends it to a worker."""

    flow: Flow
    guidance: float
    device: torch.device

    def on(self, device: torch.device) -> Callable[[Part], NDArray[Any]]:
        """Return `carry`, computing on `device`."""
        return replace(self, flow=self.flow.on(device), device=device).carry

    def carry(self, part: Part) -> NDArray[Any]:
        """Integrate from the noise of a part to t = 0 in one batch."""
        _, solver, noise, label = part
        found = self.flow.sample(
            torch.from_numpy(noise),
            solver,
            device=self.device,
            batch=len(noise),
            label=None if label is None else torch.from_numpy(label),
            guidance=self.guidance,
        )
        ends: NDArray[Any] = found.x.numpy()
        return ends


def sampled(
    run: Run[Part, NDArray[Any]],
    noise: Tensor,
    solver: OdeSolver,
    *,
    batch: int,
    label: Tensor | None = None,
) -> Tensor:
    """Integrate from noise [N, *D] to t = 0 with `run`, which start_workers gives for a SampleJob.

    Samples are in model units. Batches and bytes are those of `Flow.sample`, with every executor.
    """
    x, own = noise.numpy(), None if label is None else label.numpy()
    parts: list[Part] = [
        (cut, solver, x[cut : cut + batch], None if own is None else own[cut : cut + batch])
        for cut in range(0, len(x), batch)
    ]
    found = {part[0]: torch.from_numpy(ends) for part, ends in run(parts)}
    return torch.cat([found[part[0]] for part in parts])
