"""Tiny autoencoders as plain diffusers saves them, and a codec of one's own, for tests."""

from pathlib import Path

import diffusers
import torch

OWN = '''
import torch
from fmcore.codec.kinds import Codec


class Folded(Codec):
    """Four pixels as four channels, times `gain`; `blur` loses as much of the way back."""

    gain: float = 2.0
    blur: float = 0.0

    def encode(self, x):
        return self.gain * torch.nn.functional.pixel_unshuffle(x, 2)

    def decode(self, z):
        whole = torch.nn.functional.pixel_shuffle(z / self.gain, 2)
        return whole - self.blur * (whole - whole.mean((2, 3), keepdim=True))

    def digest(self):
        return f"{self.gain}"
'''
"""A module `folded` with the class `Folded`, whose way back is exact unless it blurs."""


def kl(folder: Path, seed: int = 0, channels: int = 1) -> Path:
    """Save an AutoencoderKL with random weights: images [C, H, W] to latents [4, H / 2, W / 2]."""
    torch.manual_seed(seed)
    diffusers.AutoencoderKL(
        in_channels=channels, out_channels=channels, latent_channels=4, norm_num_groups=4,
        block_out_channels=(8, 8), layers_per_block=1,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
    ).save_pretrained(folder)  # fmt: skip
    return folder


def tiny(folder: Path, seed: int = 0, channels: int = 1) -> Path:
    """Save an AutoencoderTiny with random weights, of the same shapes."""
    torch.manual_seed(seed)
    diffusers.AutoencoderTiny(
        in_channels=channels, out_channels=channels, latent_channels=4,
        encoder_block_out_channels=(8, 8), decoder_block_out_channels=(8, 8),
        num_encoder_blocks=(1, 1), num_decoder_blocks=(1, 1),
    ).save_pretrained(folder)  # fmt: skip
    return folder
