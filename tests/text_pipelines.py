"""Text-to-image pipelines of a few thousand weights, as plain diffusers and transformers save them.

Of Stable Diffusion, SDXL, SD3, Flux and PixArt: encoders, tokenizers, networks, schedulers.
"""

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path

import diffusers
import pytest
import torch
import transformers

LENGTH = 6
"""Tokens of CLIP."""
BETAS = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}


def _clip_tokens(folder: Path):
    words = ["<|startoftext|>", "<|endoftext|>", *"acdert", *(f"{c}</w>" for c in "acdert")]
    (folder / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    return transformers.CLIPTokenizer(
        str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=LENGTH
    )


def _clip(kind=transformers.CLIPTextModel):
    return kind(
        transformers.CLIPTextConfig(
            vocab_size=14, hidden_size=8, intermediate_size=16, num_hidden_layers=2,
            num_attention_heads=2, max_position_embeddings=LENGTH, bos_token_id=0, eos_token_id=1,
            pad_token_id=1, projection_dim=8,
        )
    )  # fmt: skip


def _t5_tokens():
    words = ["<pad>", "</s>", "<unk>", "▁", *"acdert", *(f"▁{c}" for c in "acdert")]
    return transformers.T5Tokenizer([(word, -float(i)) for i, word in enumerate(words)])


def _t5():
    return transformers.T5EncoderModel(
        transformers.T5Config(
            vocab_size=len(_t5_tokens()), d_model=20, d_kv=4, d_ff=16, num_layers=1, num_heads=2
        )
    )


def _unet(width, **more):
    return diffusers.UNet2DConditionModel(
        sample_size=8, in_channels=4, out_channels=4, layers_per_block=1,
        block_out_channels=(8, 16), norm_num_groups=4, attention_head_dim=2,
        cross_attention_dim=width, down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"), **more,
    )  # fmt: skip


def _ddim():
    return diffusers.DDIMScheduler(
        **BETAS, clip_sample=False, timestep_spacing="trailing", steps_offset=1
    )


def _sd(vae, tokens):
    return diffusers.StableDiffusionPipeline(
        vae, _clip(), tokens, _unet(8), _ddim(), None, None, requires_safety_checker=False
    )


def _sdxl(vae, tokens):
    unet = _unet(
        16, addition_embed_type="text_time", addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=8 + 6 * 8,
    )  # fmt: skip
    second = _clip(transformers.CLIPTextModelWithProjection)
    return diffusers.StableDiffusionXLPipeline(vae, _clip(), second, tokens, tokens, unet, _ddim())


def _sd3(vae, tokens, t5=True):
    net = diffusers.SD3Transformer2DModel(
        sample_size=8, patch_size=2, in_channels=4, out_channels=4, num_layers=1,
        attention_head_dim=4, num_attention_heads=2, joint_attention_dim=20,
        caption_projection_dim=8, pooled_projection_dim=16, pos_embed_max_size=8,
    )  # fmt: skip
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    first, second = (_clip(transformers.CLIPTextModelWithProjection) for _ in range(2))
    last = (_t5(), _t5_tokens()) if t5 else (None, None)
    return diffusers.StableDiffusion3Pipeline(
        net, scheduler, vae, first, tokens, second, tokens, *last
    )


def _flux(vae, tokens):
    net = diffusers.FluxTransformer2DModel(
        patch_size=1, in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=8,
        num_attention_heads=2, joint_attention_dim=20, pooled_projection_dim=8,
        guidance_embeds=False, axes_dims_rope=(2, 2, 4),
    )  # fmt: skip
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=2.0)
    return diffusers.FluxPipeline(scheduler, vae, _clip(), tokens, _t5(), _t5_tokens(), net)


def _pixart(vae, _):
    net = diffusers.PixArtTransformer2DModel(
        sample_size=8, patch_size=2, in_channels=4, out_channels=8, num_layers=1,
        attention_head_dim=4, num_attention_heads=2, cross_attention_dim=8, caption_channels=20,
        use_additional_conditions=False,
    )  # fmt: skip
    return diffusers.PixArtAlphaPipeline(_t5_tokens(), _t5(), vae, net, _ddim())


MADE = {
    "sd": _sd,
    "sdxl": _sdxl,
    "sd3": _sd3,
    "sd3 without T5": lambda vae, tokens: _sd3(vae, tokens, t5=False),
    "flux": _flux,
    "pixart": _pixart,
}


def save(kind: str, folder: Path) -> Path:
    """Save a pipeline with random weights, and return its folder."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    folder.mkdir(parents=True)
    vae = diffusers.AutoencoderKL(latent_channels=4, block_out_channels=(8,), norm_num_groups=4)
    MADE[kind](vae, _clip_tokens(folder)).save_pretrained(folder / "teacher")
    return folder / "teacher"


def samples(folder: Path, texts, source, steps, guidance):
    """Return the pipeline's own latents from `source` [N, 4, 8, 8], and the time steps it took."""
    index = json.loads((folder / "model_index.json").read_text())
    absent = {name: None for name, entry in index.items() if entry == [None, None]}
    pipe = diffusers.DiffusionPipeline.from_pretrained(folder, **absent)
    pipe.set_progress_bar_config(disable=True)
    flux = isinstance(pipe, diffusers.FluxPipeline)
    exact = {"use_resolution_binning": False} if "PixArt" in type(pipe).__name__ else {}
    given = pipe._pack_latents(source, *source.shape) if flux else source
    found = pipe(
        list(texts), latents=given, num_inference_steps=steps, guidance_scale=guidance,
        height=8, width=8, output_type="latent", **exact,
    ).images  # fmt: skip
    return (pipe._unpack_latents(found, 8, 8, 1) if flux else found), pipe.scheduler.timesteps


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Callable[[str], Path]:
    """Return what saves a pipeline once, by its name."""

    @cache
    def once(kind: str) -> Path:
        return save(kind, tmp_path_factory.mktemp("texts") / "made")

    return once
