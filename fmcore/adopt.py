"""Verb: take in a model that others trained, as the model of a round that is not trained here."""

import csv
import json
from pathlib import Path
from typing import Any

import torch

from fmcore.checked import files_named, folder_digest
from fmcore.codec.kinds import PART, DiffusersCodec
from fmcore.codec.latents import same_codec
from fmcore.coupling.checks import check_labels, check_source
from fmcore.coupling.pairs import Pairs
from fmcore.coupling.read import Coupling, labels, open_coupling
from fmcore.network.build import VelocityNetwork
from fmcore.network.field import Field, interpolant_of
from fmcore.network.outside import check_null
from fmcore.network.snapshots import POWER
from fmcore.network.store import Model, condition, load, save
from fmcore.network.teachers import (
    DiffusersFolder,
    OwnModel,
    Teacher,
    find,
)
from fmcore.scale import same_units
from fmcore.settings import ReflowError
from fmcore.training.held_out import beside_constant, held_out_losses, held_out_sides
from fmcore.work.work import Work

__all__ = ["Teacher", "adopt"]

COLUMNS = ("step", "loss", "lr", "grad_norm", "held_out_loss")
"""The columns of a training's curve; there was no training, so it has no rows."""
EVALUATIONS = 2048
"""Evaluations of the network, about, by which its losses are measured on each side."""

SAME = 1e-3
"""Largest difference of two scales that are the same, over the standard deviation."""

PLACES = {"path", "scheduler", "condition", "weights", "network", "uri"}
"""Settings of a model that say where it lies: one that moved is the same model."""

LEFT = ("network", "shape", "adapter")
"""What the config of a model of ours says of its network, and of an adapter that stays there."""

STRAIGHT: dict[str, Any] = {
    "interpolant": {"name": "linear"},
    "objective": "velocity",
    "coupling": "independent",
    "pairing": "independent",
    "learns_mean": True,
}
"""What the config says of a network whose velocity is that of the linear interpolant."""


def adopt(
    coupling: Path,
    out: Path,
    curve: Path,
    metrics: Path,
    settings: Teacher,
    *,
    name: str,
    work: Work,
    folder: Path | None = None,
) -> None:
    """Write the model of `settings` to `out` as that of the round `name`; nothing is trained.

    `coupling` has the shape, the units and the labels that it must fit, and the held-out pairs on
    which its loss is measured. `folder` holds a model of ours, where `settings` names one: this
    package does not know projects or MLflow. Its curve (csv) has no rows, its metrics (json) no
    loss of a training.

    Raises ReflowError for a model that is missing, damaged or does not fit the data.
    """
    opened = open_coupling(coupling)
    network: VelocityNetwork
    raw: VelocityNetwork
    snapshots: list[Path] = []
    if isinstance(settings, DiffusersFolder | OwnModel):
        found = find(settings, tuple(opened.about.shape), opened.conditions)
        network = raw = found.network
        about = {**STRAIGHT, **opened.about.carried(), **found.about}
        if isinstance(settings, OwnModel):  # it is not known what it was trained on
            about |= {"coupling": "unknown", **_files_of(settings)}
        for note in (*found.notes, *_of_codec(settings, opened, coupling)):
            work.warn(f"rounds.{name}.model: {note}")
    else:
        assert folder is not None
        kept = load(folder)
        network, raw = kept.network, load(folder, weights="raw").network
        about = {k: v for k, v in kept.config.items() if k not in LEFT}
        about["taken_from"] = kept.digest
        snapshots = sorted((folder / POWER).glob("*.safetensors"))
        same_codec(kept.config.get("codec"), opened.about.codec, str(coupling))
        same_units(kept.scale, opened.about.units, str(coupling))
        condition(kept, opened.about.conditions, opened.conditions, str(coupling))
    kept_words = settings.model_dump(mode="json", exclude=PLACES, exclude_none=True)
    about |= {"round": name, "teacher": kept_words}
    network.eval().requires_grad_(False)
    _check(opened, network, about, coupling)
    losses = _losses(opened, Model(network.to(work.device), about, ""), work)
    work.accept(losses)
    save(out, network.cpu(), raw=raw.cpu(), about=about, snapshots=snapshots)
    _write(curve, metrics, network, losses)


def _files_of(settings: OwnModel) -> dict[str, Any]:
    """Return the sha256 of each file and folder that the settings of one's own class name.

    A class may keep what it reads there out of its state: another file is another model.
    """
    named = files_named(settings.network.settings, "", Path.cwd())
    found = [str(folder_digest(path)["sha256"]) for _, path in named]
    return {"reads": found} if found else {}


def _of_codec(settings: DiffusersFolder | OwnModel, data: Coupling, where: Path) -> list[str]:
    """Return what to tell of a pipeline's own codec, where the data are latents.

    Raises ReflowError if the latents are of another one.
    """
    if isinstance(settings, OwnModel) or data.about.codec is None:
        return []
    if not (Path(settings.path) / PART).is_dir():
        return []
    codec = DiffusersCodec(name="diffusers", path=settings.path)
    same_codec({"sha256": codec.digest()}, data.about.codec, str(where))
    mean, std = codec.scale.mean[0], codec.scale.std[0]
    x = torch.stack([torch.zeros(data.about.shape), torch.ones(data.about.shape)])
    apart = data.about.units.inverse(x) - codec.scale.inverse(x)
    if float(apart.abs().max()) < std * SAME:
        return []
    return [
        f"its pipeline trains on latents of data.scale {{mean: {mean:g}, std: {std:g}}}, the data"
        " has another scale; set that one unless the network was trained on yours"
    ]


def _check(
    coupling: Coupling, network: VelocityNetwork, about: dict[str, Any], where: Path
) -> None:
    """Raise ReflowError for a network that does not fit the data, or whose output is not finite."""
    if list(network.shape) != coupling.about.shape:
        raise ReflowError(
            f"the model has samples of shape {list(network.shape)}, those of {where} have"
            f" {coupling.about.shape}; use data of the model's shape"
        )
    check_source(coupling.about.source, interpolant_of(about))
    if coupling.about.source is not None and about.get("source") != coupling.about.source:
        raise ReflowError(f"the model starts from other samples than the source of {where}")
    given, settings = labels(coupling), network.settings
    check_labels(given, settings.classes, str(where))
    if given is None:
        check_null(settings, "data without labels")


def _losses(coupling: Coupling, model: Model, work: Work) -> dict[str, float]:
    """Return the loss of the velocity on pairs of the data, as that of a trained round."""
    interpolant = interpolant_of(model.config)
    objective = model.config.get("objective", "velocity")
    network = work.compute.sampling(model.network)
    field = Field(network, interpolant, objective, model.network.settings.classes)
    sides = held_out_sides(coupling, EVALUATIONS)
    _try(field, sides[1], work.device)
    found = held_out_losses(field, sides, seed=work.seed, device=work.device, limit=EVALUATIONS)
    if not all(map(torch.isfinite, map(torch.tensor, found.values()))):
        raise ReflowError(
            "the model's velocity is not finite on this data; is the data in the units that the"
            " model was trained on, and is the scheduler's config its own?"
        )
    return found | beside_constant(found, sides[0], interpolant, objective)


@torch.no_grad()
def _try(field: Field, pairs: Pairs, device: torch.device) -> None:
    """Call the network on two samples. Raises ReflowError for whatever it raises.

    A class of others may need an input that is not given, or sides that it can halve.
    """
    if not len(pairs):
        return
    some = pairs.rows(torch.arange(min(2, len(pairs))))
    label = some.label.to(device) if field.classes and some.label is not None else None
    x, t = some.target.to(device), torch.full((len(some),), 0.5, device=device)
    try:
        field.velocity(label)(x, t)
    except ReflowError:
        raise
    except Exception as error:  # of code of others
        first = (str(error).strip() or "no reason given").splitlines()[0]
        labels = "no labels" if label is None else "labels"
        raise ReflowError(
            f"the model cannot be called on samples {list(x.shape[1:])} with {labels}"
            f" ({type(error).__name__}: {first[:200]}); give it data of the shape, and the"
            " conditions, that it was trained with"
        ) from error


def _write(curve: Path, metrics: Path, network: VelocityNetwork, losses: dict[str, float]) -> None:
    curve.parent.mkdir(parents=True, exist_ok=True)
    metrics.parent.mkdir(parents=True, exist_ok=True)
    with curve.open("w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerow(COLUMNS)
    size = sum(p.numel() for p in network.parameters())
    result = {**losses, "steps": 0, "parameters": size, "flops_training": 0}
    metrics.write_text(json.dumps(result, indent=2) + "\n")
