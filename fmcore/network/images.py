"""Image networks of diffusers, conditioned on time, class and span, or on vectors and tokens."""

from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, Literal, Self, cast

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from fmcore.conditions.table import Table
from fmcore.network import made
from fmcore.network.given import Given, Labelled, zeroed
from fmcore.network.spans import SpanInput, Spans
from fmcore.settings import Depth, ReflowError, Width, check_weights

DIFFUSERS = "diffusers"
"""The subfolder of a model that diffusers can load."""
THOUSANDTHS = 1000.0
"""Time as diffusers counts it: in thousandths."""

TimeScale = Annotated[float, Field(gt=0, le=1e6, exclude_if=lambda scale: scale == THOUSANDTHS)]


class OfImages(Labelled):
    """What networks of images have in common."""

    time_scale: TimeScale = THOUSANDTHS
    """Factor of t before its sines and cosines, the fastest of which turns one radian a unit. 1000
    is that of diffusers' schedulers; lower it to about 10 for objective mean_flow, whose loss
    differentiates by t."""
    spans: Spans = False
    """Whether the untrained network has an input for spans. A round with objective mean_flow adds
    it by itself, so leave it out."""

    def build(self, shape: tuple[int, ...]) -> "ImageNetwork":
        """Make the network for images of `shape`."""
        return ImageNetwork(cast("UNet | DiT | MMDiT", self), shape)


class UNet(OfImages):
    """diffusers' UNet2DModel: channels and blocks per resolution, attention at levels `attend`.

    Conditions that are sequences make it UNet2DConditionModel: levels `attend` see their tokens.

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
        check_weights(sum(18 * self.blocks * c**2 + self.learnt * 4 * c for c in self.channels))
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


class DiT(OfImages):
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

    @model_validator(mode="after")
    def _can_be_built(self) -> "DiT":
        width = self.heads * self.head
        if width % 4:
            raise ValueError(
                f"heads times head is {width}, expected a multiple of 4: sines and cosines of two"
                " coordinates; change head"
            )
        check_weights(self.depth * 12 * width**2 + self.learnt * width)
        return self

    def check_shape(self, shape: tuple[int, ...]) -> None:
        """Raise ReflowError if the network cannot be built for samples of `shape`."""
        _check_images(self, shape)
        _check_square(self.patch, shape)


class MMDiT(OfImages):
    """diffusers' SD3Transformer2DModel: patches of the image and tokens of a text attend jointly.

    Needs conditions that are sequences. Tiny: heads 2, head 16, depth 2. SD3 medium: 24, 64, 24.
    """

    name: Literal["mmdit"]
    heads: Width = 4
    """Attention heads of each block. The width of the network is heads times head."""
    head: Width = 16
    """Channels of each attention head."""
    depth: Depth = 4
    """Number of transformer blocks, each with weights of its own for patches and for tokens."""
    patch: Width = 2
    """Side of a patch in pixels; it must divide the image. Half of it makes four times as many
    tokens."""

    @model_validator(mode="after")
    def _can_be_built(self) -> "MMDiT":
        if self.conditions is None:
            raise ValueError("mmdit attends to the tokens of a text; set conditions: {}")
        if self.heads * self.head % 4:
            raise ValueError(f"heads times head is {self.heads * self.head}, no multiple of 4")
        check_weights(self.depth * 24 * (self.heads * self.head) ** 2)
        return self

    def check_shape(self, shape: tuple[int, ...]) -> None:
        """Raise ReflowError if the network cannot be built for samples of `shape`."""
        _check_images(self, shape)
        _check_square(self.patch, shape)

    def sized(self, table: Table | None) -> Self:
        """Return the settings with the sizes of the data's conditions, which must be sequences."""
        found = super().sized(table)
        if found.conditions and not found.conditions.length:
            raise ReflowError(
                "network mmdit: attends to tokens, and the conditions of this data are one vector"
                " each; use dit, or a text encoder that gives sequences (folder)"
            )
        return found


class ImageNetwork(nn.Module):
    """v(x, t): images x [B, C, H, W], t [B] in [0, 1], label [B] or None -> [B, C, H, W].

    With `settings.spans` also of the span [B] of an average velocity, whose embedding is added to
    every embedding of the time; its weights are 0 before training.
    """

    tile: int
    """Rows of a network call on the CPU; fewer for images beyond 32 x 32, whose rows are larger."""

    def __init__(self, settings: UNet | DiT | MMDiT, shape: tuple[int, ...]) -> None:
        super().__init__()
        settings.check_shape(shape)
        self.tile = min(32, max(1, 32**3 // (shape[1] * shape[2])))
        self.settings, self.shape = settings, shape
        given = settings.conditions
        self.given = Given(given) if given else None
        self.tokens = bool(given and given.length) and not isinstance(settings, DiT)
        self.net = made.MAKERS[settings.name, self.tokens](settings, shape)
        if given and isinstance(settings, UNet) and not self.tokens:
            self.condition = zeroed(given.vector, 4 * settings.channels[0])
        if settings.spans:
            self.span = SpanInput(self.net)

    def forward(
        self, x: Tensor, t: Tensor, label: Tensor | None = None, span: Tensor | None = None
    ) -> Tensor:
        """Return dx/dt at x and t; without a label, for the null class."""
        if span is not None and not self.settings.spans:
            raise ValueError("this network has no input for spans; use with_spans")
        patch = self.settings.patch if isinstance(self.settings, UNet) else 1
        h = nn.functional.pixel_unshuffle(x, patch) if patch > 1 else x
        said = {**self._conditioned(t, label), "timestep": self.settings.time_scale * t}
        with nullcontext() if span is None else self.span.added(span):
            h = self.net(h, return_dict=False, **said)[0]
        return cast(Tensor, nn.functional.pixel_shuffle(h, patch) if patch > 1 else h)

    def _conditioned(self, t: Tensor, label: Tensor | None) -> dict[str, Tensor | None]:
        """Return the arguments of the network of diffusers that say the class or the condition."""
        if self.given is None:
            if isinstance(self.settings, UNet) and not self.settings.classes:
                return {"class_labels": None}
            null = torch.full_like(t, self.settings.classes, dtype=torch.int64)
            return {"class_labels": null if label is None else label}
        if not self.tokens:
            vector = self.given.vector(label, t)
            unet = isinstance(self.settings, UNet)  # DiT maps the vector in each of its blocks
            return {"class_labels": self.condition(vector) if unet else vector}
        tokens, mask, pooled = self.given.sequence(label, t)
        if isinstance(self.settings, UNet):
            return {"encoder_hidden_states": tokens, "encoder_attention_mask": mask}
        return {"encoder_hidden_states": tokens, "pooled_projections": pooled}

    @property
    def of_diffusers(self) -> bool:
        """Whether all weights are those of a network that diffusers can load."""
        return self.given is None or self.tokens

    def save_weights(self, path: Path) -> None:
        """Write config and weights to `path`/diffusers, for `from_pretrained` of diffusers."""
        try:
            self.net.save_pretrained(path / DIFFUSERS, safe_serialization=True)
        except OSError as error:
            raise ReflowError(
                f"{path / DIFFUSERS}: cannot be written ({error}); free some space and start again"
            ) from error


def _check_images(settings: UNet | DiT | MMDiT, shape: tuple[int, ...]) -> None:
    if len(shape) != 3:
        raise ReflowError(
            f"network {settings.name}: needs images [C, H, W], samples here are {list(shape)};"
            " use residual_mlp"
        )


def _check_square(patch: int, shape: tuple[int, ...]) -> None:
    if shape[1] != shape[2] or shape[1] % patch:
        raise ReflowError(
            f"network.patch: {patch} does not divide the image, {shape[1]} x {shape[2]}, which has"
            " to be square"
        )
