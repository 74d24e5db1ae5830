"""The flow-matching loss of a velocity on pairs that are held out from training."""

import torch

from fmcore.choices.laws import LawOfTime
from fmcore.coupling.read import Coupling, Pairs, read
from fmcore.matching.loss import Batch, flow_matching_loss
from fmcore.matching.times import Uniform
from fmcore.network.field import Field
from fmcore.settings import derive_seed


@torch.no_grad()
def held_out_losses(
    field: Field,
    coupling: Coupling,
    *,
    seed: int,
    device: torch.device,
    limit: int,
    law: LawOfTime | None = None,
) -> dict[str, float]:
    """Return the loss on held-out pairs, on as many training pairs, and the ratio of the two.

    Times follow `law`, uniform unless given. A ratio well above 1 means that the network remembers
    its pairs: use more pairs, or fewer steps.
    """
    held = read(coupling, split="held_out", limit=limit)
    if not len(held):
        return {}
    seen = read(coupling, split="train", limit=len(held))
    losses = [_loss(field, p, seed, device, limit, law or Uniform()) for p in (held, seen)]
    return {
        "held_out_loss": losses[0],
        "train_loss": losses[1],
        "held_out_ratio": losses[0] / max(losses[1], 1e-12),
    }


def _loss(
    field: Field, pairs: Pairs, seed: int, device: torch.device, evaluations: int, law: LawOfTime
) -> float:
    """Average over about `evaluations` times, stratified over [0, 1] and spread over the pairs."""
    repeats = max(1, evaluations // len(pairs))
    n = repeats * len(pairs)
    generator = torch.Generator().manual_seed(derive_seed(seed, "held_out_time"))
    times = law.spread((torch.randperm(n, generator=generator) + 0.5) / n)
    total = 0.0
    for rows in torch.arange(n).split(1024):
        part, t = pairs.rows(rows % len(pairs)), times[rows]
        label = part.label.to(device) if field.classes and part.label is not None else None
        batch = Batch(*(a.to(device) for a in (part.target, part.source, t)))
        # The loss of the velocity, whatever the network predicts, so that rounds can be compared.
        _, mean_square = flow_matching_loss(field.velocity(label), batch, field.interpolant)
        total += float(mean_square) * len(rows)
    return total / n
