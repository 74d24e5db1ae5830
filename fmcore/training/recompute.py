"""Activation checkpointing: blocks keep their inputs and compute the rest again going backward."""

from functools import partial

from torch import nn
from torch.utils.checkpoint import checkpoint

from fmcore.network.build import VelocityNetwork
from fmcore.network.diffusers_class import DiffusersNetwork
from fmcore.network.images import ImageNetwork
from fmcore.network.outside import OutsideNetwork


def blocks_of(network: nn.Module) -> list[nn.Module]:
    """Return the blocks of a network: the modules in its outermost lists, in order.

    Those of the residual MLP, of diffusers' U-Net (a level each) and DiT; in a network of the
    user's own, what it keeps in a ModuleList. A network without a list has none.
    """
    found: list[nn.Module] = []
    for child in network.children():
        found += list(child) if isinstance(child, nn.ModuleList) else blocks_of(child)
    return found


def recompute_blocks(network: VelocityNetwork) -> None:
    """Let the blocks of a network keep no activations but their inputs; a second call is none.

    Random draws inside a block (dropout) are repeated. diffusers knows where to cut its networks.
    """
    inner = network.net if isinstance(network, OutsideNetwork) else network
    if isinstance(inner, ImageNetwork | DiffusersNetwork):
        inner.net.enable_gradient_checkpointing()
        return
    for block in blocks_of(network):
        if "forward" not in vars(block):
            block.forward = partial(checkpoint, block.forward, use_reentrant=False)
