"""The flow-matching loss, and its value on pairs that never trained."""

import math
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from fmcore.coupling import Pairs, open_coupling, read
from fmcore.interpolant import Cosine, Linear, interpolate
from fmcore.settings import derive_seed


def flow_matching_loss(
    velocity: Callable[[Tensor, Tensor], Tensor],
    interpolant: Linear | Cosine,
    target: Tensor,
    source: Tensor,
    t: Tensor,
) -> Tensor:
    """Return E ||v(x_t, t) - u_t||^2 / d [], for target and source [B, *D] and t [B]."""
    x, u = interpolate(interpolant, target, source, t)
    return (velocity(x, t) - u).square().mean()


def spread_times(u: Tensor, law: str) -> Tensor:
    """Carry uniform u [B] in [0, 1] to times of the law, by the inverse of its CDF.

    `u_shaped` has the density of e^{4t} + e^{4(1-t)} (Lee et al. 2024): from round 2 on the ends
    are where the loss is, and one Euler step reads the velocity at t = 1 alone.
    """
    if law == "uniform":
        return u
    top = math.exp(4.0)
    c = (top - 1) * (2 * u.double() - 1)
    return (((c + (c.square() + 4 * top).sqrt()) / 2).log() / 4).to(u.dtype).clamp(0, 1)


@torch.no_grad()
def held_out_losses(
    velocity: torch.nn.Module,
    interpolant: Linear | Cosine,
    coupling: Path,
    *,
    seed: int,
    device: torch.device,
    limit: int,
) -> dict[str, float]:
    """Return the loss on held-out pairs, on as many that trained, and the ratio of the two.

    A ratio well above 1 says that the network remembers its pairs: more pairs, fewer steps.
    """
    opened = open_coupling(coupling)
    held = read(opened, split="held_out", limit=limit)
    if not len(held):
        return {}
    seen = read(opened, split="train", limit=len(held))
    was_training = velocity.training
    velocity.eval()
    losses = [_loss(velocity, interpolant, p, seed, device, limit) for p in (held, seen)]
    velocity.train(was_training)
    return {
        "held_out_loss": losses[0],
        "train_loss": losses[1],
        "held_out_ratio": losses[0] / max(losses[1], 1e-12),
    }


def _loss(
    velocity: torch.nn.Module,
    interpolant: Linear | Cosine,
    pairs: Pairs,
    seed: int,
    device: torch.device,
    evaluations: int,
) -> float:
    """Average over about `evaluations` times, stratified over [0, 1] and dealt to the pairs."""
    repeats = max(1, evaluations // len(pairs))
    n = repeats * len(pairs)
    generator = torch.Generator().manual_seed(derive_seed(seed, "held_out_time"))
    times = (torch.randperm(n, generator=generator) + 0.5) / n
    total = 0.0
    for t in times.split(len(pairs)):
        for rows in torch.arange(len(pairs)).split(1024):
            part = pairs.rows(rows)
            inputs = (a.to(device) for a in (part.target, part.source, t[rows]))
            total += float(flow_matching_loss(velocity, interpolant, *inputs)) * len(rows)
    return total / n
