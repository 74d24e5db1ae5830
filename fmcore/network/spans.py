"""The input for spans of a network of diffusers: added to what it makes of the time."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.autograd import forward_ad

Spans = Annotated[bool, Field(exclude_if=lambda spans: not spans)]
"""Whether a network has an input for spans; settings of one without are written as ever."""

WAVES = 32
"""Sines, and as many cosines, of a span: from an eighth of half a period over [0, 1] to two."""
EMBEDDING = "TimestepEmbedding"
"""The class of diffusers that embeds a time: one in a U-Net, one in each block of a DiT."""
OF_TIMES = ("time_embedding", "timestep_embedder")
"""What diffusers calls those that embed the time; others of that class embed sizes or guidance."""


class SpanInput(nn.Linear):
    """An embedding of the span [B] for each embedding of the time in `net`; 0 before training.

    torch's forward-mode product of GroupNorm takes a view of a tangent, which lies in one piece if
    its input does, and leaves it in the precision of the weights: hooks see to both, and change
    nothing elsewhere, so that the network rounds as it does without a span.
    """

    def __init__(self, net: nn.Module) -> None:
        times: list[Any] = [m for name, m in net.named_modules() if _embeds_time(name, m)]
        width = sum(m.linear_2.out_features for m in times)
        super().__init__(2 * WAVES, width, bias=False)
        nn.init.zeros_(self.weight)
        self.times = times  # a list, so that they stay modules of the net alone
        for module in times:
            module.added = None
            module.register_forward_hook(_with_added)
        for module in net.modules():
            if isinstance(module, nn.GroupNorm):
                module.register_forward_pre_hook(_in_one_piece)

    @contextmanager
    def added(self, span: Tensor) -> Iterator[None]:
        """Let the embeddings of the time have those of `span` [B] added to them."""
        slow = torch.logspace(0, math.log10(16), WAVES, dtype=span.dtype, device=span.device)
        angles = span[:, None] * (math.pi / 8 * slow)
        parts = self(torch.cat([angles.sin(), angles.cos()], dim=1)).chunk(len(self.times), dim=1)
        for module, part in zip(self.times, parts, strict=True):
            module.added = part
        try:
            yield
        finally:
            for module in self.times:
                module.added = None


def _embeds_time(name: str, module: nn.Module) -> bool:
    return type(module).__name__ == EMBEDDING and name.split(".")[-1] in OF_TIMES


def _with_added(module: Any, _: Any, out: Tensor) -> Tensor:
    return out if module.added is None else out + module.added


def _in_one_piece(norm: nn.GroupNorm, given: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    if all(forward_ad.unpack_dual(x).tangent is None for x in given):
        return given
    return tuple(x.to(norm.weight.dtype).contiguous() for x in given)
