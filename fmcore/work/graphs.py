"""Network calls recorded as CUDA graphs and replayed: one start for all kernels of a call."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fmcore.settings import ReflowError

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
        key = _shapes(inputs)
        if key not in self.graphs:
            if len(self.graphs) == MOST:
                return self.call(*inputs)
            held = [None if a is None else _own(a) for a in inputs]
            self.graphs[key] = held, self.record(self.call, held)
        held, replay = self.graphs[key]
        _fill(held, inputs)
        return replay().clone()  # the next replay writes into the same memory


class GraphedGradient:
    """A forward and backward pass of a batch, replayed on a GPU; the weights get its gradients.

    `backward` returns a tensor and leaves gradients of `weights`, which the recorded kernels write
    into the same memory each time. A batch of another size is computed as it is.
    """

    device = "cuda"

    def __init__(
        self,
        backward: Call,
        weights: Sequence[nn.Parameter],
        record: Callable[[Call, list[Any]], Call] | None = None,
    ) -> None:
        self.backward, self.weights, self.record = backward, weights, record or recorded
        self.made: tuple[Any, list[Tensor | None], Call, list[Tensor | None]] | None = None

    def __call__(self, *inputs: Tensor | None) -> Tensor:
        """Set the gradients of the weights for these inputs; return what `backward` returns."""
        first = inputs[0]
        if first is None or first.device.type != self.device:
            return self._once(*inputs)
        if self.made is None:
            held = [None if a is None else _own(a) for a in inputs]
            replay = self.record(self._once, held)
            self.made = _shapes(inputs), held, replay, [w.grad for w in self.weights]
        key, held, replay, gradients = self.made
        if key != _shapes(inputs):
            return self._once(*inputs)
        _fill(held, inputs)
        for weight, gradient in zip(self.weights, gradients, strict=True):
            weight.grad = gradient
        return replay().clone()  # the next replay writes into the same memory

    def _once(self, *inputs: Tensor | None) -> Tensor:
        for weight in self.weights:
            weight.grad = None  # so that the backward pass writes and does not add
        return self.backward(*inputs)


def _shapes(inputs: Sequence[Tensor | None]) -> Any:
    return tuple(None if a is None else (a.shape, a.dtype, a.stride(0) == 0) for a in inputs)


def recorded(call: Call, held: list[Any]) -> Call:
    """Record a call on `held` as a CUDA graph; return a function that replays it.

    Raises ReflowError where the call cannot be recorded.
    """
    aside = torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        for _ in range(WARM):
            call(*held)
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            out = call(*held)
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:  # it waited for the GPU, or chose by a value
        raise ReflowError(
            f"compute.cuda_graphs: this network cannot be recorded"
            f" ({str(error).splitlines()[0]}); set it to false"
        ) from error

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
