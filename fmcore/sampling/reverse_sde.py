"""Samples of a flow by the reverse SDE, with noise by (seed, row, step)."""

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from fmcore.coupling.noise import gaussian_noise
from fmcore.sampling.flow import Flow, concatenated, with_nulls
from fmcore.sampling.samples import Rows
from fmcore.settings import GridSize, GuidanceWithin, ReflowError, Settings, derive_seed
from fmcore.solve.sde import euler_maruyama
from fmcore.solve.solver import Solution


class Sde(Settings):
    """Euler-Maruyama: the number of equal steps, and the share of the noise."""

    name: str = Field(default="euler_maruyama", pattern="^euler_maruyama$")
    """The scheme: Euler-Maruyama, the only one."""
    steps: GridSize = 64
    """Number of equal steps from t = 1 to t = 0."""
    churn: float = Field(default=1.0, ge=0, le=1)
    """Share of the reverse SDE's noise that each step adds: 0 is the ODE, 1 the full SDE."""


def diffusions(
    flow: Flow,
    source: Rows,
    settings: Sde,
    *,
    seed: int,
    device: torch.device,
    batch: int = 1024,
    label: Tensor | None = None,
    guidance: float | GuidanceWithin = 1.0,
) -> Iterator[Solution]:
    """Integrate from source [N, *D] to t = 0 by the reverse SDE, noise by (seed, row, step).

    Yields the solution of each batch in order. Raises ReflowError where the velocity is no score.
    """
    if not flow.score:
        raise ReflowError(
            "the reverse SDE needs the score, which this velocity does not give:"
            f" {flow.refusal}; or use churn 0 (the ODE)"
        )
    tiled = flow.tiled()
    for first in range(0, len(source), batch):
        rows = source[first : first + batch]
        named = None if label is None else label[first : first + batch].to(device)
        own, shape = np.arange(first, first + len(rows)), tuple(rows.shape[1:])

        def noise(
            step: int, own: NDArray[np.int64] = own, shape: tuple[int, ...] = shape
        ) -> Tensor:
            return gaussian_noise(derive_seed(seed, "sde", step), own, shape)

        start = (flow.interpolant.noise_scale * rows).to(device)
        v = tiled.velocity(named, guidance=guidance)
        steps, churn = settings.steps, settings.churn
        found = euler_maruyama(v, flow.interpolant, start, noise, steps=steps, churn=churn)
        yield concatenated([with_nulls(found, v)])
