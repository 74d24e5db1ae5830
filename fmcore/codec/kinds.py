"""Codecs by their names in params.yaml: autoencoders of diffusers, and one's own.

Nothing is downloaded or unpickled. A codec's record, with a digest of its weights, is part of the
identity of all that is made with it: latents mean nothing to another decoder.
"""

import hashlib
import inspect
import json
from abc import abstractmethod
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from fmcore.own import Own, called
from fmcore.scale import Scale
from fmcore.settings import BatchSize, LearningRate, ReflowError, Settings, StepCount, Width
from fmcore.work.of_diffusers import config_in, pretrained

KINDS = ("AutoencoderKL", "AutoencoderTiny")
"""Classes of diffusers that are read."""
PART = "vae"
"""The folder of a pipeline of diffusers that holds its codec."""


class Codec(Settings):
    """The base of every codec.

    One of your own (`name: custom`) has `encode`, `decode`, its settings as fields, and `digest`,
    which changes when its weights do. A file or folder named in its settings is an input.
    """

    @abstractmethod
    def encode(self, x: Tensor) -> Tensor:
        """Return the latents [B, *L] of samples [B, *D] in the data's own units, one of each."""

    @abstractmethod
    def decode(self, z: Tensor) -> Tensor:
        """Return the samples [B, *D] of latents [B, *L], in the data's own units."""

    @abstractmethod
    def digest(self) -> str:
        """Return a hash of all that decides what latents mean."""


class DiffusersCodec(Codec):
    """An autoencoder of diffusers, as `save_pretrained` wrote it: AutoencoderKL, AutoencoderTiny.

    A latent of AutoencoderKL is the mode of its posterior: nothing is drawn.
    """

    name: Literal["diffusers"]
    path: str
    """Folder with its config.json and safetensors, or of a pipeline with a folder `vae`, relative
    to the project. Nothing is downloaded, and none of its code is run."""

    @property
    def folder(self) -> Path:
        """The folder of the autoencoder itself."""
        inner = Path(self.path) / PART
        return inner if inner.is_dir() else Path(self.path)

    @cached_property
    def module(self) -> Any:
        """The autoencoder, in evaluation mode. Raises ReflowError if it cannot be read."""
        file = self.folder / "config.json"
        if (kind := config_in(file).get("_class_name")) not in KINDS:
            raise ReflowError(f"{file}: _class_name {kind!r}; expected {' or '.join(KINDS)}")
        return pretrained(kind, self.folder).eval().requires_grad_(False)

    @property
    def scale(self) -> Scale:
        """The scale of latents on which pipelines of diffusers train, by its config."""
        given = self.module.config
        factor, shift = given.get("scaling_factor"), given.get("shift_factor")
        return Scale((float(shift or 0.0),), (1 / float(factor or 1.0),))

    def encode(self, x: Tensor) -> Tensor:
        """Return the latents [B, C', H', W'] of images [B, C, H, W]."""
        wanted = self.module.config.in_channels
        if x.ndim != 4 or x.shape[1] != wanted:
            raise ReflowError(
                f"data.codec.path: {self.path} encodes images of {wanted} channels, the data has"
                f" samples of shape {list(x.shape[1:])}; use a codec that was trained on such data"
            )
        found = self._on(x).encode(x)
        latents: Tensor = found.latents if hasattr(found, "latents") else found.latent_dist.mode()
        return latents

    def decode(self, z: Tensor) -> Tensor:
        """Return the images [B, C, H, W] of latents [B, C', H', W']."""
        images: Tensor = self._on(z).decode(z).sample
        return images

    def digest(self) -> str:
        """Return the hash of class, config and weights.

        What the class has by default does not count, nor the format of the file: the same
        autoencoder saved by another version of diffusers is the same.
        """
        model = self.module
        known = inspect.signature(type(model).__init__).parameters
        config = {
            key: value
            for key, value in model.config.items()
            if key in known and known[key].default not in (value, _listed(value))
        }
        said = json.dumps([type(model).__name__, config], sort_keys=True, default=str)
        hashed = hashlib.sha256(said.encode())
        for name, value in sorted(model.state_dict().items()):
            hashed.update(f"{name} {list(value.shape)}".encode())
            hashed.update(value.detach().cpu().contiguous().numpy().tobytes())
        return hashed.hexdigest()

    def _on(self, x: Tensor) -> Any:
        return self.module.to(x.device)


def _listed(value: Any) -> Any:
    """Return a list, as JSON keeps it, as the tuple of a default."""
    return tuple(value) if isinstance(value, list) else value


class CustomCodec(Own, Codec):
    """A codec of the user's own, a subclass of `Codec`."""

    base: ClassVar[type] = Codec

    def encode(self, x: Tensor) -> Tensor:
        """Return the latents that the user's codec gives, checked."""
        return self._called(self.own.encode, x, "encode")

    def decode(self, z: Tensor) -> Tensor:
        """Return the samples that the user's codec gives, checked."""
        return self._called(self.own.decode, z, "decode")

    def digest(self) -> str:
        """Return the digest that the user's codec gives."""
        return str(called(self.path, self.own.digest))

    def _called(self, call: Any, x: Tensor, what: str) -> Tensor:
        try:
            found = called(self.path, call, x)
        except ValueError as error:
            raise ReflowError(str(error)) from None
        if not isinstance(found, Tensor) or found.dtype != torch.float32 or len(found) != len(x):
            got = f"{found.dtype} {list(found.shape)}" if isinstance(found, Tensor) else found
            raise ReflowError(f"{self.path}: {what} must give float32 [{len(x)}, ...], got {got}")
        return found


class TrainedCodec(Settings):
    """A small AutoencoderTiny of diffusers, which `prepare` trains on the images of the chain.

    Those that are held out train nothing. It is kept beside the prepared data, as diffusers does.
    """

    name: Literal["trained"]
    channels: Annotated[tuple[Width, ...], Field(strict=False, min_length=2, max_length=8)] = (
        24,
        24,
        24,
    )
    """Channels at each resolution, the first at full size; each further level halves the image."""
    latent: Width = 4
    """Channels of the latents."""
    steps: StepCount = 400
    """Steps of its training, on the mean squared error of what comes back. Raise it, or `channels`,
    where the gate `reconstruction` warns."""
    batch: BatchSize = 32
    """Images in a step."""
    lr: LearningRate = 2e-3
    """Learning rate of AdamW at the first step; it falls to 0 by a cosine."""


CodecOf = Annotated[DiffusersCodec | CustomCodec, Field(discriminator="name")]
"""A codec that encodes and decodes."""
