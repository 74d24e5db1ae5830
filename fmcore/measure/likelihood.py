"""Exact log-likelihood of a flow: the instantaneous change of variables (Chen et al. 2018).

log p(x) = log N(x(1)) + the integral over t in [0, 1] of div v(x(t), t) along the ODE from x(0) to
x(1); the divergence exact, or by Hutchinson's estimate with fixed signs.
"""

import math
from collections.abc import Callable
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from fmcore.choices.solvers import GridSolver
from fmcore.matching.conversions import Velocity
from fmcore.sampling.flow import Flow
from fmcore.settings import Settings, SeveralSamples, derive_seed
from fmcore.solve.solver import Solver, solve

EXACT_UP_TO = 64
"""Largest dimension for which `auto` takes the exact trace, which needs one gradient for each."""

Divergence = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


class Likelihood(Settings):
    """How the likelihood of held-out data is computed, on how many samples."""

    samples: SeveralSamples = 512
    """How many samples are measured: held-out ones where there are any."""
    solver: GridSolver = Solver(name="rk4", steps=32)
    """Solver of the ODE from data to noise, along which the divergence is summed. Raise its steps
    for a smaller error."""
    trace: Literal["auto", "exact", "hutchinson"] = "auto"
    """How the divergence is found: `exact` takes one gradient for each dimension, `hutchinson`
    estimates it, `auto` is exact up to 64 dimensions."""
    probes: int = Field(default=4, gt=0, le=10_000)
    """Random sign vectors of each Hutchinson estimate. Raise it for less noise; cost grows with
    it."""


def log_likelihood(
    flow: Flow,
    x: Tensor,
    settings: Likelihood,
    *,
    seed: int,
    device: torch.device,
    label: Tensor | None = None,
    batch: int = 256,
) -> Tensor:
    """Return log p(x) [N] in nats for x [N, *D]; the only error is that of the solver."""
    tiled, parts = flow.tiled(), []
    exact = settings.trace == "exact" or (settings.trace == "auto" and x[0].numel() <= EXACT_UP_TO)
    for cut in range(0, len(x), batch):
        rows = x[cut : cut + batch].to(device)
        own = None if label is None else label[cut : cut + batch].to(device)
        v = tiled.velocity(own)
        signs = None
        if not exact:
            generator = torch.Generator().manual_seed(derive_seed(seed, "signs", cut))
            shape = (settings.probes, *rows.shape)
            signs = (2.0 * torch.randint(2, shape, generator=generator) - 1).to(device)
        parts.append(_carried(v, rows, signs, settings.solver, flow.interpolant.noise_scale))
    return torch.cat(parts)


def _carried(v: Velocity, x: Tensor, signs: Tensor | None, solver: Solver, scale: float) -> Tensor:
    """Solve for the point and the integral of the divergence together."""
    size = x[0].numel()
    divergence = _exact(v) if signs is None else _hutchinson(v, signs)

    def both(state: Tensor, t: Tensor) -> Tensor:
        speed, div = divergence(state[:, :size].reshape(x.shape), t)
        return torch.cat([speed.flatten(1), div[:, None]], dim=1)

    start = torch.cat([x.flatten(1), x.new_zeros(len(x), 1)], dim=1)
    end = solve(both, start, solver, start=0.0, end=1.0).x.double().cpu()
    z, integral = end[:, :size] / scale, end[:, size]
    prior = -z.square().sum(1) / 2 - size * (math.log(2 * math.pi) / 2 + math.log(scale))
    return prior + integral


def _exact(v: Velocity) -> Divergence:
    @torch.enable_grad()
    def value(x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        x = x.detach().requires_grad_(True)
        speed = v(x, t)
        flat, total = speed.flatten(1), torch.zeros(len(x), device=x.device)
        for i in range(flat.shape[1]):
            (slope,) = torch.autograd.grad(flat[:, i].sum(), x, retain_graph=True)
            total = total + slope.flatten(1)[:, i]
        return speed.detach(), total

    return value


def _hutchinson(v: Velocity, signs: Tensor) -> Divergence:
    """E[e . (dv/dx) e] over random signs e is the trace (Hutchinson 1989)."""

    @torch.enable_grad()
    def value(x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        x = x.detach().requires_grad_(True)
        speed = v(x, t)
        total = torch.zeros(len(x), device=x.device)
        for e in signs:
            (slope,) = torch.autograd.grad((speed * e).sum(), x, retain_graph=True)
            total = total + (slope * e).flatten(1).sum(1)
        return speed.detach(), total / len(signs)

    return value


def bits_per_dim(nats: float, size: int) -> float:
    """Return -log2 p per dimension of an image of 256 levels that was scaled to [-1, 1].

    `nats` is the mean -log p of images with uniform noise of one level added (dequantised).
    """
    return nats / (size * math.log(2)) + math.log2(127.5)
