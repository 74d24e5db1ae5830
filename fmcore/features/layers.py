"""Layers of a pretrained network, in whose features two images are compared (Zhang et al. 2018).

Images in [-1, 1], gray or RGB; gray is repeated. No file is downloaded.
"""

import re
from collections.abc import Callable
from pathlib import Path
from pickle import UnpicklingError

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from fmcore.features.lite0 import Lite0, rgb
from fmcore.settings import ReflowError

LEAST = 64
"""Side to which smaller images are enlarged: the networks halve it five times."""
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Mean and standard deviation of ImageNet in [0, 1], for which torchvision's weights were made."""
Layers = Callable[[Tensor], list[Tensor]]
"""Images [B, 1 or 3, H, W] -> features [B, C, H', W'] of several layers."""


def distance(layers: Layers, a: Tensor, b: Tensor) -> Tensor:
    """Return the distances [B] of images a and b [B, C, H, W]: 0 for equal ones.

    The sum over layers of the mean over positions of |f(a) / |f(a)| - f(b) / |f(b)||^2, where f has
    one vector at each position. It is LPIPS without its weights of channels.
    """
    pairs = zip(layers(a), layers(b), strict=True)
    each = [(_unit(f) - _unit(g)).square().sum(dim=1).flatten(1).mean(dim=1) for f, g in pairs]
    return torch.stack(each).sum(dim=0)


def _unit(f: Tensor) -> Tensor:
    return f / (f.square().sum(dim=1, keepdim=True) + 1e-10).sqrt()


def layers_of(weights: str | None, device: torch.device) -> Layers:
    """Return the layers of EfficientNet-Lite0, or of a VGG whose weights are in a file.

    The file has the names of torchvision's VGG (`features.0.weight`, ...), as .pth or .safetensors,
    of any width. Raises ReflowError if it cannot be used, or Lite0 is not installed.
    """
    if weights is None:
        return _LiteLayers().to(device)
    return _VggLayers(Path(weights)).to(device)


class _LiteLayers(nn.Module):
    """The last block at each resolution of Lite0."""

    def __init__(self) -> None:
        super().__init__()
        self.net = Lite0().net
        blocks = list(self.net._blocks)
        halved = [i for i, b in enumerate(blocks) if b._depthwise_conv.stride[0] == 2]
        self.kept = {*(i - 1 for i in halved), len(blocks) - 1}
        self.eval().requires_grad_(False)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Return features [B, C, H', W'], one for each resolution."""
        net, found = self.net, []
        x = ((_enlarged(rgb(images)) + 1) * 127.5 - 127) / 128
        x = net._swish(net._bn0(net._conv_stem(x)))
        for i, block in enumerate(net._blocks):
            x = block(x)
            if i in self.kept:
                found.append(x)
        return found


class _VggLayers(nn.Module):
    """The last ReLU before each pool of a VGG, from weights in torchvision's layout."""

    mean: Tensor
    std: Tensor

    def __init__(self, path: Path) -> None:
        super().__init__()
        found = _read(path)
        names = re.compile(r"features\.(\d+)\.weight")
        at = sorted(int(m[1]) for m in map(names.fullmatch, found) if m)
        if not at:
            raise ReflowError(
                f"train.loss.weights: {path}: expected features.N.weight, as torchvision names a"
                " VGG's, found none; give such a file, or leave it out for Lite0"
            )
        self.convolutions, self.pooled = nn.ModuleList(), set[int]()
        for index, (here, before) in enumerate(zip(at, [at[0], *at], strict=False)):
            weight = found[f"features.{here}.weight"]
            if weight.ndim != 4:
                raise ReflowError(
                    f"train.loss.weights: {path}: features.{here}.weight is no convolution but"
                    f" {list(weight.shape)}, as of a VGG with batch normalisation; give one without"
                )
            made = nn.Conv2d(weight.shape[1], weight.shape[0], weight.shape[-1], padding="same")
            made.weight.data, made.bias.data = weight, found[f"features.{here}.bias"]  # type: ignore[union-attr]
            self.convolutions.append(made)
            if here - before > 2:  # convolution, ReLU, pool, convolution
                self.pooled.add(index)
        self.register_buffer("mean", torch.tensor(MEAN)[:, None, None])
        self.register_buffer("std", torch.tensor(STD)[:, None, None])
        self.eval().requires_grad_(False)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Return features [B, C, H', W'], one for each resolution."""
        x, found = ((_enlarged(rgb(images)) + 1) / 2 - self.mean) / self.std, []
        for index, convolution in enumerate(self.convolutions):
            if index in self.pooled:
                found.append(x)
                x = nn.functional.max_pool2d(x, 2)
            x = convolution(x).relu()
        return [*found, x]


def _read(path: Path) -> dict[str, Tensor]:
    """Read weights; no code in the file is run."""
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        found = torch.load(path, map_location="cpu", weights_only=True)
        return found if isinstance(found, dict) else {}
    except (OSError, RuntimeError, SafetensorError, UnpicklingError, EOFError) as error:
        reason = str(error).splitlines()[0][:200]
        raise ReflowError(
            f"train.loss.weights: {path}: cannot be read as weights ({reason}); give a file of"
            " torchvision's VGG, or leave it out for Lite0"
        ) from error


def _enlarged(images: Tensor) -> Tensor:
    size = tuple(max(LEAST, side) for side in images.shape[2:])
    if size == tuple(images.shape[2:]):
        return images
    return nn.functional.interpolate(images, size=size, mode="bilinear", antialias=True)
