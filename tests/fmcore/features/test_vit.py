"""DINOv2 and CLIP from a file: the published layouts, checked against torch's own transformer."""

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from fmcore.features.extractor import (
    FeatureSettings,
    extract,
    fingerprint,
    load_extractor,
    metric_name,
    pretrained,
    save_extractor,
)
from fmcore.features.pretrained import Transformer
from fmcore.features.vit import ViT
from fmcore.settings import ReflowError

WIDTH, HIDDEN, DEPTH, PATCH = 128, 96, 2, 14


def draw(*shape):
    return 0.1 * torch.randn(*shape)


def dinov2(side=37):
    """Random weights under the names of dinov2_vitl14_pretrain.pth."""
    torch.manual_seed(0)
    state = {
        "cls_token": draw(1, 1, WIDTH),
        "mask_token": draw(1, WIDTH),
        "pos_embed": draw(1, 1 + side * side, WIDTH),
        "patch_embed.proj.weight": draw(WIDTH, 3, PATCH, PATCH),
        "patch_embed.proj.bias": draw(WIDTH),
        "norm.weight": 1 + draw(WIDTH),
        "norm.bias": draw(WIDTH),
    }
    for i in range(DEPTH):
        block = f"blocks.{i}."
        for norm in ("norm1", "norm2"):
            state |= {f"{block}{norm}.weight": 1 + draw(WIDTH), f"{block}{norm}.bias": draw(WIDTH)}
        for name, out, size in (
            ("attn.qkv", 3 * WIDTH, WIDTH), ("attn.proj", WIDTH, WIDTH),
            ("mlp.fc1", HIDDEN, WIDTH), ("mlp.fc2", WIDTH, HIDDEN),
        ):  # fmt: skip
            state |= {f"{block}{name}.weight": draw(out, size), f"{block}{name}.bias": draw(out)}
        state |= {f"{block}ls1.gamma": 1 + draw(WIDTH), f"{block}ls2.gamma": 1 + draw(WIDTH)}
    return state


def clip(side=3, projected=64):
    """Random weights under the names of openai/clip-vit-large-patch14-336 at Hugging Face."""
    torch.manual_seed(1)
    top = "vision_model."
    state = {
        "visual_projection.weight": draw(projected, WIDTH),
        "text_projection.weight": draw(3, 3),
        f"{top}embeddings.class_embedding": draw(WIDTH),
        f"{top}embeddings.patch_embedding.weight": draw(WIDTH, 3, PATCH, PATCH),
        f"{top}embeddings.position_embedding.weight": draw(1 + side * side, WIDTH),
    }
    for norm in ("pre_layrnorm", "post_layernorm"):
        state |= {f"{top}{norm}.weight": 1 + draw(WIDTH), f"{top}{norm}.bias": draw(WIDTH)}
    for i in range(DEPTH):
        layer = f"{top}encoder.layers.{i}."
        for norm in ("layer_norm1", "layer_norm2"):
            state |= {f"{layer}{norm}.weight": 1 + draw(WIDTH), f"{layer}{norm}.bias": draw(WIDTH)}
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            state |= {
                f"{layer}self_attn.{name}.weight": draw(WIDTH, WIDTH),
                f"{layer}self_attn.{name}.bias": draw(WIDTH),
            }
        for name, out, size in (("fc1", HIDDEN, WIDTH), ("fc2", WIDTH, HIDDEN)):
            state |= {
                f"{layer}mlp.{name}.weight": draw(out, size),
                f"{layer}mlp.{name}.bias": draw(out),
            }
    return state


def torchs(activation, eps, weights):
    """torch's encoder layer with pre-norm, filled with (in_proj, out_proj, fc1, fc2, norms)."""
    layer = nn.TransformerEncoderLayer(
        WIDTH, WIDTH // 64, HIDDEN, 0.0, activation, eps, batch_first=True, norm_first=True
    ).eval()
    layer.load_state_dict(weights)
    return layer


def test_a_block_of_clip_is_torchs_encoder_layer_with_the_quick_gelu():
    state = clip()
    net = ViT(state, clip=True).eval()
    images = draw(2, 3, 3 * PATCH, 3 * PATCH)
    top = "vision_model."
    patches = nn.functional.conv2d(
        images, state[f"{top}embeddings.patch_embedding.weight"], stride=PATCH
    )
    x = torch.cat(
        [
            state[f"{top}embeddings.class_embedding"].expand(2, 1, -1),
            patches.flatten(2).transpose(1, 2),
        ],
        1,
    )
    x = x + state[f"{top}embeddings.position_embedding.weight"]

    def norm(x, name):
        return nn.functional.layer_norm(
            x, (WIDTH,), state[f"{top}{name}.weight"], state[f"{top}{name}.bias"]
        )

    x = norm(x, "pre_layrnorm")
    for i in range(DEPTH):
        own = {
            k.removeprefix(f"{top}encoder.layers.{i}."): v
            for k, v in state.items()
            if k.startswith(f"{top}encoder.layers.{i}.")
        }
        weights = {}
        for part in ("weight", "bias"):
            weights |= {
                f"self_attn.in_proj_{part}": torch.cat(
                    [own[f"self_attn.{n}_proj.{part}"] for n in "qkv"]
                ),
                f"self_attn.out_proj.{part}": own[f"self_attn.out_proj.{part}"],
                f"linear1.{part}": own[f"mlp.fc1.{part}"],
                f"linear2.{part}": own[f"mlp.fc2.{part}"],
                f"norm1.{part}": own[f"layer_norm1.{part}"],
                f"norm2.{part}": own[f"layer_norm2.{part}"],
            }
        x = torchs(lambda x: x * torch.sigmoid(1.702 * x), 1e-5, weights)(x)
    wanted = norm(x[:, 0], "post_layernorm") @ state["visual_projection.weight"].T
    torch.testing.assert_close(net(images), wanted, rtol=1e-4, atol=1e-5)


def test_a_block_of_dinov2_is_torchs_encoder_layer_where_its_scales_are_one():
    state = dinov2()
    for i in range(DEPTH):
        state[f"blocks.{i}.ls1.gamma"] = torch.ones(WIDTH)
        state[f"blocks.{i}.ls2.gamma"] = torch.ones(WIDTH)
    net = ViT(state, clip=False).eval()
    x = wanted = draw(2, 5, WIDTH)
    for i, block in enumerate(net.blocks):
        x = block(x)
        own = {
            k.removeprefix(f"blocks.{i}."): v
            for k, v in state.items()
            if k.startswith(f"blocks.{i}.")
        }
        weights = {}
        for part in ("weight", "bias"):
            weights |= {
                f"self_attn.in_proj_{part}": own[f"attn.qkv.{part}"],
                f"self_attn.out_proj.{part}": own[f"attn.proj.{part}"],
                f"linear1.{part}": own[f"mlp.fc1.{part}"],
                f"linear2.{part}": own[f"mlp.fc2.{part}"],
                f"norm1.{part}": own[f"norm1.{part}"],
                f"norm2.{part}": own[f"norm2.{part}"],
            }
        wanted = torchs("gelu", 1e-6, weights)(wanted)
    torch.testing.assert_close(x, wanted, rtol=1e-4, atol=1e-5)
    assert net.side == 37 * PATCH


def test_the_scales_of_dinov2_multiply_what_a_block_adds():
    state = dinov2()
    for i in range(DEPTH):
        state[f"blocks.{i}.ls1.gamma"] = state[f"blocks.{i}.ls2.gamma"] = torch.zeros(WIDTH)
    net = ViT(state, clip=False).eval()
    x = draw(2, 5, WIDTH)
    assert torch.equal(net.blocks[0](x), x)


def test_features_of_images_come_from_the_file(tmp_path):
    torch.save(dinov2(), tmp_path / "dino.pth")
    save_file(clip(), tmp_path / "clip.safetensors")
    images = torch.rand(3, 1, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    settings = FeatureSettings(kind="dinov2", weights=str(tmp_path / "dino.pth"))
    network = pretrained(settings)
    found = extract(network, images)
    assert found.shape == (3, WIDTH) and found.isfinite().all()
    assert metric_name(settings, 100) == "fd_dinov2"
    save_extractor(tmp_path / "kept", network)
    again = load_extractor(tmp_path / "kept")
    assert fingerprint(again) == fingerprint(network)
    assert torch.equal(extract(again, images), found)
    embedded = Transformer("clip", str(tmp_path / "clip.safetensors"), None).features(images)
    assert embedded.shape == (3, 64) and embedded.isfinite().all()


def test_other_weights_are_refused_in_one_line(tmp_path):
    for name, content in (("none.pth", {"a": torch.zeros(1)}), ("half.pth", dinov2())):
        content.pop("blocks.1.attn.proj.bias", None)
        torch.save(content, tmp_path / name)
        with pytest.raises(ReflowError, match="not the weights of dinov2"):
            Transformer("dinov2", str(tmp_path / name), None)
        with pytest.raises(ReflowError, match="not the weights of clip"):
            Transformer("clip", str(tmp_path / name), None)
    (tmp_path / "text.pth").write_text("<html>")
    (tmp_path / "text.safetensors").write_text("<html>")
    torch.save([1], tmp_path / "list.pth")
    for name in ("text.pth", "text.safetensors", "list.pth"):
        with pytest.raises(ReflowError, match=r"no file of weights|expected a state dict"):
            Transformer("clip", str(tmp_path / name), None)
    torch.save(dinov2(), tmp_path / "dino.pth")
    with pytest.raises(ReflowError, match=r"expected 0000"):
        Transformer("dinov2", str(tmp_path / "dino.pth"), "0" * 64)
