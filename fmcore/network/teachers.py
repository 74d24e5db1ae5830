"""Models that others trained: where they lie, and how they become networks of ours.

Weights are read from safetensors alone: nothing is unpickled, and nothing is downloaded.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from fmcore.codec.kinds import PART
from fmcore.conditions.table import ConditionInput, Table
from fmcore.network.build import take
from fmcore.network.diffusers_class import (
    DiffusersClass,
    Name,
    absent_condition,
    embedded_classes,
    summed,
    takes_sizes,
)
from fmcore.network.outside import Outside, OutsideNetwork
from fmcore.network.own import Custom, OwnNetwork
from fmcore.network.predictions import AnyPrediction
from fmcore.network.schedulers import prediction_of
from fmcore.own import read
from fmcore.settings import ClassCount, ReflowError, Settings
from fmcore.work.of_diffusers import config_in, pretrained

PARTS = ("unet", "transformer")
"""The folders of a pipeline of diffusers that may hold its network."""
DIMENSIONS = {
    "encoder_hidden_states": 2, "pooled_projections": 1, "guidance": 0, "text_embeds": 1,
    "time_ids": 1, "encoder_attention_mask": 1, "resolution": 1, "aspect_ratio": 1,
}  # fmt: skip
"""Conditions by the name of diffusers' argument, with their dimensions without that of a batch."""
OF_TEXTS = ("encoder_hidden_states", "encoder_attention_mask", "pooled_projections", "text_embeds")
"""Those that are each sample's own, where it has a text."""


class DiffusersFolder(Settings):
    """A folder that diffusers' `save_pretrained` wrote: a pipeline, or a network alone."""

    kind: Literal["diffusers"]
    """A folder of diffusers: config and safetensors of a network, and its scheduler's config."""
    path: str
    """The folder: a pipeline (model_index.json), or a network with `scheduler` or `prediction`."""
    scheduler: str | None = None
    """The folder with scheduler_config.json. null is `scheduler` in the folder of a pipeline, or
    the network's own folder."""
    prediction: AnyPrediction | None = None
    """What the network predicts, at which times. null takes it from the scheduler's config."""
    condition: str | None = None
    """Safetensors with inputs that all samples share, named as diffusers' arguments, such as
    encoder_hidden_states of one prompt. null is zeros where the network needs any."""
    conditions: ConditionInput | None = Field(default=None, exclude_if=lambda given: given is None)
    """`{}` gives each sample the tokens of its own text (`data.conditions`), which have to be those
    of the model's text encoder. null gives all samples `condition`."""
    classes: ClassCount | None = None
    """Classes of the label. null is all that the network embeds, of DiT the last one is no label;
    one less than it embeds says that its last class is no label, which guidance needs."""


class OwnModel(Settings):
    """A network of one's own class, with its weights in a file."""

    kind: Literal["own"]
    """A class of one's own, a subclass of OwnNetwork, with its weights."""
    network: Custom
    """The class and its settings, as under `network`."""
    weights: str | None = None
    """Safetensors of its state_dict; any difference of names or shapes is an error. null keeps what
    the class itself makes, for one that reads its weights from elsewhere."""
    prediction: AnyPrediction | None = None
    """What the network predicts, at which times. null is the velocity at t in [0, 1], t = 1 noise;
    otherwise it is called with x and times as `prediction` says."""


class ProjectModel(Settings):
    """A model of another project: a round of it, now or at a git revision, or a model's folder."""

    kind: Literal["reflow"]
    """A model of another project, or a model's folder."""
    path: str
    """The folder of the project, or of the model itself (where config.json is)."""
    round: str | None = None
    """The round of the project. null is for a path that is a model's own folder."""
    rev: str | None = None
    """A tag or commit of the project, whose model DVC brings from its cache or remote. null is the
    model that lies there now. A branch that moves later is not watched."""


class RegisteredModel(Settings):
    """A version of a model in MLflow's registry, of this or another project."""

    kind: Literal["mlflow"]
    """A registered model of MLflow, that `reflow publish` registered."""
    model: str = Field(pattern=r"^models:/[^/@]+(/\d+|@[\w.-]+)$")
    """`models:/NAME/VERSION`, or `models:/NAME@ALIAS`, which is looked up when the round is
    adopted; an alias that moves later is not watched."""
    uri: str | None = None
    """The server, or sqlite:/// file, of MLflow. null is that of this project."""


Teacher = Annotated[
    DiffusersFolder | OwnModel | ProjectModel | RegisteredModel, Field(discriminator="kind")
]


@dataclass(frozen=True)
class Found:
    """A network that others trained, what its config.json says of it, and what people are told."""

    network: OutsideNetwork | OwnNetwork
    about: dict[str, Any]
    notes: list[str] = field(default_factory=list)


def find(
    settings: DiffusersFolder | OwnModel, shape: tuple[int, ...], table: Table | None = None
) -> Found:
    """Return the network of a folder of diffusers, or of one's own class, for samples of `shape`.

    `table` has the conditions of the data, for a network that takes them. Raises ReflowError for
    what is missing, damaged, or does not fit.
    """
    if settings.kind == "diffusers":
        found = _diffusers(settings, shape, table)
    else:
        found = _own(settings, shape, table)
    signal = 0.0
    if isinstance(found.network, OutsideNetwork):
        signal = found.network.settings.prediction.path.signal
    if signal:
        found.about["terminal_signal"] = signal
        found.notes.append(
            f"at t = 1 its training left {signal:.2g} of the target, which samples start without;"
            " diffusers' samplers start without it too"
        )
    return found


def _own(settings: OwnModel, shape: tuple[int, ...], table: Table | None) -> Found:
    made = settings.network.sized(table)
    network: OutsideNetwork | OwnNetwork = made.build(shape)
    if settings.weights is not None:
        _fill(network, _tensors(Path(settings.weights)), settings.weights)
    if settings.prediction is not None:
        outer = Outside(name="outside", network=made, prediction=settings.prediction)
        whole = outer.build(shape)
        whole.net.load_state_dict(network.state_dict())
        network = whole
    take(network, table)
    return Found(network, {})


def _diffusers(settings: DiffusersFolder, shape: tuple[int, ...], table: Table | None) -> Found:
    folder = Path(settings.path)
    part = next((folder / name for name in PARTS if (folder / name).is_dir()), folder)
    config = config_in(part / "config.json")
    kind = config.get("_class_name")
    known: Name = read(Name, kind, f"{part / 'config.json'}: _class_name")
    plain = {key: value for key, value in config.items() if not key.startswith("_")}
    prediction, scheduler = settings.prediction, None
    notes: list[str] = []
    if prediction is None:
        place = Path(settings.scheduler) if settings.scheduler else folder
        scheduler = config_in(_scheduler_file(place))
        prediction, notes = prediction_of(scheduler, str(_scheduler_file(place)))
    condition, said = _condition(settings, known, plain, shape)
    embeds = embedded_classes(known, plain)
    null = known == "DiTTransformer2DModel"
    classes = embeds - null if settings.classes is None else settings.classes
    inner = {
        "name": "diffusers",
        "kind": known,
        "config": plain,
        "condition": {name: list(value.shape) for name, value in condition.items()},
        "classes": classes,
        "null": classes < embeds and classes > 0,
    }
    made: DiffusersClass = read(DiffusersClass, inner, f"model.path {part}")
    if settings.conditions is not None:
        made = made.sized(table)
    network = Outside(name="outside", network=made, prediction=prediction).build(shape)
    take(network, table)
    tensors = pretrained(known, part).state_dict()
    tensors = {f"net.{name}": value.float() for name, value in tensors.items()}
    tensors |= {f"condition_{name}": value for name, value in condition.items()}
    _fill(network.net, tensors, str(part))
    return Found(network, {"scheduler": scheduler} if scheduler else {}, [*notes, *said])


def _scheduler_file(place: Path) -> Path:
    name = "scheduler_config.json"
    inner = place / "scheduler" / name
    return inner if inner.is_file() else place / name


def _condition(
    settings: DiffusersFolder, kind: str, config: dict[str, Any], shape: tuple[int, ...]
) -> tuple[dict[str, Tensor], list[str]]:
    """Return the inputs that all samples share, without a dimension for the batch."""
    found: dict[str, Tensor] = {}
    for name, value in (_tensors(Path(settings.condition)) if settings.condition else {}).items():
        if name not in DIMENSIONS:
            known = ", ".join(DIMENSIONS)
            raise ReflowError(f"{settings.condition}: {name!r} is no condition; expected {known}")
        value = value[0] if value.ndim == DIMENSIONS[name] + 1 and len(value) == 1 else value
        if value.ndim != DIMENSIONS[name]:
            raise ReflowError(
                f"{settings.condition}: {name} has shape {list(value.shape)}; expected"
                f" {DIMENSIONS[name]} dimensions, one sample's"
            )
        found[name] = value.float()
    theirs = OF_TEXTS if settings.conditions else ()
    if twice := [name for name in theirs if name in found]:
        raise ReflowError(
            f"{settings.condition}: {twice[0]} is that of each sample's text (model.conditions);"
            " take it out of the file"
        )
    said: list[str] = []
    if summed(config) and "text_embeds" not in {*found, *theirs}:
        raise ReflowError(
            f"{settings.path}: it needs text_embeds; give them in `condition`, or each sample its"
            " own text (model.conditions)"
        )
    sizes = _sizes(settings, kind, config, shape)
    if absent := [name for name in sizes if name not in found]:
        height, width = _uncropped(Path(settings.path), shape)[:2].int().tolist()
        found = {**sizes, **found}
        said.append(
            f"no {', '.join(absent)} in `condition`: pictures of {height} x {width}, uncropped"
        )
    known_sizes = absent_condition(kind, config).items()
    left = {n: s for n, s in known_sizes if n not in found and n not in theirs}
    zeros = {name: torch.zeros(size) for name, size in left.items()}
    if zeros:
        said.append(f"no {', '.join(zeros)} in `condition`: zeros are taken")
    return {**found, **zeros}, said


def _sizes(
    settings: DiffusersFolder, kind: str, config: dict[str, Any], shape: tuple[int, ...]
) -> dict[str, Tensor]:
    """Return the size of uncropped pictures as a network takes it: SDXL's way, or PixArt's."""
    whole = _uncropped(Path(settings.path), shape)
    if summed(config):
        return {"time_ids": whole}
    if takes_sizes(kind, config):
        return {"resolution": whole[:2], "aspect_ratio": whole[:1] / whole[1:2]}
    return {}


def _uncropped(folder: Path, shape: tuple[int, ...]) -> Tensor:
    """Return SDXL's time_ids [6] of latents of `shape`: size, place and size of their pictures.

    They are those of its pipeline, which takes a side to be 8 latents where there is no VAE.
    """
    config = folder / PART / "config.json"
    levels = len(config_in(config)["block_out_channels"]) if config.is_file() else 4
    size = [side * 2 ** (levels - 1) for side in shape[1:]]
    return torch.tensor([*size, 0, 0, *size], dtype=torch.float32)


def _tensors(file: Path) -> dict[str, Tensor]:
    try:
        return load_file(file)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
        raise ReflowError(f"{file}: not safetensors that can be read ({reason})") from None


def _fill(network: Any, tensors: dict[str, Tensor], where: str) -> None:
    try:
        network.load_state_dict(tensors)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise ReflowError(f"{where}: weights of another network ({reason})") from None
