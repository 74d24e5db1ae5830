"""Tiny models as plain diffusers saves them, for tests of rounds that others trained."""

from pathlib import Path

import diffusers
import numpy as np
import torch


def network(channels=1, **more):
    torch.manual_seed(0)
    return diffusers.UNet2DModel(
        sample_size=8, in_channels=channels, out_channels=channels, layers_per_block=1,
        block_out_channels=(8, 16), norm_num_groups=4, attention_head_dim=8,
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"), **more,
    ).eval()  # fmt: skip


def images(count=256):
    """Return images [count, 1, 8, 8] in [-1, 1]: a bright bar at a random place."""
    place = np.random.default_rng(0).integers(0, 8, count)
    found = np.full((count, 1, 8, 8), -0.9, np.float32)
    found[np.arange(count), 0, :, place] = 0.9
    return found


def trained(net, scheduler, steps=60):
    """Train a network for a moment in plain diffusers, to predict what its scheduler says."""
    data, draw = torch.from_numpy(images()), torch.Generator().manual_seed(0)
    optimizer = torch.optim.AdamW(net.parameters(), lr=3e-3)
    for _ in range(steps):
        x = data[torch.randint(len(data), (32,), generator=draw)]
        noise = torch.randn(x.shape, generator=draw)
        t = torch.randint(1000, (32,), generator=draw)
        out = net(scheduler.add_noise(x, noise, t), t).sample
        loss = (out - noise).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return net.eval()


def pipeline(folder: Path, net=None, scheduler=None) -> Path:
    """Save a DDPM pipeline: a network that predicts epsilon, and its scheduler."""
    scheduler = scheduler or diffusers.DDPMScheduler(clip_sample=False)
    diffusers.DDPMPipeline(net or network(), scheduler).save_pretrained(folder)
    return folder
