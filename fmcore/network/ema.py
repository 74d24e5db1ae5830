"""The exponential moving average of a network's weights, and its length in steps or in samples."""

import math
from collections.abc import Callable, Iterable
from typing import Annotated

import torch
from pydantic import Discriminator, Field, Tag
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from fmcore.settings import Settings


class HalfLife(Settings):
    """The length of an average in training samples: of those longer ago, weights count half."""

    half_life: float = Field(ge=1, le=1e12)
    """Samples after which weights count half; the decay of a step is 0.5^(batch / half_life), as in
    EDM (Karras et al. 2022; 500000 on CIFAR-10). It keeps its meaning at any batch."""


def _kind(given: object) -> str:
    return "half_life" if isinstance(given, dict | HalfLife) else "decay"


Decay = Annotated[float, Field(ge=0, lt=1)]
Ema = Annotated[
    Annotated[Decay, Tag("decay")] | Annotated[HalfLife, Tag("half_life")], Discriminator(_kind)
]
"""The length of an average: the decay of a step, or a half-life in samples."""


def decay_of(ema: float | HalfLife, batch: int) -> float:
    """Return the decay of a step of `batch` samples.

    >>> decay_of(HalfLife(half_life=256), 256)
    0.5
    """
    return float(0.5 ** (batch / ema.half_life)) if isinstance(ema, HalfLife) else ema


def half_life_of(decay: float, batch: int) -> float:
    """Return the half-life in samples of a decay per step of `batch` samples; 0 for decay 0.

    >>> round(half_life_of(decay_of(HalfLife(half_life=5e4), 64), 64))
    50000
    """
    return batch * math.log(0.5) / math.log(decay) if decay > 0 else 0.0


def ramped(decay: float, n: float) -> float:
    """Return the decay of update n (from 0): min(decay, (1 + n) / (10 + n)).

    Its half-life is 8 % of the steps done (log 2 / 9), until it reaches its own length.
    """
    return min(decay, (1 + n) / (10 + n))


def trained(network: nn.Module) -> list[nn.Parameter]:
    """Return the weights that a training changes: all, unless some ask for a gradient alone."""
    own = [p for p in network.parameters() if p.requires_grad]
    return own or list(network.parameters())


def frozen(network: nn.Module) -> dict[str, Tensor]:
    """Return the weights that a training leaves as they are, in place, by name: none or most."""
    named = dict(network.named_parameters())
    own = {name: p for name, p in named.items() if not p.requires_grad}
    return {} if len(own) == len(named) else {name: p.detach() for name, p in own.items()}


def here(tensors: Iterable[Tensor]) -> list[Tensor]:
    """Return what this process has of each tensor: all of it, unless several divide it."""
    return [t.to_local() if hasattr(t, "to_local") else t for t in tensors]


class Average(AveragedModel):
    """An average of a network's weights: update n = 1, 2, ... adds the share `share(n)` of them.

    Its first update, n = 0, is the weights themselves. The parameters of both networks are listed
    once, where AveragedModel groups them at each step; buffers are copied. Weights that are not
    trained lie in memory once.
    """

    def __init__(self, model: nn.Module, share: Callable[[int], float]) -> None:
        super().__init__(model)
        self._share = share
        self._of = [model]  # in a list: a module as an attribute would be a part of this one
        shared = frozen(model)
        for name, weight in self.module.named_parameters():
            if name in shared:
                weight.data = shared[name]
        self.list_weights()
        self._own_buffers, self._new_buffers = list(self.module.buffers()), list(model.buffers())

    def list_weights(self) -> None:
        """List what is trained in both networks; again after it was divided among processes."""
        self._own: list[Tensor] = [*trained(self.module)]
        self._new: list[Tensor] = [*trained(self._of[0])]
        self._divided = any(hasattr(p, "to_local") for p in self._new)

    @torch.no_grad()
    def update_parameters(self, model: nn.Module) -> None:
        """Add the weights of `model`, which is the network that it was made of.

        Raises ValueError for another one.
        """
        if model is not self._of[0]:
            raise ValueError("an average adds the weights of the network that it was made of")
        n = int(self.n_averaged)  # it lies on the CPU: no device is waited for
        own, new = self._own, self._new
        if self._divided:
            own, new = here(own), here(new)
        if n:
            torch._foreach_lerp_(own, new, self._share(n))
        else:
            torch._foreach_copy_(own, new)
        if self._own_buffers:
            torch._foreach_copy_(self._own_buffers, self._new_buffers)
        self.n_averaged += 1


def averaged(model: nn.Module, decay: float) -> Average:
    """Return the exponential moving average of `model`, with a ramp for short runs.

    Its first update is the weights themselves: the weights that a training starts from, an average
    of an earlier round or not, have no part in it.
    """
    return Average(model, lambda n: 1 - ramped(decay, n))
