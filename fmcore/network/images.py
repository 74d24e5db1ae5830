"""Image networks of diffusers: UNet2DModel and DiT, conditioned on time, class and span."""

import logging
import warnings
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, Any, Literal, cast

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from fmcore.network.spans import SpanInput
from fmcore.settings import ClassCount, Depth, ReflowError, Settings, Width, check_weights

DIFFUSERS = "diffusers"
"""The subfolder of a model that diffusers can load."""
THOUSANDTHS = 1000.0
"""Time as diffusers counts it: in thousandths."""

TimeScale = Annotated[float, Field(gt=0, le=1e6, exclude_if=lambda scale: scale == THOUSANDTHS)]
Spans = Annotated[bool, Field(exclude_if=lambda spans: not spans)]


class UNet(Settings):
    """diffusers' UNet2DModel: channels and blocks per resolution, attention at levels `attend`.

    Tiny: channels [16, 32]. CIFAR-10: channels [128, 256, 256, 256], blocks 2, attend [1]. For a
    CPU: patch 2, channels [64, 64].
    """

    name: Literal["unet"]
    channels: Annotated[tuple[Width, ...], Field(strict=False, min_length=1, max_length=16)] = (
        32,
        64,
    )
    """Channels at each resolution, the first at full size; each further level halves the image. The
    size must divide by 2 for each halving."""
    patch: Width = 1
    """Side of the squares of pixels that enter as channels of one place; it must divide the image.
    2 makes a level a quarter as costly: with more channels, a better network for a CPU."""
    blocks: Depth = 1
    """Residual blocks at each resolution."""
    attend: Annotated[
        tuple[Annotated[int, Field(ge=0, lt=16)], ...], Field(strict=False, max_length=16)
    ] = ()
    """Levels with self-attention, counted from 0 (full size). Attention at level 0 is slow."""
    head: Width = 8
    """Channels of each attention head."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Share of features that are dropped in training. Raise it to about 0.1 when the network
    remembers a small data set."""
    classes: ClassCount = 0
    """Number of classes of the label, an input of the network; 0 ignores labels. Labels of the data
    must be below it. Guidance needs it."""
    time_scale: TimeScale = THOUSANDTHS
    """Factor of t before its sines and cosines, the fastest of which turns one radian a unit. 1000
    is that of diffusers' schedulers; lower it to about 10 for objective mean_flow, whose loss
    differentiates by t."""
    spans: Spans = False
    """Whether the untrained network has an input for spans. A round with objective mean_flow adds
    it by itself, so leave it out."""

    @model_validator(mode="after")
    def _can_be_built(self) -> "UNet":
        if above := [level for level in self.attend if level >= len(self.channels)]:
            raise ValueError(f"attend: no level {above[0]}, channels has {len(self.channels)}")
        # The block in the middle, at the last level, always attends.
        for level in (*self.attend, len(self.channels) - 1):
            if self.channels[level] < self.head:
                raise ValueError(
                    f"head {self.head} is above the {self.channels[level]} channels of level"
                    f" {level}; lower it"
                )
        check_weights(sum(18 * self.blocks * c**2 + self.classes * 4 * c for c in self.channels))
        return self

    def check_shape(self, shape: tuple[int, ...]) -> None:
        """Raise ReflowError if the network cannot be built for samples of `shape`."""
        _check_images(self, shape)
        levels = len(self.channels)
        step = self.patch * 2 ** (levels - 1)
        if shape[1] % step or shape[2] % step:
            patches = f" of patches of {self.patch}" if self.patch > 1 else ""
            raise ReflowError(
                f"network.channels: {levels} levels halve the image{patches} {levels - 1} times,"
                f" and {shape[1]} x {shape[2]} is no multiple of {step}; use fewer levels"
                f"{' or a smaller patch' if patches else ''}"
            )

    def build(self, shape: tuple[int, ...]) -> "ImageNetwork":
        """Make the network for images of `shape`."""
        return ImageNetwork(self, shape)


class DiT(Settings):
    """diffusers' DiTTransformer2DModel on patches of the image.

    Tiny: heads 2, head 16, depth 2. DiT-S: heads 6, head 64, depth 12.
    """

    name: Literal["dit"]
    heads: Width = 4
    """Attention heads of each block. The width of the network is heads times head."""
    head: Width = 16
    """Channels of each attention head."""
    depth: Depth = 4
    """Number of transformer blocks."""
    patch: Width = 2
    """Side of a patch in pixels; it must divide the image. Half of it makes four times as many
    tokens."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Share of features that are dropped in training. Raise it to about 0.1 when the network
    remembers a small data set."""
    classes: ClassCount = 0
    """Number of classes of the label, an input of the network; 0 ignores labels. Labels of the data
    must be below it. Guidance needs it."""
    time_scale: TimeScale = THOUSANDTHS
    """Factor of t before its sines and cosines, the fastest of which turns one radian a unit. 1000
    is that of diffusers' schedulers; lower it to about 10 for objective mean_flow, whose loss
    differentiates by t."""
    spans: Spans = False
    """Whether the untrained network has an input for spans. A round with objective mean_flow adds
    it by itself, so leave it out."""

    @model_validator(mode="after")
    def _can_be_built(self) -> "DiT":
        width = self.heads * self.head
        if width % 4:
            raise ValueError(
                f"heads times head is {width}, expected a multiple of 4: sines and cosines of two"
                " coordinates; change head"
            )
        check_weights(self.depth * 12 * width**2 + self.classes * width)
        return self

    def check_shape(self, shape: tuple[int, ...]) -> None:
        """Raise ReflowError if the network cannot be built for samples of `shape`."""
        _check_images(self, shape)
        if shape[1] != shape[2] or shape[1] % self.patch:
            raise ReflowError(
                f"network.patch: {self.patch} does not divide the image, {shape[1]} x {shape[2]},"
                " which has to be square"
            )

    def build(self, shape: tuple[int, ...]) -> "ImageNetwork":
        """Make the network for images of `shape`."""
        return ImageNetwork(self, shape)


class ImageNetwork(nn.Module):
    """v(x, t): images x [B, C, H, W], t [B] in [0, 1], label [B] or None -> [B, C, H, W].

    With `settings.spans` also of the span [B] of an average velocity, whose embedding is added to
    every embedding of the time; its weights are 0 before training.
    """

    tile: int
    """Rows of a network call on the CPU; fewer for images beyond 32 x 32, whose rows are larger."""

    def __init__(self, settings: UNet | DiT, shape: tuple[int, ...]) -> None:
        super().__init__()
        settings.check_shape(shape)
        self.tile = min(32, max(1, 32**3 // (shape[1] * shape[2])))
        self.settings, self.shape = settings, shape
        self.net = _unet(settings, shape) if isinstance(settings, UNet) else _dit(settings, shape)
        if settings.spans:
            self.span = SpanInput(self.net)

    def forward(
        self, x: Tensor, t: Tensor, label: Tensor | None = None, span: Tensor | None = None
    ) -> Tensor:
        """Return dx/dt at x and t; without a label, for the null class."""
        if label is None:
            label = torch.full_like(t, self.settings.classes, dtype=torch.int64)
        if isinstance(self.settings, UNet) and not self.settings.classes:
            label = None
        patch = self.settings.patch if isinstance(self.settings, UNet) else 1
        h = nn.functional.pixel_unshuffle(x, patch) if patch > 1 else x
        if span is not None and not self.settings.spans:
            raise ValueError("this network has no input for spans; use with_spans")
        with nullcontext() if span is None else self.span.added(span):
            time = self.settings.time_scale * t
            h = self.net(h, time, class_labels=label, return_dict=False)[0]
        return cast(Tensor, nn.functional.pixel_shuffle(h, patch) if patch > 1 else h)

    def save_weights(self, path: Path) -> None:
        """Write config and weights to `path`/diffusers, for `from_pretrained` of diffusers."""
        try:
            self.net.save_pretrained(path / DIFFUSERS, safe_serialization=True)
        except OSError as error:
            raise ReflowError(
                f"{path / DIFFUSERS}: cannot be written ({error}); free some space and start again"
            ) from error


def _check_images(settings: UNet | DiT, shape: tuple[int, ...]) -> None:
    if len(shape) != 3:
        raise ReflowError(
            f"network {settings.name}: needs images [C, H, W], samples here are {list(shape)};"
            " use residual_mlp"
        )


def diffusers() -> Any:
    """Import diffusers, only where needed: it takes ten times as long as the rest of fmcore."""
    with warnings.catch_warnings(action="ignore"):
        import diffusers
    logging.getLogger("diffusers").setLevel(logging.ERROR)
    return diffusers


def _unet(settings: UNet, shape: tuple[int, ...]) -> Any:
    levels, channels = len(settings.channels), settings.channels
    groups = next(g for g in (32, 16, 8, 4, 2, 1) if all(c % g == 0 for c in channels))
    down = ["AttnDownBlock2D" if i in settings.attend else "DownBlock2D" for i in range(levels)]
    up = [name.replace("Down", "Up") for name in reversed(down)]
    return diffusers().UNet2DModel(
        sample_size=tuple(side // settings.patch for side in shape[1:]),
        in_channels=shape[0] * settings.patch**2,
        out_channels=shape[0] * settings.patch**2,
        layers_per_block=settings.blocks,
        block_out_channels=channels,
        down_block_types=tuple(down),
        up_block_types=tuple(up),
        attention_head_dim=settings.head,
        norm_num_groups=groups,
        dropout=settings.dropout,
        num_class_embeds=settings.classes + 1 if settings.classes else None,
    )


def _dit(settings: DiT, shape: tuple[int, ...]) -> Any:
    net = diffusers().DiTTransformer2DModel(
        num_attention_heads=settings.heads,
        attention_head_dim=settings.head,
        in_channels=shape[0],
        out_channels=shape[0],
        num_layers=settings.depth,
        sample_size=shape[1],
        patch_size=settings.patch,
        dropout=settings.dropout,
        num_embeds_ada_norm=max(settings.classes, 1),
    )
    for module in net.modules():
        if hasattr(module, "dropout_prob"):
            # diffusers would drop labels with the global generator; training uses (seed, step).
            module.dropout_prob = 0.0
    return net
