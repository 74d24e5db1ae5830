"""Velocity networks of the user's own."""

import inspect
from typing import Any, ClassVar, get_type_hints

import torch
from pydantic import create_model
from torch import Tensor, nn

from fmcore.own import Own, called, find, parsed
from fmcore.settings import ClassCount, ReflowError, Settings

GIVEN = ("self", "shape", "classes")
"""The arguments of a network's constructor besides its settings."""


class OwnNetwork(nn.Module):
    """The base of a velocity network of your own (`name: custom`).

    Its constructor takes `shape` [*D], `classes`, then its settings, with types and defaults;
    params.yaml gives their values. It calls `super().__init__(shape, classes)`. `forward(x, t,
    label)` returns dx/dt [B, *D] at x [B, *D] and t [B] in [0, 1]; the label [B] is in 0 ...
    `classes`; `classes` itself is the null class, and so is None. Weights and buffers are saved as
    safetensors.
    """

    tile: int = 32
    """Rows of a network call on the CPU."""
    settings: "Custom"

    def __init__(self, shape: tuple[int, ...], classes: int = 0) -> None:
        super().__init__()
        self.shape, self.classes = tuple(shape), classes

    def labels(self, label: Tensor | None, like: Tensor) -> Tensor:
        """Return the labels [B], those of the null class for None; `like` is t [B]."""
        null = torch.full_like(like, self.classes, dtype=torch.int64)
        return null if label is None else label


class Custom(Own):
    """A network of the user's own, a subclass of `OwnNetwork`.

    `classes` > 0 gives it labels, and a null class for guidance.
    """

    base: ClassVar[type] = OwnNetwork
    classes: ClassCount = 0
    """Number of classes of the labels; 0 for a network without labels. Set it for guidance."""

    @property
    def own(self) -> Any:
        """The settings with which the user's class is called."""
        kind = find(self.path, OwnNetwork)
        return parsed(_settings_of(kind, self.path), self.settings)

    def build(self, shape: tuple[int, ...]) -> OwnNetwork:
        """Make the network, and check that its output has the shape of a sample."""
        try:
            kind, settings = find(self.path, OwnNetwork), dict(self.own)
            network: OwnNetwork = called(self.path, lambda: kind(shape, self.classes, **settings))
            network.settings = self
            called(self.path, _try, network, shape)
        except ValueError as error:
            raise ReflowError(f"network: {error}") from None
        return network


def _settings_of(kind: type[OwnNetwork], path: str) -> type[Settings]:
    """Return the settings class that the constructor of a network describes."""
    found, hints = inspect.signature(kind.__init__).parameters, get_type_hints(kind.__init__)
    if tuple(found)[:3] != GIVEN:
        raise ValueError(f"{path}: __init__ must begin with (self, shape, classes), and settings")
    fields: dict[str, Any] = {}
    for name, parameter in list(found.items())[3:]:
        if parameter.kind in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL):
            raise ValueError(f"{path}: __init__ must name each of its settings, not *{name}")
        default = ... if parameter.default is parameter.empty else parameter.default
        fields[name] = (hints.get(name, Any), default)
    return create_model(kind.__name__, __base__=Settings, **fields)


@torch.no_grad()
def _try(network: OwnNetwork, shape: tuple[int, ...]) -> None:
    x, t = torch.zeros(2, *shape), torch.tensor([0.25, 0.75])
    network.eval()
    label = torch.tensor([0, network.classes]) if network.classes else None
    for out in (network(x, t), network(x, t, label)):
        if out.shape != x.shape:
            raise ValueError(f"forward must return {list(x.shape)}, got {list(out.shape)}")
    network.train()
