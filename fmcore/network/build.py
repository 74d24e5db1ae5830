"""Velocity networks built from their settings."""

from inspect import signature
from typing import Annotated, Any

import torch
from pydantic import BeforeValidator, Field

from fmcore.conditions.table import Table
from fmcore.network.images import DiT, ImageNetwork, MMDiT, UNet
from fmcore.network.mlp import MLP, ResidualMLP
from fmcore.network.outside import Outside, OutsideNetwork
from fmcore.network.own import Custom, OwnNetwork
from fmcore.settings import ReflowError

VelocityNetwork = ResidualMLP | ImageNetwork | OwnNetwork | OutsideNetwork
"""Called as (x [B, *D], t [B], label [B] or None) -> [B, *D]; has `settings`, `shape`, `tile`."""


def _mlp_unless_named(value: Any) -> Any:
    if isinstance(value, dict) and "name" not in value:
        return {"name": "residual_mlp", **value}
    return value


Network = Annotated[
    MLP | UNet | DiT | MMDiT | Custom,
    Field(discriminator="name"),
    BeforeValidator(_mlp_unless_named),
]


AnyNetwork = Annotated[
    MLP | UNet | DiT | MMDiT | Custom | Outside,
    Field(discriminator="name"),
    BeforeValidator(_mlp_unless_named),
]
"""The network of a model on disk: those of params.yaml, and one that others trained."""


def build(settings: AnyNetwork, shape: tuple[int, ...], *, seed: int) -> VelocityNetwork:
    """Make an untrained network for samples of `shape`; the weights are a function of the seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return settings.build(shape)


def fitting(
    settings: Network, table: Table | None, shape: tuple[int, ...], *, seed: int
) -> VelocityNetwork:
    """Make an untrained network for data of `shape` and, if it takes them, its conditions.

    Raises ReflowError if the data has none, or others than the network can take.
    """
    return take(build(settings.sized(table), shape, seed=seed), table)


def take(network: VelocityNetwork, table: Table | None) -> VelocityNetwork:
    """Give a network that takes conditions their table, if it has none; return the network."""
    given = getattr(network, "given", None)
    if given is not None and given.table is None and table is not None:
        given.take(table)
    return network


def table_of(network: VelocityNetwork) -> Table | None:
    """Return the table of conditions that a network was given; None if it takes none."""
    given = getattr(network, "given", None)
    return None if given is None else given.table


def with_spans(network: VelocityNetwork) -> VelocityNetwork:
    """Return the network with an added input for spans, which has no effect before training.

    One of the user's own has it already if its `forward` takes a `span`. Raises ReflowError if it
    does not.
    """
    inner = network.net if isinstance(network, OutsideNetwork) else network
    if isinstance(inner, OwnNetwork):
        if "span" in signature(inner.forward).parameters:
            return network
        raise ReflowError(
            "objective mean_flow needs the span of an average velocity: network"
            f" {inner.settings.path} takes none; let its forward take (x, t, label, span=None)"
        )
    assert not isinstance(network, OwnNetwork)  # which is its own inner network
    if network.settings.spans:
        return network
    wider = build(network.settings.model_copy(update={"spans": True}), network.shape, seed=0)
    wider.load_state_dict({**wider.state_dict(), **network.state_dict()})
    take(wider, table_of(network))
    return wider
