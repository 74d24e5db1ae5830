"""MeanFlow: learn the velocity averaged over a span, so that one step may be long.

Geng et al. 2025, equation 6, whose t = 1 is the source too: u(x, t, span) is the mean of v over
[t - span, t], and u = v - span d/dt u along the path, with d/dt u = v du/dx + du/dt where t - span
is held fixed. One step of length h is x - h u(x, t, h).
"""

from collections.abc import Callable

import torch
from torch import Tensor

from fmcore.matching.interpolant import expand


def mean_flow_gap(
    network: Callable[..., Tensor],
    x: Tensor,
    velocity: Tensor,
    t: Tensor,
    span: Tensor | None,
    label: Tensor | None,
) -> Tensor:
    """Return u - (velocity - span d/dt u) [B, *D]; the aim is held fixed, no gradient goes there.

    `x` [B, *D] lies on the path at t [B] and moves with `velocity` [B, *D]; no span means 0.
    """
    span = torch.zeros_like(t) if span is None else span

    def average(x: Tensor, t: Tensor, span: Tensor) -> Tensor:
        return network(x, t, label, span)

    ones = torch.ones_like(t)
    u, change = torch.func.jvp(average, (x, t, span), (velocity, ones, ones))  # type: ignore[misc]
    gap: Tensor = u - (velocity - expand(span, x) * change).detach()
    return gap
