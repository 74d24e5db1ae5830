"""Velocity networks of the user's own."""

import inspect
from typing import Any, ClassVar, get_type_hints

import torch
from pydantic import create_model
from torch import Tensor, nn

from fmcore.conditions.table import ConditionInput, zeros
from fmcore.network.given import Given, Labelled
from fmcore.own import Own, called, find, parsed
from fmcore.settings import ReflowError, Settings

GIVEN = ["self", "shape", "classes"]
"""The arguments of a network's constructor besides its settings."""
CONDITIONS = "conditions"
"""The next one, of a network that takes the conditions of the data."""


class OwnNetwork(nn.Module):
    """The base of a velocity network of your own (`name: custom`).

    Its constructor takes `shape` [*D], `classes`, then its settings, with types and defaults;
    params.yaml gives their values. It calls `super().__init__(shape, classes)`. `forward(x, t,
    label)` returns dx/dt [B, *D] at x [B, *D] and t [B] in [0, 1]; the label [B] is in 0 ...
    `classes`; `classes` itself is the null class, and so is None. Weights and buffers are saved as
    safetensors.

    With `conditions: {}` it takes the texts or vectors of the data. Its constructor then has
    `conditions`, their sizes, after `classes`, and calls `super().__init__(shape, classes,
    conditions)`. `classes` is 0, the label [B] is the row of a condition, and
    `self.given.vector(label, t)` or `.sequence(label, t)` is what the row holds.
    """

    tile: int = 32
    """Rows of a network call on the CPU."""
    settings: "Custom"
    given: Given
    """The conditions by their rows; only there if the constructor was given their sizes."""

    def __init__(
        self, shape: tuple[int, ...], classes: int = 0, conditions: ConditionInput | None = None
    ) -> None:
        super().__init__()
        self.shape, self.classes = tuple(shape), classes
        if conditions is not None:
            self.given = Given(conditions)

    def labels(self, label: Tensor | None, like: Tensor) -> Tensor:
        """Return the labels [B], for None those of the null class or row; `like` is t [B]."""
        given: Given | None = getattr(self, "given", None)
        if given is not None:
            return given.rows(label, like)
        null = torch.full_like(like, self.classes, dtype=torch.int64)
        return null if label is None else label


class Custom(Labelled, Own):
    """A network of the user's own, a subclass of `OwnNetwork`."""

    base: ClassVar[type] = OwnNetwork

    @property
    def own(self) -> Any:
        """The settings with which the user's class is called."""
        kind = find(self.path, OwnNetwork)
        _check_conditions(kind, self.path, wanted=self.conditions is not None)
        return parsed(_settings_of(kind, self.path), self.settings)

    def build(self, shape: tuple[int, ...]) -> OwnNetwork:
        """Make the network, and check that its output has the shape of a sample."""
        try:
            kind, settings = find(self.path, OwnNetwork), dict(self.own)
            if self.conditions is not None:
                settings[CONDITIONS] = self.conditions
            network: OwnNetwork = called(self.path, lambda: kind(shape, self.learnt, **settings))
            network.settings = self
            if self.conditions is not None and not hasattr(network, "given"):
                raise ValueError(
                    f"{self.path}: __init__ must call super().__init__(shape, classes, conditions)"
                )
            called(self.path, _try, network, shape)
        except ValueError as error:
            raise ReflowError(f"network: {error}") from None
        return network


def _settings_of(kind: type[OwnNetwork], path: str) -> type[Settings]:
    """Return the settings class that the constructor of a network describes."""
    found, hints = _arguments(kind, path), get_type_hints(kind.__init__)
    fields: dict[str, Any] = {}
    for name, parameter in found.items():
        if name == CONDITIONS:
            continue
        if parameter.kind in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL):
            raise ValueError(f"{path}: __init__ must name each of its settings, not *{name}")
        default = ... if parameter.default is parameter.empty else parameter.default
        fields[name] = (hints.get(name, Any), default)
    return create_model(kind.__name__, __base__=Settings, **fields)


def _arguments(kind: type[OwnNetwork], path: str) -> dict[str, inspect.Parameter]:
    """Return the arguments of a constructor after `classes`."""
    found = dict(inspect.signature(kind.__init__).parameters)
    if list(found)[: len(GIVEN)] != GIVEN:
        raise ValueError(f"{path}: __init__ must begin with (self, shape, classes), and settings")
    return {name: found[name] for name in list(found)[len(GIVEN) :]}


def _check_conditions(kind: type[OwnNetwork], path: str, *, wanted: bool) -> None:
    """Raise ValueError for conditions that a class does not take, or those that it lacks."""
    found = _arguments(kind, path).get(CONDITIONS)
    if wanted and found is None:
        raise ValueError(
            f"{path} takes no conditions: let __init__ be (self, shape, classes, conditions, ...)"
            " and call super().__init__(shape, classes, conditions), and forward use"
            " self.given.vector(label, t); or leave conditions out"
        )
    if not wanted and found is not None and found.default is found.empty:
        raise ValueError(
            f"{path} takes the conditions of the data; set conditions: {{}} beside its path, or let"
            " __init__ have conditions=None"
        )


@torch.no_grad()
def _try(network: OwnNetwork, shape: tuple[int, ...]) -> None:
    x, t = torch.zeros(2, *shape), torch.tensor([0.25, 0.75])
    network.eval()
    given: Given | None = getattr(network, "given", None)
    if given is not None:
        given.take(zeros(given.sizes))
    null = network.classes if given is None else 1
    label = torch.tensor([0, null]) if null else None
    for out in (network(x, t), network(x, t, label)):
        if out.shape != x.shape:
            raise ValueError(f"forward must return {list(x.shape)}, got {list(out.shape)}")
    network.train()
    if given is not None:
        given.forget()
