"""A vision transformer that reads the published weights of DINOv2 and of CLIP.

Names inside are those of DINOv2's own files; CLIP's, in the layout of Hugging Face, are translated.
Sizes are read off the weights; a head has 64 dimensions, as in all published ones.
"""

import math
from collections.abc import Mapping
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

HEAD = 64
"""Dimensions of an attention head."""

CLIP_NAMES = {
    "embeddings.class_embedding": "cls_token",
    "embeddings.patch_embedding.weight": "patch_embed.proj.weight",
    "embeddings.position_embedding.weight": "pos_embed",
    "pre_layrnorm.weight": "norm_pre.weight",
    "pre_layrnorm.bias": "norm_pre.bias",
    "post_layernorm.weight": "norm.weight",
    "post_layernorm.bias": "norm.bias",
}
CLIP_BLOCK = {
    "layer_norm1": "norm1",
    "layer_norm2": "norm2",
    "self_attn.out_proj": "attn.proj",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}


class Block(nn.Module):
    """x + scale * attention(norm(x)), then x + scale * mlp(norm(x)); CLIP has no scales."""

    def __init__(self, width: int, hidden: int, *, clip: bool) -> None:
        super().__init__()
        eps = 1e-5 if clip else 1e-6
        self.clip = clip
        self.norm1, self.norm2 = nn.LayerNorm(width, eps), nn.LayerNorm(width, eps)
        self.attn = nn.ModuleDict(
            {"qkv": nn.Linear(width, 3 * width), "proj": nn.Linear(width, width)}
        )
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(width, hidden), "fc2": nn.Linear(hidden, width)})
        if not clip:
            self.ls1 = nn.ParameterDict({"gamma": nn.Parameter(torch.ones(width))})
            self.ls2 = nn.ParameterDict({"gamma": nn.Parameter(torch.ones(width))})

    def forward(self, x: Tensor) -> Tensor:
        """Map tokens [B, T, width] to tokens of the same shape."""
        count, tokens, width = x.shape
        qkv = self.attn["qkv"](self.norm1(x)).reshape(count, tokens, 3, width // HEAD, HEAD)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        found = functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(x.shape)
        found = self.attn["proj"](found)
        x = x + (found if self.clip else self.ls1["gamma"] * found)
        inner = self.mlp["fc1"](self.norm2(x))
        # CLIP was trained with the sigmoid approximation of GELU.
        inner = inner * torch.sigmoid(1.702 * inner) if self.clip else functional.gelu(inner)
        found = self.mlp["fc2"](inner)
        out: Tensor = x + (found if self.clip else self.ls2["gamma"] * found)
        return out


class ViT(nn.Module):
    """The class token of the last layer: DINOv2 [B, width], CLIP projected [B, projected].

    Raises KeyError, RuntimeError or ValueError for weights that are of neither.
    """

    def __init__(self, weights: Mapping[str, Tensor], *, clip: bool) -> None:
        super().__init__()
        given = _from_clip(weights) if clip else dict(weights)
        given.pop("mask_token", None)
        width, _, self.patch, _ = given["patch_embed.proj.weight"].shape
        if width % HEAD:
            raise ValueError(f"a width of {width} is no multiple of {HEAD}")
        depth = 1 + max(int(k.split(".")[1]) for k in given if k.startswith("blocks."))
        hidden = len(given["blocks.0.mlp.fc1.bias"])
        self.clip = clip
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(given["pos_embed"].shape))
        conv = nn.Conv2d(3, width, self.patch, self.patch, bias=not clip)
        self.patch_embed = nn.ModuleDict({"proj": conv})
        self.blocks = nn.ModuleList(Block(width, hidden, clip=clip) for _ in range(depth))
        self.norm = nn.LayerNorm(width, 1e-5 if clip else 1e-6)
        if clip:
            self.norm_pre = nn.LayerNorm(width, 1e-5)
            self.projection = nn.Linear(width, len(given["projection.weight"]), bias=False)
        self.load_state_dict(given)

    @property
    def side(self) -> int:
        """The side of the images, in pixels, for which the positions were trained."""
        return math.isqrt(self.pos_embed.shape[1] - 1) * self.patch

    def forward(self, images: Tensor) -> Tensor:
        """Return the features of normalised images [B, 3, side, side]."""
        x = self.patch_embed["proj"](images)
        places = self._positions(*x.shape[2:])
        x = x.flatten(2).transpose(1, 2)
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], 1) + places
        if self.clip:
            x = self.norm_pre(x)
        for block in self.blocks:
            x = block(x)
        found: Tensor = self.norm(x[:, 0])
        return cast(Tensor, self.projection(found)) if self.clip else found

    def _positions(self, high: int, wide: int) -> Tensor:
        """Return the positions [1, 1 + high * wide, width], interpolated as DINOv2 does."""
        places = self.pos_embed
        side = math.isqrt(places.shape[1] - 1)
        if (high, wide) == (side, side):
            return places
        grid = places[:, 1:].reshape(1, side, side, -1).permute(0, 3, 1, 2)
        # The 0.1 is in the published code: it guards the rounding of the size, and shifts the grid.
        scale = ((high + 0.1) / side, (wide + 0.1) / side)
        grid = functional.interpolate(grid, scale_factor=scale, mode="bicubic")
        return torch.cat([places[:, :1], grid.flatten(2).transpose(1, 2)], 1)


def _from_clip(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the vision part of CLIP's weights under the names of DINOv2."""
    first = "vision_model."
    found = {"projection.weight": weights["visual_projection.weight"]}
    own = {k.removeprefix(first): v for k, v in weights.items() if k.startswith(first)}
    for name, here in CLIP_NAMES.items():
        found[here] = own[name]
    found["cls_token"] = found["cls_token"].reshape(1, 1, -1)
    found["pos_embed"] = found["pos_embed"][None]
    layers = {int(k.split(".")[2]) for k in own if k.startswith("encoder.layers.")}
    for i in sorted(layers):
        for part in ("weight", "bias"):
            there, here = f"encoder.layers.{i}", f"blocks.{i}"
            for name, other in CLIP_BLOCK.items():
                found[f"{here}.{other}.{part}"] = own[f"{there}.{name}.{part}"]
            each = [own[f"{there}.self_attn.{name}_proj.{part}"] for name in "qkv"]
            found[f"{here}.attn.qkv.{part}"] = torch.cat(each)
    return found
