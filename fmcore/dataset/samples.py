"""What every data set gives."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Samples:
    """Targets [N, *D] float32, labels [N] int64 or None, and whether targets are images."""

    target: Tensor
    label: Tensor | None
    image: bool
