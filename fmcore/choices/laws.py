"""Laws of t by their name in params.yaml."""

from typing import Annotated, ClassVar, cast

import torch
from pydantic import BeforeValidator, Field
from torch import Tensor

from fmcore.matching.times import (
    Beta,
    Grid,
    Law,
    LogitNormal,
    Mode,
    Point,
    Uniform,
    UShaped,
)
from fmcore.own import Own
from fmcore.settings import by_name


class Custom(Own, Law):
    """A law of t of the user's own, a subclass of `Law`."""

    base: ClassVar[type] = Law

    def check(self, own: Law) -> None:
        """Check that the times lie in [0, 1]."""
        u = (torch.arange(64) + 0.5) / 64
        t = own.spread(u)
        if t.shape != u.shape or not bool(((t >= 0) & (t <= 1)).all()):
            raise ValueError(f"spread must turn u [{len(u)}] into as many times in [0, 1]")

    def spread(self, u: Tensor) -> Tensor:
        """Return the user's times [B]."""
        return cast(Tensor, self.own.spread(u)).to(u.dtype)


LawOfTime = Annotated[
    Uniform | LogitNormal | Mode | UShaped | Beta | Point | Grid | Custom,
    Field(discriminator="name"),
    BeforeValidator(by_name),
]
