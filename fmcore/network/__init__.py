"""Velocity networks, their exponential moving average, and how they are kept on disk."""

from fmcore.network.build import Network, VelocityNetwork, build, with_spans
from fmcore.network.ema import averaged
from fmcore.network.images import DiT, ImageNetwork, UNet
from fmcore.network.mlp import MLP, ResidualMLP
from fmcore.network.store import Model, load, save, write_tensors

__all__ = [
    "MLP",
    "DiT",
    "ImageNetwork",
    "Model",
    "Network",
    "ResidualMLP",
    "UNet",
    "VelocityNetwork",
    "averaged",
    "build",
    "load",
    "save",
    "with_spans",
    "write_tensors",
]
