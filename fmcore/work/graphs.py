"""Network calls recorded as CUDA graphs and replayed: one start for all kernels of a call."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

Call = Callable[..., Tensor]
MOST = 4
"""Graphs that are kept for one network: each holds its own memory."""
WARM = 3
"""Calls before recording, in which libraries choose kernels and allocate."""


class Graphed:
    """A network that replays calls without gradients on a GPU; other calls are made as they are.

    A graph has the shapes with which it was recorded. Sampling calls a network with one shape
    (`compute.in_tiles`), so one graph is enough.
    """

    device = "cuda"

    def __init__(self, call: Call, record: Callable[[Call, list[Any]], Call] | None = None) -> None:
        self.call, self.record = call, record or recorded
        self.graphs: dict[Any, tuple[list[Tensor | None], Call]] = {}

    def __call__(self, *inputs: Tensor | None) -> Tensor:
        """Return what the network returns for these inputs, in memory of its own."""
        first = inputs[0]
        if first is None or first.device.type != self.device or torch.is_grad_enabled():
            return self.call(*inputs)
        key = tuple(None if a is None else (a.shape, a.dtype, a.stride(0) == 0) for a in inputs)
        if key not in self.graphs:
            if len(self.graphs) == MOST:
                return self.call(*inputs)
            held = [None if a is None else _own(a) for a in inputs]
            self.graphs[key] = held, self.record(self.call, held)
        held, replay = self.graphs[key]
        _fill(held, inputs)
        return replay().clone()  # the next replay writes into the same memory


def recorded(call: Call, held: list[Any]) -> Call:
    """Record a call on `held` as a CUDA graph; return a function that replays it."""
    aside = torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        for _ in range(WARM):
            call(*held)
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = call(*held)

    def replay() -> Tensor:
        graph.replay()
        return out

    return replay


def _own(a: Tensor) -> Tensor:
    """Return a copy; one value for all rows stays one, expanded."""
    return a[:1].clone().expand_as(a) if a.stride(0) == 0 else a.contiguous().clone()


def _fill(held: Sequence[Tensor | None], inputs: Sequence[Tensor | None]) -> None:
    for into, a in zip(held, inputs, strict=True):
        if into is not None and a is not None:
            same = a.stride(0) == 0
            (into[:1] if same else into).copy_(a[:1] if same else a)
