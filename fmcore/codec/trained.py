"""A codec trained on the images of the chain: min over both of E |decode(encode(x)) - x|^2."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.optim import AdamW
from torch.optim.lr_scheduler import CosineAnnealingLR

from fmcore.checked import MEND
from fmcore.codec.kinds import DiffusersCodec, TrainedCodec
from fmcore.settings import Log, ReflowError
from fmcore.work.of_diffusers import diffusers

FOLDER = "_codec"
"""The folder beside the shards of the prepared data that holds the trained codec."""
SAVED = "diffusion_pytorch_model.safetensors"
"""The file of its weights, as diffusers names it."""
KEPT = "codec.pt"
EVERY = 100
"""Steps between two checkpoints, and between two reports."""


def untrained(settings: TrainedCodec, shape: tuple[int, ...], *, seed: int) -> Any:
    """Return the AutoencoderTiny for images of `shape` [C, H, W], with the weights of its start.

    Raises ReflowError if these are no images, or cannot be halved as often as it does.
    """
    halvings = len(settings.channels) - 1
    if len(shape) != 3 or any(side % 2**halvings for side in shape[1:]):
        raise ReflowError(
            f"data.codec.channels: {halvings + 1} levels halve an image {halvings} times, and the"
            f" data have samples of shape {list(shape)}; use fewer levels, or resize the images"
        )
    once = (1,) * len(settings.channels)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return diffusers().AutoencoderTiny(
            in_channels=shape[0], out_channels=shape[0], latent_channels=settings.latent,
            encoder_block_out_channels=settings.channels,
            decoder_block_out_channels=settings.channels,
            num_encoder_blocks=once, num_decoder_blocks=once,
        )  # fmt: skip


def train_codec(
    settings: TrainedCodec,
    x: Tensor,
    rows: Tensor,
    folder: Path,
    *,
    seed: int,
    device: torch.device,
    scratch: Path | None,
    log: Log,
) -> DiffusersCodec:
    """Train on the images x [N, C, H, W] at `rows` [M], and save the codec to `folder`.

    A training that was killed goes on from its checkpoint in `scratch`, with the same result.
    """
    model: Any = untrained(settings, tuple(x.shape[1:]), seed=seed).to(device)
    optimizer = AdamW(model.parameters(), lr=settings.lr)
    schedule = CosineAnnealingLR(optimizer, settings.steps)
    parts = {"model": model, "optimizer": optimizer, "schedule": schedule}
    first = _continued(parts, scratch)
    draw = torch.Generator().manual_seed(seed)
    for step in range(settings.steps):
        drawn = torch.randint(len(rows), (settings.batch,), generator=draw)
        if step < first:
            continue
        real = x[rows[drawn]].to(device)
        loss = (model.decode(model.encode(real).latents).sample - real).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if (step + 1) % EVERY == 0 or step + 1 == settings.steps:
            log({"loss": float(loss.detach())}, step + 1)
            if not bool(loss.isfinite()):
                raise ReflowError(
                    f"data.codec: its training diverged in step {step + 1}; lower data.codec.lr"
                )
            _keep(parts, step + 1, scratch)
    model.eval().cpu().save_pretrained(folder)
    return DiffusersCodec(name="diffusers", path=str(folder))


def verify(folder: Path, digest: str) -> None:
    """Raise ReflowError if the codec in a folder is not the one with this digest, and alone."""
    foreign = {file.name for file in folder.iterdir()} - {"config.json", SAVED}
    if foreign:
        raise ReflowError(f"{folder / min(foreign)}: foreign file; remove it")
    if DiffusersCodec(name="diffusers", path=str(folder)).digest() != digest:
        raise ReflowError(f"{folder}: altered: its digest is not the one in the manifest; {MEND}")


def _keep(parts: dict[str, Any], step: int, scratch: Path | None) -> None:
    """Write a checkpoint, whole or not at all."""
    if scratch is None:
        return
    scratch.mkdir(parents=True, exist_ok=True)
    part = scratch / f"{KEPT}.part"
    torch.save({"step": step, **{name: of.state_dict() for name, of in parts.items()}}, part)
    part.replace(scratch / KEPT)


def _continued(parts: dict[str, Any], scratch: Path | None) -> int:
    """Load the checkpoint if there is one that can be read, and return its step."""
    file = None if scratch is None else scratch / KEPT
    if file is None or not file.exists():
        return 0
    try:
        found = torch.load(file, weights_only=True)
    except Exception:  # half a file can fail in any way; from the start, the result is the same
        return 0
    for name, of in parts.items():
        of.load_state_dict(found[name])
    return int(found["step"])
