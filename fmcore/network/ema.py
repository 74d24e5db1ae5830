"""The exponential moving average of a network's weights."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel


def averaged(model: nn.Module, decay: float) -> AveragedModel:
    """Return the exponential moving average of `model`, with a ramp for short runs.

    The decay of update n is min(decay, (1 + n) / (10 + n)), so the initial weights are forgotten.
    """

    @torch.no_grad()
    def update(ema: Any, current: Any, n: Tensor | int) -> None:
        count = float(n)
        torch._foreach_lerp_(ema, current, 1 - min(decay, (1 + count) / (10 + count)))

    return AveragedModel(model, multi_avg_fn=update)
