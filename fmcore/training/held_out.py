"""The flow-matching loss, and its value on pairs that never trained."""

from pathlib import Path

import torch
from torch import Tensor

from fmcore.coupling.read import Pairs, open_coupling, read
from fmcore.matching.interpolant import Schedule, interpolate
from fmcore.matching.times import LawOfTime, Uniform
from fmcore.sampling.flow import Flow
from fmcore.settings import derive_seed
from fmcore.solve.solver import Velocity


def flow_matching_loss(
    velocity: Velocity, interpolant: Schedule, target: Tensor, source: Tensor, t: Tensor
) -> Tensor:
    """Return E ||v(x_t, t) - u_t||^2 / d [], for target and source [B, *D] and t [B]."""
    x, u = interpolate(interpolant, target, source, t)
    return (velocity(x, t) - u).square().mean()


@torch.no_grad()
def held_out_losses(
    flow: Flow,
    coupling: Path,
    *,
    seed: int,
    device: torch.device,
    limit: int,
    law: LawOfTime | None = None,
) -> dict[str, float]:
    """Return the loss on held-out pairs, on as many that trained, and the ratio of the two.

    Times follow `law`, uniform unless given. A ratio well above 1 says that the network remembers
    its pairs: more pairs, fewer steps.
    """
    opened = open_coupling(coupling)
    held = read(opened, split="held_out", limit=limit)
    if not len(held):
        return {}
    seen = read(opened, split="train", limit=len(held))
    losses = [_loss(flow, p, seed, device, limit, law or Uniform()) for p in (held, seen)]
    return {
        "held_out_loss": losses[0],
        "train_loss": losses[1],
        "held_out_ratio": losses[0] / max(losses[1], 1e-12),
    }


def _loss(
    flow: Flow, pairs: Pairs, seed: int, device: torch.device, evaluations: int, law: LawOfTime
) -> float:
    """Average over about `evaluations` times, stratified over [0, 1] and dealt to the pairs."""
    repeats = max(1, evaluations // len(pairs))
    n = repeats * len(pairs)
    generator = torch.Generator().manual_seed(derive_seed(seed, "held_out_time"))
    times = law.spread((torch.randperm(n, generator=generator) + 0.5) / n)
    times = times.clamp(min=flow.interpolant.first)
    total = 0.0
    for rows in torch.arange(n).split(1024):
        part, t = pairs.rows(rows % len(pairs)), times[rows]
        label = part.label.to(device) if flow.classes and part.label is not None else None
        inputs = (a.to(device) for a in (part.target, part.source, t))
        loss = flow_matching_loss(flow.velocity(label), flow.interpolant, *inputs)
        total += float(loss) * len(rows)
    return total / n
