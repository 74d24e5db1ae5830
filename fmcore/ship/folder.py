"""A round as a folder that diffusers loads: network, scheduler with the steps of the round, index.

A folder is kept only if diffusers, from the noise of the round, draws the samples of the round.
"""

import warnings
from pathlib import Path

from fmcore.network.images import ImageNetwork
from fmcore.network.outside import OutsideNetwork
from fmcore.network.store import Model
from fmcore.settings import ReflowError
from fmcore.ship import texts
from fmcore.ship.form import Form
from fmcore.ship.images import image_form
from fmcore.ship.schedule import THOUSAND
from fmcore.solve.solver import Solver


def refusal(model: Model) -> str | None:
    """Return why diffusers has no scheduler or network for a model; None if it has."""
    about, network = model.config, model.network
    if about.get("source") is not None:
        return "its source is real samples, and pipelines of diffusers begin with noise"
    if about.get("codec") and about["codec"]["settings"]["name"] != "diffusers":
        return "its codec is of your own, which diffusers cannot load"
    if (objective := about.get("objective", "velocity")) != "velocity":
        return f"objective {objective}: its scheduler takes a velocity"
    if (name := about.get("interpolant", {}).get("name", "linear")) != "linear":
        return f"interpolant {name}: its scheduler takes straight paths"
    if isinstance(network, OutsideNetwork):
        return texts.refusal(model)
    if not isinstance(network, ImageNetwork):
        return f"network {network.settings.name} is none of diffusers'"
    if network.settings.conditions:
        return "its conditions are texts or vectors, which its pipelines would take as classes"
    if (scale := network.settings.time_scale) != THOUSAND:
        return f"time_scale {scale:g}: its scheduler counts time in thousandths"
    return None


def write_folder(model: Model, out: Path, solver: Solver) -> Form:
    """Write the network, the scheduler and model_index.json to `out`; return how it is called.

    It samples by Euler on the grid of `solver`. Raises ReflowError for a model or a grid that
    diffusers has no scheduler for, and if the folder gives other samples than the round.
    """
    if why := refusal(model):
        raise ReflowError(f"--to: {why}; ship it with --export or --onnx")
    with warnings.catch_warnings(action="ignore"):
        of_texts = texts.takes_texts(model)
        form = (texts.form if of_texts else image_form)(model, solver)
        form.write(out)
        return form.checked(out)
