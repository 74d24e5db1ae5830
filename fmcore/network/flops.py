"""The arithmetic of a network, counted by torch.

A multiplication with its addition counts as two operations. Counted are products of matrices,
convolutions and attention; the rest of a network is left out, as is usual. The count depends on the
network and the shape of its input alone, not on the machine.
"""

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from fmcore.network.field import Field, interpolant_of
from fmcore.network.store import Model

TRAINING = 3
"""Evaluations that a sample of a training step costs: one forward, and two for the gradients."""


@torch.no_grad()
def flops_per_evaluation(model: Model) -> int:
    """Return the floating-point operations of one evaluation of the velocity for one sample.

    >>> from fmcore.network.build import MLP, build
    >>> small = build(MLP(width=8, depth=1, time_features=4), (2,), seed=0)
    >>> flops_per_evaluation(Model(small, {}, "")) > 2 * 2 * 2 * 8
    True
    """
    about = model.config
    field = Field(
        model.network,
        interpolant_of(about),
        about.get("objective", "velocity"),
        model.network.settings.classes,
    )
    parameter = next(model.network.parameters())
    x = torch.zeros(1, *model.shape, device=parameter.device)
    label = torch.zeros(1, dtype=torch.int64, device=x.device) if field.classes else None
    # Fused attention has other names on other devices, which the counter does not all know.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        field.velocity(label)(x, torch.full((1,), 0.5, device=x.device))
    return int(counter.get_total_flops())
