"""Flow maps: what trains a velocity averaged over a span, so that one step may be long.

u(x, t, h) is the mean of the velocity over [t - h, t]: X(x, t, h) = x - h u(x, t, h) carries x from
t down to r = t - h, in one step of Euler. A rule says what u should be on a span. At span 0 each
asks for the velocity v of the pair's own path, so the share of rows without a span
(`train.spans`) is flow matching. On a coupling that a flow made, the paths are straight and hardly
cross: they stand for the flow of a teacher. Papers that count t from noise have r and t reversed.
"""

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from fmcore.matching.interpolant import EDGE, Schedule, expand, interpolate
from fmcore.settings import GridSize, Settings

Network = Callable[..., Tensor]
"""Called as (x [B, *D], t [B], label [B] or None, span [B]) -> u [B, *D]."""


@dataclass(frozen=True)
class Batch:
    """Pairs at times: target and source [B, *D], t [B], label [B] and span [B] or None."""

    target: Tensor
    source: Tensor
    t: Tensor
    label: Tensor | None = None
    span: Tensor | None = None

    def spans(self) -> Tensor:
        """Return the spans [B], 0 for a batch without."""
        return torch.zeros_like(self.t) if self.span is None else self.span


class FlowMap(Settings):
    """The base of every rule."""

    @abstractmethod
    def gap(self, network: Network, batch: Batch, x: Tensor, v: Tensor, path: Schedule) -> Tensor:
        """Return the gap [B, *D] whose square is minimised, at x [B, *D] on the path at batch.t.

        v [B, *D] is the velocity of the path of the pair there.
        """


class MeanFlow(FlowMap):
    """u = v - h d/dt u along the path, where r is held (Geng et al. 2025, equation 6).

    d/dt u = v du/dx + du/dt + du/dh is a forward-mode product; no gradient flows through the aim.
    """

    name: Literal["mean_flow"] = "mean_flow"

    def gap(self, network: Network, batch: Batch, x: Tensor, v: Tensor, path: Schedule) -> Tensor:
        return mean_flow_gap(network, batch, x, v, v)


class Improved(FlowMap):
    """MeanFlow whose derivative follows the network's own velocity (Geng et al. 2025b, iMF).

    V = u + h sg(d/dt u) is fitted to v: the same gap, but d/dt u takes u(x, t, 0) in place of v, a
    function of (x, t) alone, so that V is one too and this is plain regression.
    """

    name: Literal["improved"]

    def gap(self, network: Network, batch: Batch, x: Tensor, v: Tensor, path: Schedule) -> Tensor:
        with torch.no_grad():
            own = network(x, batch.t, batch.label, torch.zeros_like(batch.t))
        return mean_flow_gap(network, batch, x, v, own)


class Aimed(FlowMap):
    """The base of rules whose aim on a span is made of other calls, without a derivative."""

    @abstractmethod
    def aim(self, network: Network, batch: Batch, x: Tensor, path: Schedule) -> Tensor:
        """Return what u should be [B, *D] at x and batch.t over a batch.span above 0."""

    def gap(self, network: Network, batch: Batch, x: Tensor, v: Tensor, path: Schedule) -> Tensor:
        span = batch.spans()
        with torch.no_grad():
            aim = torch.where(expand(span, x) > 0, self.aim(network, batch, x, path), v)
        return network(x, batch.t, batch.label, span) - aim


class Shortcut(Aimed):
    """A step is as good as its two halves (Frans et al. 2024, equation 4).

    u(x, t, h) = [u(x, t, h/2) + u(x', t - h/2, h/2)] / 2 with x' = X(x, t, h/2). There h is a power
    of 1/2; here it is any span that is drawn.
    """

    name: Literal["shortcut"]

    def aim(self, network: Network, batch: Batch, x: Tensor, path: Schedule) -> Tensor:
        t, half = batch.t, batch.spans() / 2
        first = network(x, t, batch.label, half)
        there = x - expand(half, x) * first
        return (first + network(there, t - half, batch.label, half)) / 2


class Consistency(Aimed):
    """All of a path has one end, f(x, t) = X(x, t, t) (Song et al. 2023, algorithm 3).

    f(x_t, t) is that of x_s, next to it on the path of the pair at s = t - 1 / steps. Each span
    reaches to t = 0, so a step of length h goes that part of the way to f: the path itself where it
    is straight, as on a coupling that a flow made. One step is right on any coupling.
    """

    name: Literal["consistency"]
    steps: GridSize = 32
    """Into how many steps [0, 1] is cut: a point learns the end of the one a step nearer to the
    target. More steps are less biased and learn more slowly."""

    def gap(self, network: Network, batch: Batch, x: Tensor, v: Tensor, path: Schedule) -> Tensor:
        to_end = torch.where(batch.spans() > 0, batch.t, 0.0)
        return super().gap(network, replace(batch, span=to_end), x, v, path)

    def aim(self, network: Network, batch: Batch, x: Tensor, path: Schedule) -> Tensor:
        s = (batch.t - 1 / self.steps).clamp(min=0)
        near, _ = interpolate(path, batch.target, batch.source, s)
        end = near - expand(s, x) * network(near, s, batch.label, s)
        return (x - end) / expand(batch.t.clamp(min=EDGE), x)


class Lagrangian(FlowMap):
    """A map moves with the velocity where it ends: dX/dr = v_r(X) (Boffi et al. 2024, LMD).

    dX/dr = u + h du/dh, a forward-mode product with a gradient. v_r is the network at span 0, which
    learned it from the pairs (self-distillation, Boffi et al. 2025); no gradient flows through it.
    """

    name: Literal["lagrangian"]

    def gap(self, network: Network, batch: Batch, x: Tensor, v: Tensor, path: Schedule) -> Tensor:
        t, span = batch.t, batch.spans()
        h = expand(span, x)
        u, change = _forward(
            lambda h: network(x, t, batch.label, h), (span,), (torch.ones_like(t),)
        )
        with torch.no_grad():
            there = network(x - h * u, t - span, batch.label, torch.zeros_like(t))
        return u + h * change - torch.where(h > 0, there, v)


MEAN_FLOW = MeanFlow()
FlowMaps = MeanFlow | Improved | Shortcut | Consistency | Lagrangian


def mean_flow_gap(network: Network, batch: Batch, x: Tensor, v: Tensor, along: Tensor) -> Tensor:
    """Return u - (v - h d/dt u) [B, *D] at x and batch.t, where d/dt u follows `along` [B, *D].

    No gradient flows through v - h d/dt u.
    """
    ones, span = torch.ones_like(batch.t), batch.spans()
    average = lambda x, t, span: network(x, t, batch.label, span)  # noqa: E731
    u, change = _forward(average, (x, batch.t, span), (along, ones, ones))
    return u - (v - expand(span, x) * change).detach()


def _forward(
    call: Callable[..., Tensor], at: tuple[Tensor, ...], along: tuple[Tensor, ...]
) -> tuple[Tensor, Tensor]:
    """Return a value and its derivative along a direction; of attention, one kernel has it."""
    with sdpa_kernel(SDPBackend.MATH):
        value, change = torch.func.jvp(call, at, along)  # type: ignore[misc]
    return value, change
