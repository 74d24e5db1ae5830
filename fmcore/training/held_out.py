"""The flow-matching loss of a velocity on pairs that are held out from training."""

import math

import torch

from fmcore.choices.laws import LawOfTime
from fmcore.coupling.pairs import Pairs
from fmcore.coupling.read import Coupling, read
from fmcore.matching.conversions import usable_times
from fmcore.matching.interpolant import Objective, Schedule
from fmcore.matching.loss import flow_matching_loss
from fmcore.matching.maps import Batch
from fmcore.matching.times import Uniform
from fmcore.network.field import Field
from fmcore.settings import derive_seed

Sides = tuple[Pairs, Pairs]
"""Pairs that are held out, and as many that train."""


def held_out_sides(coupling: Coupling, limit: int) -> Sides:
    """Read the held-out pairs of a coupling, at most `limit`, and as many that train."""
    held = read(coupling, split="held_out", limit=limit)
    return held, read(coupling, split="train", limit=len(held))


@torch.no_grad()
def held_out_losses(
    field: Field,
    sides: Sides,
    *,
    seed: int,
    device: torch.device,
    limit: int,
    law: LawOfTime | None = None,
    pieces: int = 1,
) -> dict[str, float]:
    """Return the loss on held-out pairs, on as many training pairs, and the ratio of the two.

    Also the standard errors of loss and ratio, and the number of held-out pairs. About `limit`
    evaluations are made for each side; without held-out pairs nothing is measured.

    Times follow `law`, uniform unless given. A ratio well above 1 means that the network remembers
    its pairs: use more pairs, or fewer steps.
    """
    if not len(sides[0]):
        return {}
    (loss, error), (own, own_error) = (
        _loss(field, p, seed, device, limit, law or Uniform(), pieces) for p in sides
    )
    ratio = loss / max(own, 1e-12)
    relative = math.hypot(error / max(loss, 1e-12), own_error / max(own, 1e-12))
    return {
        "held_out_loss": loss,
        "train_loss": own,
        "held_out_ratio": ratio,
        "held_out_loss_se": error,
        "held_out_ratio_se": ratio * relative,
        "held_out_pairs": len(sides[0]),
    }


def beside_constant(
    found: dict[str, float],
    held: Pairs,
    interpolant: Schedule,
    objective: Objective,
    law: LawOfTime | None = None,
    pieces: int = 1,
) -> dict[str, float]:
    """Return the held-out loss relative to that of the best constant velocity, and what it needs.

    Not for the objectives noise and target, whose error is divided by alpha or sigma to become that
    of the velocity, so that a good network may have a large one next to the ends; nor for pieces,
    each of which has another constant.
    """
    if not found:
        return {}
    spread = {"target_rms": float(held.target.double().square().mean().sqrt())}
    if objective not in ("velocity", "mean_flow") or pieces > 1:
        return spread
    least = max(constant_loss(held, interpolant, law), 1e-12)
    error = found["held_out_loss_se"] / least
    return {
        "held_out_rel": found["held_out_loss"] / least,
        "held_out_rel_se": error,
        **spread,
    }


def constant_loss(pairs: Pairs, interpolant: Schedule, law: LawOfTime | None = None) -> float:
    """Return the least loss that a velocity has which is the same everywhere: its variance.

    Times follow `law`, uniform unless given.
    """
    n = len(pairs)
    generator = torch.Generator().manual_seed(0)
    t = (law or Uniform()).spread((torch.randperm(n, generator=generator) + 0.5) / n)
    t = t.clamp(*usable_times(interpolant, "velocity"))
    _, _, d_alpha, d_sigma = interpolant.at(t, pairs.target)
    velocity = d_alpha * pairs.target + d_sigma * pairs.source
    return float(velocity.double().var(dim=0, unbiased=False).mean())


def _loss(
    field: Field,
    pairs: Pairs,
    seed: int,
    device: torch.device,
    evaluations: int,
    law: LawOfTime,
    pieces: int,
) -> tuple[float, float]:
    """Average over about `evaluations` times, stratified over [0, 1] and spread over the pairs.

    Also return the standard error over the pairs; those drawn are independent, times of one are
    not.
    """
    repeats = max(1, evaluations // len(pairs))
    n = repeats * len(pairs)
    generator = torch.Generator().manual_seed(derive_seed(seed, "held_out_time"))
    times = law.spread((torch.randperm(n, generator=generator) + 0.5) / n)
    total, by_pair = 0.0, torch.zeros(len(pairs), dtype=torch.float64)
    for rows in torch.arange(n).split(1024):
        part, t = pairs.rows(rows % len(pairs)), times[rows]
        part = part.pieced(t, pieces) if pieces > 1 else part
        label = part.label.to(device) if field.classes and part.label is not None else None
        batch = Batch(*(a.to(device) for a in (part.target, part.source, t)))
        # The loss of the velocity, whatever the network predicts, so that rounds can be compared.
        each, mean_square = flow_matching_loss(field.velocity(label), batch, field.interpolant)
        total += float(mean_square) * len(rows)
        by_pair.index_add_(0, rows % len(pairs), each.double().cpu() / repeats)
    spread = float(by_pair.std()) if len(pairs) > 1 else 0.0
    return total / n, spread / math.sqrt(len(pairs))
