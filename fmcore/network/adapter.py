"""Adapters: a few weights beside those of a network, which a round trains in their place (peft).

LoRA adds (alpha / rank) B A to the matrix of a layer, with A [rank, in] drawn and B [out, rank] 0
(Hu et al. 2022), so at first the network is the one that the round starts from. `merged` adds it to
the matrices; the network is then as any other and needs no peft.
"""

import json
from copy import deepcopy
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import torch
from pydantic import Field
from torch import nn

from fmcore.checked import FILES, read_checked
from fmcore.network.build import VelocityNetwork
from fmcore.network.diffusers_class import DiffusersNetwork
from fmcore.network.images import ImageNetwork
from fmcore.network.mlp import ResidualMLP
from fmcore.network.outside import OutsideNetwork
from fmcore.network.snapshots import weights_in, write_tensors
from fmcore.network.store import SPAN, read_config
from fmcore.settings import ReflowError, Settings

FOLDER = "adapter"
"""The folder of a model's folder that peft loads onto the model that the round started from."""
WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
"""The files of that folder, as peft names them."""
LOW_RANK = ".lora_"
"""What the names of an adapter's own weights have."""
PREFIX = "base_model.model."
"""What peft puts before the names of a network's weights."""
NAME = "default"
"""What peft calls an adapter that has no name of its own."""

OF_DIFFUSERS = (
    *("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"),
    *("ff.net.0.proj", "ff.net.2", "ff_context.net.0.proj", "ff_context.net.2", "proj_mlp"),
    *("conv1", "conv2"),
)
"""Layers of attention and feed-forward in diffusers, and the convolutions of a U-Net's blocks."""
HIDDEN = ("inner", "time", "outer")
"""Layers of a block of the residual MLP."""
LAYERS = (nn.Linear, nn.Conv2d)

Target = Annotated[str, Field(min_length=1, max_length=200)]
AnyModule = TypeVar("AnyModule", bound=nn.Module)


class Lora(Settings):
    """Low-rank matrices beside those of some layers. Needs the extra `adapters` (peft)."""

    kind: Literal["lora"] = "lora"
    """The kind of adapter: low-rank matrices (LoRA)."""
    rank: int = Field(default=16, ge=1, le=10_000)
    """Rank of what is added to the matrix of a layer. Raise it when the round gains less than one
    that trains all weights."""
    alpha: float | None = Field(default=None, gt=0, le=1e6)
    """Strength: alpha / rank times the product of both matrices is added. null is `rank`."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Share of a layer's inputs that the adapter does not see in a training step. Raise it to about
    0.1 when the round remembers its pairs."""
    targets: (
        Annotated[tuple[Target, ...], Field(strict=False, min_length=1, max_length=1000)] | None
    ) = None
    """Names of the layers, or ends of them, such as to_q. null takes attention and feed-forward,
    the convolutions of a U-Net's blocks, the hidden layers of the residual MLP, and every linear
    layer and convolution of a network of one's own."""


def adapt(network: VelocityNetwork, settings: Lora, *, seed: int) -> VelocityNetwork:
    """Return a copy of the network with an adapter, the only weights that ask for a gradient.

    Its first weights are a function of the seed. Raises ReflowError if peft is missing or the
    network has no such layers.
    """
    peft = _peft()
    adapted: VelocityNetwork = deepcopy(network)
    adapted.requires_grad_(False)
    inner = _host(adapted)
    config = peft.LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha or settings.rank,
        lora_dropout=settings.dropout,
        target_modules=list(settings.targets or _layers(inner)),
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            peft.inject_adapter_in_model(config, inner)
        except ValueError as error:
            ends = {name.split(".")[-1] for name, m in inner.named_modules() if type(m) in LAYERS}
            raise ReflowError(
                f"train.adapter.targets: {str(error).splitlines()[0][:200].rstrip('.')}; linear"
                f" layers and convolutions end in {', '.join(sorted(ends))}"
            ) from None
    return adapted


def merged(network: AnyModule) -> AnyModule:
    """Return a copy of the network without its adapter, which is added to its matrices."""
    plain = deepcopy(network)
    for name, layer in list(plain.named_modules()):
        if hasattr(layer, "get_delta_weight"):
            layer.merge()
            parent, _, own = name.rpartition(".")
            setattr(plain.get_submodule(parent), own, layer.get_base_layer())
    for module in plain.modules():
        vars(module).pop("peft_config", None)
    return plain.requires_grad_(False)


def write_adapter(path: Path, network: nn.Module) -> None:
    """Write the adapter of a network to `path`/adapter, as peft and diffusers load it.

    An input for spans that was trained with it lies there too, in a file of its own.
    """
    folder, inner = path / FOLDER, _host(network)
    folder.mkdir(parents=True, exist_ok=True)
    config = {**inner.peft_config[NAME].to_dict(), "inference_mode": True}
    config = {key: sorted(v) if isinstance(v, set) else v for key, v in config.items()}
    (folder / CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    tensors = {
        PREFIX + name.replace(f".{NAME}.", "."): weight.detach().cpu().contiguous()
        for name, weight in inner.named_parameters()
        if weight.requires_grad and LOW_RANK in name
    }
    named = {PREFIX + key: value for key, value in config.items()}
    # One entry alone: safetensors does not keep the order of several, and bytes have to repeat.
    about = {"lora_adapter_metadata": json.dumps(named, sort_keys=True)}
    write_tensors(folder / WEIGHTS, tensors, about=about)
    span = getattr(network, "span", None)
    if span is not None and span.weight.requires_grad:
        write_tensors(folder / SPAN, weights_in(span))


def copy_adapter(model: Path, out: Path) -> bool:
    """Copy the adapter of the model's folder `model` to `out`, checked; say if it has one."""
    config = read_config(model)
    names = [name for name in config[FILES] if name.startswith(f"{FOLDER}/")]
    for name in names:
        content = read_checked(model, name, config)
        (out / name).parent.mkdir(exist_ok=True)
        (out / name).write_bytes(content)
    return bool(names)


def _host(network: nn.Module) -> Any:
    """Return the module that others load an adapter onto: that of diffusers, if there is one."""
    inner = network.net if isinstance(network, OutsideNetwork) else network
    return inner.net if isinstance(inner, ImageNetwork | DiffusersNetwork) else inner


def _layers(inner: nn.Module) -> list[str]:
    """Return the names of the layers that get an adapter if none are named."""
    names = [name for name, module in inner.named_modules() if type(module) in LAYERS]
    known: tuple[str, ...] = HIDDEN if isinstance(inner, ResidualMLP) else ()
    known = OF_DIFFUSERS if type(inner).__module__.startswith("diffusers.") else known
    if not known:
        return names
    ends = tuple(f".{end}" for end in known)
    return [name for name in names if name.endswith(ends)]


def _peft() -> Any:
    try:
        return import_module("peft")
    except ImportError as error:
        raise ReflowError(
            f"train.adapter: needs peft ({error}); pip install 'reflow-chain[adapters]', or train"
            " all weights"
        ) from None
