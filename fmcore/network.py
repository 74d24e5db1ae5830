"""Velocity networks, their exponential moving average, and how they are kept on disk.

A model is a directory: `config.json`, `model.safetensors` (EMA weights) and `raw.safetensors`
(the optimiser's own weights). Nothing is ever unpickled.
"""

import hashlib
import json
import math
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, cast

import torch
from pydantic import Field, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from fmcore.settings import CONVENTION, ReflowError, Settings


class Network(Settings):
    """A residual MLP on flattened samples, told the time by sines and cosines.

    `time_frequency` is the highest of these, in half periods over [0, 1]; MeanFlow wants it low.
    `norm: none` is for a few dimensions: LayerNorm forgets |x|. `classes` > 0 adds a label and a
    null class; `spans` adds the span of an average velocity (MeanFlow).
    """

    width: int = Field(default=384, gt=0)
    depth: int = Field(default=3, gt=0)
    time_features: int = Field(default=64, gt=1, multiple_of=2)
    time_frequency: float = Field(default=16.0, gt=1)
    norm: Literal["layer", "none"] = "layer"
    classes: int = Field(default=0, ge=0)
    spans: bool = False


class Block(nn.Module):
    """x + W2 silu(W1 norm(x) + time): a residual step whose input is shifted by the time."""

    def __init__(self, width: int, norm: nn.Module) -> None:
        super().__init__()
        self.norm = norm
        self.inner = nn.Linear(width, width)
        self.time = nn.Linear(width, width)
        self.outer = nn.Linear(width, width)
        nn.init.zeros_(self.outer.weight)
        nn.init.zeros_(self.outer.bias)

    def forward(self, h: Tensor, time: Tensor) -> Tensor:
        """Map features h [B, W] and the time embedding [B, W] to features [B, W]."""
        inner = self.inner(self.norm(h)) + self.time(time)
        return cast(Tensor, h + self.outer(nn.functional.silu(inner)))


class ResidualMLP(nn.Module):
    """v(x, t): x [B, *D], t [B] in [0, 1] -> [B, *D].

    A gate g(t) * x carries the part of the velocity that is linear in x, which is all of it for
    Gaussian data: the blocks learn the rest.
    """

    def __init__(self, settings: Network, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.settings, self.shape = settings, shape
        dim, width = math.prod(shape), settings.width
        half = settings.time_features // 2
        # Half a period to 8 over [0, 1]: a velocity is smooth in t, and the solver relies on it.
        frequencies = math.pi * torch.logspace(0, math.log10(settings.time_frequency), half)
        self.register_buffer("frequencies", frequencies, persistent=False)
        self.time = nn.Sequential(
            nn.Linear(2 * half, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU()
        )
        self.enter = nn.Linear(dim, width)
        norm = partial(nn.LayerNorm, width) if settings.norm == "layer" else nn.SiLU
        self.blocks = nn.ModuleList(Block(width, norm()) for _ in range(settings.depth))
        self.norm = norm()
        self.leave = nn.Linear(width, dim)
        self.gate = nn.Linear(width, dim)
        if settings.classes:
            self.label = nn.Embedding(settings.classes + 1, width)
            nn.init.zeros_(self.label.weight)
        if settings.spans:
            self.span = nn.Linear(2 * half, width, bias=False)
            nn.init.zeros_(self.span.weight)

    def forward(
        self, x: Tensor, t: Tensor, label: Tensor | None = None, span: Tensor | None = None
    ) -> Tensor:
        """Return dx/dt [B, *D] at x [B, *D] and t [B]; no label [B] is the null class."""
        time = self.time(self._waves(t))
        if self.settings.classes:
            null = torch.full_like(t, self.settings.classes, dtype=torch.int64)
            time = time + self.label(null if label is None else label)
        if span is not None:
            # An eighth of the frequencies: the loss differentiates by the span.
            time = time + self.span(self._waves(span / 8))
        h = self.enter(x.flatten(1))
        for block in self.blocks:
            h = block(h, time)
        velocity = self.leave(self.norm(h)) + self.gate(time) * x.flatten(1)
        return cast(Tensor, velocity.reshape(x.shape))

    def _waves(self, t: Tensor) -> Tensor:
        angles = t[:, None] * cast(Tensor, self.frequencies)
        return torch.cat([angles.sin(), angles.cos()], dim=1)


def with_spans(network: ResidualMLP) -> ResidualMLP:
    """Return the network with an input for spans that changes nothing until it is trained."""
    if network.settings.spans:
        return network
    wider = ResidualMLP(network.settings.model_copy(update={"spans": True}), network.shape)
    wider.load_state_dict({**wider.state_dict(), **network.state_dict()})
    return wider


def build(settings: Network, shape: tuple[int, ...], *, seed: int) -> ResidualMLP:
    """Make an untrained network for samples of `shape`; the weights are a function of the seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return ResidualMLP(settings, shape)


def averaged(model: nn.Module, decay: float) -> AveragedModel:
    """Return the exponential moving average of `model`, with a ramp for short runs.

    The decay of update n is min(decay, (1 + n) / (10 + n)), so that the start is forgotten.
    """

    @torch.no_grad()
    def update(ema: Any, current: Any, n: Tensor | int) -> None:
        count = float(n)
        torch._foreach_lerp_(ema, current, 1 - min(decay, (1 + count) / (10 + count)))

    return AveragedModel(model, multi_avg_fn=update)


@dataclass(frozen=True)
class Model:
    """A loaded model: the network, its whole config and the digest that names it."""

    network: ResidualMLP
    config: dict[str, Any]
    digest: str

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape [*D] of one sample."""
        return self.network.shape


def save(
    path: Path, network: nn.Module, *, raw: nn.Module | None = None, about: dict[str, Any]
) -> None:
    """Write `network` (EMA weights) and `raw` to the directory `path`, with a config of `about`."""
    inner = cast(ResidualMLP, network.module if isinstance(network, AveragedModel) else network)
    path.mkdir(parents=True, exist_ok=True)
    config = {
        "network": inner.settings.model_dump(),
        "shape": list(inner.shape),
        "convention": CONVENTION,
        **about,
    }
    write_tensors(path / "model.safetensors", _weights(inner))
    write_tensors(path / "raw.safetensors", _weights(raw or inner))
    (path / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def write_tensors(
    path: Path, tensors: dict[str, Tensor], *, about: dict[str, str] | None = None
) -> None:
    """Write tensors as safetensors; a full disk is an error that names the file."""
    try:
        save_file(tensors, path, metadata=about)
    except (SafetensorError, OSError) as error:
        raise ReflowError(
            f"{path}: cannot be written ({error}); free some space and start again"
        ) from error


def _weights(module: nn.Module) -> dict[str, Tensor]:
    return {k: v.detach().cpu().contiguous() for k, v in module.state_dict().items()}


def load(path: Path, *, weights: Literal["ema", "raw"] = "ema", device: str = "cpu") -> Model:
    """Read a model directory in evaluation mode; `weights` are the averaged or the raw ones."""
    file = path / ("model.safetensors" if weights == "ema" else "raw.safetensors")
    try:
        config = json.loads((path / "config.json").read_text())
        network = ResidualMLP(Network(**config["network"]), tuple(config["shape"]))
        network.load_state_dict(load_file(file))
    except FileNotFoundError as error:
        raise ReflowError(
            f"{path}: expected a model (config.json and {file.name}), {error.filename} is missing;"
            " run the stage that trains it"
        ) from error
    except (KeyError, TypeError, ValueError, ValidationError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise ReflowError(
            f"{file}: not a model of this version ({reason}); train it again"
        ) from error
    except SafetensorError as error:
        raise ReflowError(f"{file}: damaged ({error}); `dvc checkout` or train it again") from error
    digest = hashlib.sha256((path / "config.json").read_bytes() + file.read_bytes()).hexdigest()
    network.eval().requires_grad_(False)
    return Model(network.to(device), config, digest)
