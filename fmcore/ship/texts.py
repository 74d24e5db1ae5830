"""Which pipeline of diffusers samples a student of a network of others, or why none does."""

from pathlib import Path
from typing import cast

from fmcore.codec.kinds import DiffusersCodec
from fmcore.conditions.encoders import EncoderPipeline
from fmcore.network.diffusers_class import DiffusersClass, summed
from fmcore.network.outside import Outside, OutsideNetwork
from fmcore.network.predictions import Discrete, FlowMatching
from fmcore.network.store import Model
from fmcore.own import read
from fmcore.settings import ReflowError
from fmcore.ship import schedule
from fmcore.ship.form import Form
from fmcore.ship.images import same_scale
from fmcore.ship.prompted import SHIFTED, Prompted, check_digest
from fmcore.solve.solver import Solver
from fmcore.work.of_diffusers import config_in

PIPELINES = {
    "UNet2DConditionModel": ("StableDiffusionPipeline", "StableDiffusionXLPipeline"),
    "PixArtTransformer2DModel": ("PixArtAlphaPipeline", "PixArtSigmaPipeline"),
    "SD3Transformer2DModel": ("StableDiffusion3Pipeline",),
    "FluxTransformer2DModel": ("FluxPipeline",),
}
"""The pipelines of diffusers for a network that takes texts."""
FLOWS = ("SD3Transformer2DModel", "FluxTransformer2DModel")
"""Networks whose pipelines have a scheduler of straight paths; the others have numbered steps."""


def _settings(model: Model) -> Outside:
    assert isinstance(model.network, OutsideNetwork)
    return model.network.settings


def takes_texts(model: Model) -> bool:
    """Whether the network of a model is one that texts or their embeddings are given to."""
    network = model.network
    if not isinstance(network, OutsideNetwork):
        return False
    inner = network.settings.network
    return isinstance(inner, DiffusersClass) and inner.kind in PIPELINES


def refusal(model: Model) -> str | None:
    """Return why no pipeline of diffusers samples a network of others; None if one does."""
    settings = _settings(model)
    inner, prediction = settings.network, settings.prediction
    if not isinstance(inner, DiffusersClass):
        return "its network is a class of your own"
    if not isinstance(prediction, Discrete | FlowMatching):
        return f"prediction {prediction.name}: no pipeline of diffusers starts where its grid does"
    if inner.kind not in PIPELINES:
        return None
    if isinstance(prediction, FlowMatching) != (inner.kind in FLOWS):
        return f"{inner.kind} with prediction {prediction.name}: its pipeline has another scheduler"
    if inner.classes and inner.conditions is None:
        return f"{inner.kind} with classes: its pipeline takes no labels"
    if inner.kind != "PixArtTransformer2DModel" and "encoder_attention_mask" in inner.condition:
        return f"{inner.kind} with encoder_attention_mask: its pipeline takes no mask"
    encoder = (model.config.get("conditions") or {}).get("encoder") or {"name": None}
    if inner.conditions is not None and encoder["name"] != "pipeline":
        named = f"encoder {encoder['name']}" if encoder["name"] else "vectors of your own"
        return f"its conditions are {named}, which no pipeline of diffusers has"
    return None


def form(model: Model, solver: Solver) -> Form:
    """Return the form of a student of a text-to-image network.

    Raises ReflowError if its latents have other units than the pipeline decodes, or the folder of
    its encoders is another one.
    """
    settings = _settings(model)
    assert isinstance(settings.network, DiffusersClass)
    kind, prediction = settings.network.kind, settings.prediction
    folder = _folder(model)
    name = _name(settings.network, folder)
    _check_units(model, name)
    if isinstance(prediction, FlowMatching):
        found = schedule.of_flow(solver, prediction.steps, even=kind == "FluxTransformer2DModel")
    else:
        assert isinstance(prediction, Discrete)
        found = schedule.ddim(solver, prediction) or schedule.of_sigmas(solver, prediction)
    return Prompted(model, solver, found, name, folder)


def _folder(model: Model) -> EncoderPipeline | None:
    """Return the pipeline whose encoders embedded the texts; None where there are no texts.

    Raises ReflowError if it is no longer the one that did.
    """
    record = (model.config.get("conditions") or {}).get("encoder")
    network = cast(OutsideNetwork, model.network)
    if network.given is None or record is None:
        return None
    given = {key: value for key, value in record.items() if key != "sha256"}
    encoder: EncoderPipeline = read(EncoderPipeline, given, "the encoder of these conditions")
    check_digest(encoder, record["sha256"])
    return encoder


def _name(inner: DiffusersClass, folder: EncoderPipeline | None) -> str:
    """Return the class of the pipeline: the folder's own, or that of the network."""
    names = PIPELINES[inner.kind]
    if folder is None:
        return names[-1] if summed(inner.config) else names[0]
    name = str(config_in(Path(folder.path) / "model_index.json").get("_class_name"))
    if name not in names:
        raise ReflowError(
            f"--to: {folder.path} is a {name}, the round's network is of {' or '.join(names)};"
            " ship it with --export"
        )
    return name


def _check_units(model: Model, name: str) -> None:
    """Raise ReflowError unless the pipeline decodes what the model samples."""
    codec, scale = model.units.codec, model.scale
    right = scale.identity
    if isinstance(codec, DiffusersCodec):
        shifts = name in SHIFTED or not codec.module.config.get("shift_factor")
        right = shifts and same_scale(scale, codec.scale)
    if not right:
        raise ReflowError(
            f"--to: {name} decodes latents in the units of its VAE's config, and data.scale has"
            " others; ship it with --export, or prepare the data in those"
        )
