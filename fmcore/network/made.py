"""Networks of diffusers, made from settings."""

from collections.abc import Callable
from typing import Any

from torch import nn

from fmcore.network.given import zeroed
from fmcore.work.of_diffusers import diffusers


def _groups(channels: tuple[int, ...]) -> int:
    return next(g for g in (32, 16, 8, 4, 2, 1) if all(c % g == 0 for c in channels))


def _levels(settings: Any, shape: tuple[int, ...], attends: str) -> dict[str, Any]:
    """Return what both U-Nets are told; `attends` is the block of the levels that attend."""
    channels, inner = settings.channels, shape[0] * settings.patch**2
    down = [attends if i in settings.attend else "DownBlock2D" for i in range(len(channels))]
    return {
        "sample_size": tuple(side // settings.patch for side in shape[1:]),
        "in_channels": inner,
        "out_channels": inner,
        "layers_per_block": settings.blocks,
        "block_out_channels": channels,
        "down_block_types": tuple(down),
        "up_block_types": tuple(name.replace("Down", "Up") for name in reversed(down)),
        "norm_num_groups": _groups(channels),
        "dropout": settings.dropout,
    }


def unet(settings: Any, shape: tuple[int, ...]) -> Any:
    """Return the U-Net of settings; with conditions it adds a vector to that of the time."""
    given = settings.conditions
    return diffusers().UNet2DModel(
        **_levels(settings, shape, "AttnDownBlock2D"),
        attention_head_dim=settings.head,
        num_class_embeds=settings.learnt + 1 if settings.learnt else None,
        class_embed_type="identity" if given else None,  # it is mapped to that width before
    )


def dit(settings: Any, shape: tuple[int, ...]) -> Any:
    """Return the DiT of settings; with conditions each block maps the given vector."""
    net = diffusers().DiTTransformer2DModel(
        num_attention_heads=settings.heads,
        attention_head_dim=settings.head,
        in_channels=shape[0],
        out_channels=shape[0],
        num_layers=settings.depth,
        sample_size=shape[1],
        patch_size=settings.patch,
        dropout=settings.dropout,
        num_embeds_ada_norm=max(settings.learnt, 1),
    )
    for module in net.modules():
        if hasattr(module, "dropout_prob"):
            # diffusers would drop labels with the global generator; training uses (seed, step).
            module.dropout_prob = 0.0
        if settings.conditions and hasattr(module, "class_embedder"):
            width = settings.heads * settings.head
            module.class_embedder = zeroed(settings.conditions.vector, width)
    return net


def unet_of_tokens(settings: Any, shape: tuple[int, ...]) -> Any:
    """Return the U-Net whose levels `attend`, and the middle, attend to the tokens of a text.

    What they take from the tokens is 0 before training.
    """
    net = diffusers().UNet2DConditionModel(
        **_levels(settings, shape, "CrossAttnDownBlock2D"),
        mid_block_type="UNetMidBlock2DCrossAttn",
        cross_attention_dim=settings.conditions.features,
        # diffusers calls the number of heads so here (its issue 2011)
        attention_head_dim=tuple(max(1, c // settings.head) for c in settings.channels),
    )
    for name, module in net.named_modules():
        if name.endswith("attn2"):
            _silence(module.to_out[0])
    return net


def mmdit(settings: Any, shape: tuple[int, ...]) -> Any:
    """Return the network of SD3 for settings; its output is 0 before training, as in DiT."""
    given, width = settings.conditions, settings.heads * settings.head
    net = diffusers().SD3Transformer2DModel(
        sample_size=shape[1],
        patch_size=settings.patch,
        in_channels=shape[0],
        out_channels=shape[0],
        num_layers=settings.depth,
        attention_head_dim=settings.head,
        num_attention_heads=settings.heads,
        joint_attention_dim=given.features,
        caption_projection_dim=width,
        pooled_projection_dim=given.pooled,
        pos_embed_max_size=shape[1] // settings.patch,
    )
    _silence(net.proj_out)
    return net


def _silence(module: nn.Linear) -> None:
    nn.init.zeros_(module.weight)
    if module.bias is not None:
        nn.init.zeros_(module.bias)


MAKERS: dict[tuple[str, bool], Callable[[Any, tuple[int, ...]], Any]] = {
    ("unet", False): unet,
    ("unet", True): unet_of_tokens,
    ("dit", False): dit,
    ("mmdit", True): mmdit,
}
"""By the name of the settings, and whether the network attends to tokens."""
