"""A residual MLP on flattened samples: for a few dimensions and small images."""

import math
from functools import partial
from typing import Literal, cast

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from fmcore.network.field import once
from fmcore.network.given import Given, Labelled, zeroed
from fmcore.settings import Depth, Width, check_weights

CACHED = 65536
"""Features of a hidden layer that a network call has at once: 256 KB, which a CPU's cache holds."""


class MLP(Labelled):
    """A residual MLP on flattened samples, with sines and cosines of the time as input.

    `time_frequency` is the highest of these, in half periods over [0, 1]; MeanFlow needs it low.
    `norm: none` is for a few dimensions: LayerNorm removes |x|. `classes` > 0 adds a label and a
    null class; `spans` adds the span of an average velocity (MeanFlow).
    """

    name: Literal["residual_mlp"] = "residual_mlp"
    width: Width = 384
    """Features in each hidden layer. Raise it when the loss stays high, lower it when
    held_out_ratio is above its bound."""
    depth: Depth = 3
    """Number of residual blocks."""
    time_features: int = Field(default=64, gt=1, le=10_000, multiple_of=2)
    """How many sines and cosines of t the network gets; an even number."""
    time_frequency: float = Field(default=16.0, gt=1, le=1e6)
    """Highest frequency of these, in half periods over [0, 1]. Lower it to about 4 for objective
    mean_flow, whose loss differentiates by t."""
    norm: Literal["layer", "none"] = "layer"
    """`layer` normalises features before each block. `none` is for data of a few dimensions, where
    the length of x matters."""
    spans: bool = False
    """Whether the untrained network has an input for spans. A round with objective mean_flow adds
    it by itself, so leave it out."""

    @model_validator(mode="after")
    def _fits_into_a_machine(self) -> "MLP":
        check_weights(3 * self.depth * self.width**2 + self.learnt * self.width)
        return self

    def build(self, shape: tuple[int, ...]) -> "ResidualMLP":
        """Make the network for samples of `shape`."""
        return ResidualMLP(self, shape)


class Block(nn.Module):
    """x + W2 silu(W1 norm(x) + time): a residual step whose input is shifted by the time."""

    def __init__(self, width: int, norm: nn.Module) -> None:
        super().__init__()
        self.norm = norm
        self.inner = nn.Linear(width, width)
        self.time = nn.Linear(width, width)
        self.outer = nn.Linear(width, width)
        nn.init.zeros_(self.outer.weight)
        nn.init.zeros_(self.outer.bias)

    def forward(self, h: Tensor, time: Tensor) -> Tensor:
        """Map features h [B, W] and the time embedding [B or 1, W] to features [B, W]."""
        inner = self.inner(self.norm(h)) + self.time(time)
        return cast(Tensor, h + self.outer(nn.functional.silu(inner)))


class ResidualMLP(nn.Module):
    """v(x, t): x [B, *D], t [B] in [0, 1] -> [B, *D].

    A gate g(t) * x learns the part of the velocity that is linear in x, which is all of it for
    Gaussian data: the blocks learn the rest.
    """

    tile: int
    """Rows of a network call on the CPU."""

    def __init__(self, settings: MLP, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.settings, self.shape = settings, shape
        dim, width = math.prod(shape), settings.width
        self.tile = min(max(256, 2 ** round(math.log2(CACHED / width))), 1024)
        half = settings.time_features // 2
        # Half a period to 8 over [0, 1]: a velocity is smooth in t, and the solver relies on it.
        frequencies = math.pi * torch.logspace(0, math.log10(settings.time_frequency), half)
        self.register_buffer("frequencies", frequencies, persistent=False)
        self.time = nn.Sequential(
            nn.Linear(2 * half, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU()
        )
        self.enter = nn.Linear(dim, width)
        norm = partial(nn.LayerNorm, width) if settings.norm == "layer" else nn.SiLU
        self.blocks = nn.ModuleList(Block(width, norm()) for _ in range(settings.depth))
        self.norm = norm()
        self.leave = nn.Linear(width, dim)
        self.gate = nn.Linear(width, dim)
        self.given = Given(settings.conditions) if settings.conditions else None
        if settings.conditions:
            self.condition = zeroed(settings.conditions.vector, width)
        elif settings.classes:
            self.label = nn.Embedding(settings.classes + 1, width)
            nn.init.zeros_(self.label.weight)
        if settings.spans:
            self.span = nn.Linear(2 * half, width, bias=False)
            nn.init.zeros_(self.span.weight)

    def forward(
        self, x: Tensor, t: Tensor, label: Tensor | None = None, span: Tensor | None = None
    ) -> Tensor:
        """Return dx/dt [B, *D] at x [B, *D] and t [B]; without a label, for the null class."""
        t = once(t)
        time = self.time(self._waves(t))
        if self.given is not None:
            time = time + self.condition(self.given.vector(label, t))
        elif self.settings.classes:
            null = torch.full_like(t, self.settings.classes, dtype=torch.int64)
            time = time + self.label(null if label is None else label)
        if span is not None:
            # An eighth of the frequencies: the loss differentiates by the span.
            time = time + self.span(self._waves(once(span) / 8))
        h = self.enter(x.flatten(1))
        for block in self.blocks:
            h = block(h, time)
        velocity = self.leave(self.norm(h)) + self.gate(time) * x.flatten(1)
        return cast(Tensor, velocity.reshape(x.shape))

    def _waves(self, t: Tensor) -> Tensor:
        angles = t[:, None] * cast(Tensor, self.frequencies)
        return torch.cat([angles.sin(), angles.cos()], dim=1)
