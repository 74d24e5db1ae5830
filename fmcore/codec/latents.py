"""Latents: samples encoded in calls of one size, their record, and the way back to the data."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fmcore.codec.kinds import Codec, CodecOf
from fmcore.own import read
from fmcore.scale import Scale, moments
from fmcore.settings import ReflowError
from fmcore.work.compute import in_tiles, rows_of_call

ROWS, PIXELS = 32, 32**3
"""Rows of a call on the CPU, and pixels of all its rows, at most, if a row has fewer itself."""
CPU = torch.device("cpu")


def encoded(codec: Codec, x: Tensor, device: torch.device = CPU) -> Tensor:
    """Return the latents [N, *L] of samples x [N, *D] in the data's own units, on the CPU.

    Raises ReflowError if one is not finite.
    """
    return _in_calls(codec.encode, x, x.shape[1:], device, "encoded")


def decoded(
    codec: Codec, z: Tensor, shape: tuple[int, ...], *, image: bool, device: torch.device = CPU
) -> Tensor:
    """Return the samples [N, *shape] of latents z [N, *L], on the CPU; images in [-1, 1].

    Raises ReflowError if the codec gives samples of another shape.
    """
    x = _in_calls(codec.decode, z, shape, device, None)
    if tuple(x.shape[1:]) != tuple(shape):
        raise ReflowError(
            f"data.codec: it decodes samples of shape {list(x.shape[1:])}, those of the data have"
            f" {list(shape)}; choose data.size that the codec can halve as often as it does"
        )
    return x.clamp_(-1, 1) if image else x


@torch.no_grad()
def _in_calls(
    call: Callable[[Tensor], Tensor],
    x: Tensor,
    shape: tuple[int, ...],
    device: torch.device,
    finite: str | None,
) -> Tensor:
    """Call with as many rows each time, whatever their number: a row's bytes depend on it alone."""
    pixels = math.prod(shape[1:])
    tile = min(ROWS, max(1, PIXELS // max(1, pixels)))
    rows, tiled = rows_of_call(tile, device), in_tiles(call, tile)
    out = torch.empty(0)
    for first in range(0, len(x), rows):
        part = tiled(x[first : first + rows].to(device)).cpu()
        if finite and not bool(part.isfinite().all()):
            raise ReflowError(
                f"data.codec: a sample is {finite} to numbers that are not finite; is the data in"
                " the units that the codec was trained on?"
            )
        out = part.new_empty(len(x), *part.shape[1:]) if not first else out
        out[first : first + len(part)] = part
    return out


def record(codec: Codec, latents: Tensor, shape: tuple[int, ...], *, image: bool) -> dict[str, Any]:
    """Return what is kept of a codec with its latents [N, *L] of samples of `shape` [*D].

    Its settings and digest, whether it decodes images, and mean and std of each channel of latents.
    """
    mean, std = moments(latents)
    return {
        "settings": codec.model_dump(mode="json"),
        "sha256": codec.digest(),
        "shape": list(shape),
        "image": image,
        "mean": mean.tolist(),
        "std": std.tolist(),
    }


def errors(x: Tensor, again: Tensor) -> dict[str, float]:
    """Return by how much samples [N, *D] differ from what comes back of them, in own units.

    `reconstruction_rms` is of a number, `reconstruction_rel` its square over the data's variance.
    """
    square = float((again - x).double().square().mean())
    variance = max(float(x.double().var(dim=0, correction=0).mean()), 1e-12)
    return {
        "reconstruction_rms": math.sqrt(square),
        "reconstruction_rel": square / variance,
        "reconstruction_samples": len(x),
    }


@dataclass(frozen=True)
class Units:
    """The way from model units to the data's own: the scale undone and, of latents, decoded.

    `shape` and `image` are those of what a codec decodes.
    """

    scale: Scale
    codec: Codec | None = None
    shape: tuple[int, ...] = ()
    image: bool = False
    device: torch.device = CPU

    @classmethod
    def of(
        cls, scale: Scale, codec: Mapping[str, Any] | None, device: torch.device = CPU
    ) -> "Units":
        """Return the units of a coupling or a model by the record of its codec, which is opened.

        Raises ReflowError if the codec is missing, or is no longer the one that encoded the data.
        """
        if codec is None:
            return cls(scale)
        opened: Codec = read(CodecOf, codec["settings"], "the codec of these latents")
        if (found := opened.digest()) != codec["sha256"]:
            raise ReflowError(
                f"data.codec: {codec['settings']['path']} is another codec than the one that made"
                f" these latents (sha256 {found[:12]}, expected {codec['sha256'][:12]}); put that"
                " one back, or run prepare and what follows again"
            )
        return cls(scale, opened, tuple(codec["shape"]), codec["image"], device)

    def inverse(self, x: Tensor) -> Tensor:
        """Return x [N, *L] in the data's own units [N, *D], float32, on the CPU if decoded."""
        own = self.scale.inverse(x)
        if self.codec is None:
            return own
        return decoded(self.codec, own, self.shape, image=self.image, device=self.device)


def same_codec(model: Mapping[str, Any] | None, data: Mapping[str, Any] | None, place: str) -> None:
    """Raise ReflowError if a model's codec is not that of the data at `place`, or one has none."""
    own, given = (None if of is None else of["sha256"] for of in (model, data))
    if own == given:
        return
    said = [f"sha256 {of[:12]}" if of else "none" for of in (given, own)]
    raise ReflowError(
        f"{place}: its codec (data.codec) is another than the model's ({said[0]}, the model has"
        f" {said[1]}); give both one codec, or initialise and train on this data"
    )
