"""The samples that a data set gives, and the base class of all data sets."""

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from fmcore.codec.kinds import CustomCodec, DiffusersCodec, TrainedCodec
from fmcore.conditions.encoders import Conditions
from fmcore.scale import AsIs, ScaleOf
from fmcore.settings import Seed, Settings


@dataclass(frozen=True)
class Samples:
    """Targets [N, *D] float32, labels [N] int64 or None, and whether targets are images.

    `names` are the names of the classes, in the order of their numbers; None where there are none,
    or where the labels were the numbers 0 to K-1 already. `notes` say how a file was understood,
    `skipped` which files were left out, by reason. A target may be mapped from a file, and a
    target that is mapped from the user's own is read-only: never change it in place. `captions` are
    a text for each sample, or vectors [N, E]; then there is no label: each one is a condition.
    """

    target: Tensor
    label: Tensor | None
    image: bool
    names: tuple[str, ...] | None = None
    notes: tuple[str, ...] = ()
    skipped: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    captions: tuple[str, ...] | Tensor | None = None

    def check(self) -> None:
        """Raise ValueError, saying what is wrong, if these samples cannot be trained on."""
        x, label = self.target, self.label
        if x.dtype != torch.float32 or x.ndim < 2 or len(x) < 2 or not x[0].numel():
            raise ValueError(f"target must be float32 [N, ...], got {x.dtype} {list(x.shape)}")
        if not bool(x.isfinite().all()):
            raise ValueError("target holds numbers that are not finite")
        if self.image and (x.ndim != 4 or x.shape[1] not in (1, 3) or float(x.abs().max()) > 1):
            raise ValueError(f"images must be [N, 1 or 3, H, W] in [-1, 1], got {list(x.shape)}")
        if self.captions is not None and len(self.captions) != len(x):
            raise ValueError(f"captions: {len(self.captions)} for {len(x)} samples")
        if label is None:
            return
        if label.dtype != torch.int64 or label.shape != x.shape[:1] or int(label.min()) < 0:
            raise ValueError(f"label must be int64 [{len(x)}] from 0 up, got {list(label.shape)}")
        if self.names is not None and int(label.max()) >= len(self.names):
            raise ValueError(f"label {int(label.max())} has no name; names: {len(self.names)}")


@dataclass(frozen=True)
class Known:
    """What a data set's settings say before its samples are read; None where they do not.

    `classes` is 0 for samples without labels.
    """

    shape: tuple[int, ...] | None = None
    image: bool | None = None
    classes: int | None = None
    samples: int | None = None


class Data(Settings):
    """The base of every data set.

    One of your own (`name: custom`) has `read`, its settings as fields, and `log_density` if the
    density is known. A file or folder named in its settings is an input: `prepare` runs again when
    it changes.
    """

    scale: ScaleOf = AsIs()
    """Map from the data's own units to those in which models are trained: `none`, `standardise`,
    `range`, or {mean, std}. Set it when prepare warns; samples and distances stay in own units.
    Images outside [-1, 1] take `range`, and stay in [-1, 1]."""
    conditions: Conditions | None = Field(default=None, exclude_if=lambda given: given is None)
    """A vector or a text beside each sample, on which networks with `conditions: {}` depend:
    `{encoder: {name: wordllama}}` embeds texts once. null takes labels, if there are any."""
    codec: Annotated[
        DiffusersCodec | TrainedCodec | CustomCodec | None, Field(discriminator="name")
    ] = Field(default=None, exclude_if=lambda given: given is None)
    """What encodes the samples once, so that flows learn latents: `{name: diffusers, path: vae}`,
    `{name: trained}` or a class of your own. `scale` is then that of the latents. null is none."""
    seed: Seed | None = None
    """Seed of the samples of a density and of the order of all. null takes the chain's."""

    @abstractmethod
    def read(self, seed: int) -> Samples:
        """Return the samples; all random draws are functions of the seed."""

    def known(self) -> Known:
        """Return what the settings say of the samples, so that `reflow plan` can refuse a network
        that does not suit them; nothing for files of the user's own."""
        return Known()

    def log_density(self, x: Tensor) -> Tensor | None:
        """Return log p [N] of points [N, *D] in nats, float64; None where it is not known."""
        return None
