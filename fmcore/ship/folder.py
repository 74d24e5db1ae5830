"""A round as a folder that diffusers loads: network, scheduler with the steps of the round, index.

An unconditional U-Net in [-1, 1] becomes diffusers' own DDPMPipeline, whose loop is that of any
scheduler; any other image network, and a grid whose steps have not one length, comes with
`pipeline.py`, as diffusers has no pipeline for it.
"""

import json
import shutil
import warnings
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from fmcore.codec.kinds import DiffusersCodec
from fmcore.network.images import ImageNetwork, UNet
from fmcore.network.outside import OutsideNetwork
from fmcore.network.store import Model
from fmcore.settings import ReflowError
from fmcore.solve.solver import Solver

PIPELINE = Path(__file__).with_name("pipeline.py")
"""The pipeline that a folder of another network comes with; it needs diffusers alone."""
THOUSAND = 1000
"""Times of diffusers for t in [0, 1]."""
TRUSTED = 'trust_remote_code=True, custom_pipeline="{folder}"'


def scheduler_config(solver: Solver) -> dict[str, Any]:
    """Return the settings of FlowMatchEulerDiscreteScheduler for the grid of a solver.

    By itself its last time is 1 / 1000, whatever the number of steps; `shift_terminal` stretches
    its times to end at 1 / steps, and so makes steps of one length. No settings make another grid,
    as its shift moves that last time, too: a pipeline gives it the times.
    """
    even = is_even(solver) and solver.steps > 1
    return {
        "num_train_timesteps": THOUSAND,
        "shift": 1.0,
        "shift_terminal": 1 / solver.steps if even else None,
    }


def is_even(solver: Solver) -> bool:
    """Whether the steps of a grid have one length."""
    even = torch.linspace(1, 0, solver.steps + 1, dtype=torch.float64)
    return torch.allclose(solver.grid(1.0, 0.0), even, rtol=0, atol=1e-9)


def refusal(model: Model) -> str | None:
    """Return why diffusers has no scheduler or network for a model; None if it has."""
    about = model.config
    if about.get("source") is not None:
        return "its source is real samples, and pipelines of diffusers begin with noise"
    if isinstance(model.network, OutsideNetwork):
        return "its network predicts and counts time in its own way, for which we have no pipeline"
    if not isinstance(model.network, ImageNetwork):
        return f"network {model.network.settings.name} is none of diffusers'"
    if model.network.settings.conditions:
        return "its conditions are texts or vectors, which its pipelines would take as classes"
    if about.get("codec") and about["codec"]["settings"]["name"] != "diffusers":
        return "its codec is of your own, which diffusers cannot load"
    if (objective := about.get("objective", "velocity")) != "velocity":
        return f"objective {objective}: its scheduler takes a velocity"
    if (scale := model.network.settings.time_scale) != THOUSAND:
        return f"time_scale {scale:g}: its scheduler counts time in thousandths"
    if (name := about.get("interpolant", {}).get("name", "linear")) != "linear":
        return f"interpolant {name}: its scheduler takes straight paths"
    return None


def write_folder(model: Model, out: Path, solver: Solver) -> bool:
    """Write the network, the scheduler and model_index.json to `out`; say if it is a plain one.

    It samples by Euler on the grid of `solver`. A plain one is loaded without code of its own.
    Raises ReflowError for a model that diffusers has no scheduler for.
    """
    if why := refusal(model):
        raise ReflowError(f"--to: {why}; ship it with --export or --onnx")
    with warnings.catch_warnings(action="ignore"):
        diffusers: Any = import_module("diffusers")  # it ships few types
        own: Any = import_module("fmcore.ship.pipeline")
        network = model.network
        assert isinstance(network, ImageNetwork)
        scheduler = diffusers.FlowMatchEulerDiscreteScheduler(**scheduler_config(solver))
        if is_plain(model) and is_even(solver):
            diffusers.DDPMPipeline(network.net, scheduler).save_pretrained(out)
            return True
        settings, codec = network.settings, model.units.codec
        made = own.RectifiedFlowPipeline(
            network.net,
            scheduler,
            shape=list(model.shape),
            times=solver.grid(1.0, 0.0)[:-1].tolist(),
            patch=settings.patch if isinstance(settings, UNet) else 1,
            classes=settings.classes,
            mean=list(model.scale.mean),
            std=list(model.scale.std),
            vae=codec.module if isinstance(codec, DiffusersCodec) else None,
        )
        made.save_pretrained(out)
    shutil.copyfile(PIPELINE, out / "pipeline.py")
    index = out / "model_index.json"
    said = json.loads(index.read_text())
    said["_class_name"] = ["pipeline", "RectifiedFlowPipeline"]
    index.write_text(json.dumps(said, indent=2, sort_keys=True) + "\n")
    return False


def is_plain(model: Model) -> bool:
    """Whether diffusers' DDPMPipeline samples it: a U-Net without labels, patches or a codec.

    It clamps to [-1, 1], so the samples have to be images.
    """
    settings, about = model.network.settings, model.config
    plain = isinstance(settings, UNet) and settings.patch == 1 and not settings.classes
    image = bool(about.get("image", model.shape[0] in (1, 3)))  # earlier versions did not say
    image = image and not about.get("codec")
    return plain and image and model.scale.identity


def lines_to_load(folder: str, steps: int, *, plain: bool) -> list[str]:
    """Return the lines of Python that load a folder with diffusers and draw 16 images."""
    given = "" if plain else f", {TRUSTED.format(folder=folder)}"
    call = f"batch_size=16, num_inference_steps={steps}" if plain else "batch_size=16"
    return [
        "from diffusers import DiffusionPipeline",
        f'pipe = DiffusionPipeline.from_pretrained("{folder}"{given})',
        f"images = pipe({call}).images",
    ]
