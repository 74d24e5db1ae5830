"""The networks, data and couplings that are measured."""

from pathlib import Path

import torch
from torch import Tensor

import fmcore
from fmcore.dataset.densities import EightGaussians
from fmcore.dataset.public import Digits, MNIST5k
from fmcore.network.build import Network, VelocityNetwork, build
from fmcore.network.store import save

PLANE = fmcore.MLP(width=64, depth=2, time_features=32, norm="none")
"""The network of params/eight_gaussians.yaml."""
RESIDUAL = fmcore.MLP(width=320, depth=3, time_features=64)
"""The network of params.yaml (digits)."""
SMALL = fmcore.UNet(name="unet", channels=(16, 32), blocks=1)
"""A small U-Net without patches or classes, in float32."""
NETWORKS: dict[str, tuple[Network, tuple[int, ...]]] = {
    "2-D MLP": (PLANE, (2,)),
    "digits MLP": (RESIDUAL, (1, 8, 8)),
    "small U-Net": (SMALL, (1, 28, 28)),
    "MLP on 784": (RESIDUAL, (1, 28, 28)),
}
IMAGES = "MNIST"
"""The flow whose network is a small U-Net: one evaluation takes a hundred times as long."""
BATCH = {"2-D MLP": 512, "digits MLP": 256, "MLP on 784": 256}
"""Pairs in a training step, as in those files."""


def network(name: str) -> VelocityNetwork:
    """Return an untrained network, for sampling."""
    settings, shape = NETWORKS[name]
    return build(settings, shape, seed=0).eval().requires_grad_(False)


def noise(n: int, shape: tuple[int, ...], seed: int = 0) -> Tensor:
    """Return n samples [n, *D] of N(0, I)."""
    return torch.randn(n, *shape, generator=torch.Generator().manual_seed(seed))


def model_and_data(root: Path, name: str) -> tuple[Path, Path]:
    """Write an untrained model and some data for it; return both folders."""
    model, data = root / "model", root / "data"
    save(model, network(name), about={"round": "rf1"})
    fmcore.write_coupling(data, fmcore.independent(noise(64, NETWORKS[name][1])))
    return model, data


def pairs_in_memory(name: str, n: int) -> fmcore.Pairs:
    """Return n pairs of noise with noise, which cost what any pairs cost."""
    shape = NETWORKS[name][1]
    return fmcore.coupled(noise(n, shape, 1), noise(n, shape, 2))


def trained(name: str, steps: int) -> fmcore.Flow:
    """Train a flow to eight Gaussians, to the digits, or to MNIST with a small U-Net."""
    if name == IMAGES:
        x = MNIST5k(name="mnist_5k").read(0).target
        settings = fmcore.Train(steps=steps, batch=64, lr=1e-3, ema=0.995)
        return fmcore.fit_flow(fmcore.independent(x), settings, network=SMALL)
    if name == "digits":
        x = Digits(name="digits").read(0).target
        settings = fmcore.Train(steps=steps, batch=256, lr=1e-3)
        return fmcore.fit_flow(fmcore.independent(x), settings, network=RESIDUAL)
    x = EightGaussians(name="eight_gaussians", samples=8000).read(0).target
    settings = fmcore.Train(steps=steps, batch=512, lr=1e-2, ema=0.99)
    return fmcore.fit_flow(fmcore.independent(x), settings, network=PLANE)
