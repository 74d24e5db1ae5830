"""Pretrained feature networks: the Inception of 2015, DINOv2 and CLIP; Lite0 is in `lite0.py`.

Images of any size in [-1, 1], gray or RGB; gray is repeated. No file is downloaded.
"""

from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from fmcore.features.inception import Inception, tf1_resize
from fmcore.features.lite0 import read_weights, rgb
from fmcore.features.vit import ViT
from fmcore.settings import ReflowError

INCEPTION_SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
"""Hash of weights-inception-2015-12-05-6726825d.pth: with these weights the distance is the FID."""

MOMENTS = {
    "dinov2": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "clip": ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
}
"""Mean and standard deviation of the channels with which each network was trained."""


class Inception2015(nn.Module):
    """The Inception of the FID, weights from the user's file: pooled features [B, 2048].

    The file is weights-inception-2015-12-05-6726825d.pth of torch-fidelity, pt_inception-... of
    pytorch-fid. For another file set its `sha256`; its distance is not called fid. Images are
    resized as TensorFlow 1 did, or `clean` (bicubic, Parmar et al. 2022).
    """

    def __init__(
        self, weights: str, sha256: str, resize: Literal["tensorflow", "clean"] = "tensorflow"
    ) -> None:
        super().__init__()
        self.config: dict[str, Any] = {"kind": "inception", "weights": weights, "sha256": sha256}
        self.resize = resize
        self.net = Inception()
        found, _ = read_weights(Path(weights), sha256)
        kept = {k: v for k, v in found.items() if not k.startswith("AuxLogits.")}
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
        return self.outputs(images)[0]

    def outputs(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return pooled features [B, 2048], logits [B, 1008] and spatial features [B, 2023]."""
        levels = ((rgb(images) + 1) * 127.5).round()
        if self.resize == "clean":
            size = (299, 299)
            levels = functional.interpolate(
                levels, size=size, mode="bicubic", antialias=True
            ).clamp(0, 255)
        else:
            levels = tf1_resize(levels, 299)
        return self.net.outputs((levels - 128) / 128)


class Transformer(nn.Module):
    """A vision transformer with weights from the user's file: features [B, width].

    `dinov2` is dinov2_vitl14_pretrain.pth of the authors, at 224 pixels as in FD-DINOv2 (Stein et
    al. 2023); `clip` is CLIP ViT-L/14 at 336 pixels in the layout of Hugging Face, as in CMMD
    (Jayasumana et al. 2024). Other sizes of both are read as well, and have other fingerprints.
    """

    def __init__(self, kind: Literal["dinov2", "clip"], weights: str, sha256: str | None) -> None:
        super().__init__()
        found, digest = read_weights(Path(weights), sha256)
        self.config: dict[str, Any] = {"kind": kind, "weights": weights, "sha256": digest}
        try:
            self.net = ViT(found, clip=kind == "clip")
        except (KeyError, RuntimeError, ValueError) as error:
            reason = str(error).splitlines()[-1].strip()[:150]
            raise ReflowError(f"{weights}: not the weights of {kind} ({reason})") from error
        mean, std = MOMENTS[kind]
        self.register_buffer("mean", torch.tensor(mean).reshape(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).reshape(3, 1, 1), persistent=False)
        self.eval().requires_grad_(False)

    def features(self, images: Tensor) -> Tensor:
        """Return the features: of DINOv2 the class token, of CLIP the projected embedding."""
        levels = ((rgb(images) + 1) * 127.5).round()
        if self.config["kind"] == "dinov2":  # Pillow's bicubic on bytes, as the authors of the FD
            levels = functional.interpolate(levels, size=(224, 224), mode="bicubic", antialias=True)
            levels = levels.round().clamp(0, 255)
        else:
            levels = functional.interpolate(levels, size=(self.net.side,) * 2, mode="bicubic")
        x = (levels / 255 - self.get_buffer("mean")) / self.get_buffer("std")
        return cast(Tensor, self.net(x))
