"""The arithmetic of a network, counted by torch.

A multiplication with its addition counts as two operations. Counted are products of matrices,
convolutions and attention; the rest of a network is left out, as is usual. The count depends on the
network and the shape of its input alone, not on the machine.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from fmcore.network.field import Field, interpolant_of
from fmcore.network.store import Model

TRAINING = 3
"""Evaluations that a sample of a training step costs: one forward, and two for the gradients."""


class _Operations(TorchDispatchMode):
    """Adds up the operations of what torch calls, by torch's own formulas."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.total = 0

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Return False: what is counted is never compiled, and torch need not load its compiler.

        That takes two seconds, as long as a small evaluation; `FlopCounterMode` does.
        """
        return False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        formula = flop_registry.get(func.overloadpacket)
        if formula is None:
            with self:  # an operation that is made of others
                found = func.decompose(*args, **kwargs)
            if found is not NotImplemented:
                return found
        found = func(*args, **kwargs)
        if formula is not None:
            self.total += formula(*args, **kwargs, out_val=found)
        return found


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
    velocity = field.velocity(label)
    return flops_of(lambda: velocity(x, torch.full((1,), 0.5, device=x.device)))


def flops_of(call: Callable[[], object]) -> int:
    """Return the floating-point operations of a call, derivatives in it included."""
    # Fused attention has other names on other devices, which the counter does not all know.
    with sdpa_kernel(SDPBackend.MATH), _Operations() as counted:
        call()
    return int(counted.total)
