"""What a scheduler's config of diffusers says of its network, and what of it is the sampler's."""

from typing import Any

from fmcore.network.predictions import AnyPrediction
from fmcore.own import read
from fmcore.settings import ReflowError
from fmcore.work.of_diffusers import diffusers

STEPS = (
    "DDIMScheduler", "DDIMParallelScheduler", "DDPMScheduler", "DDPMParallelScheduler",
    "DEISMultistepScheduler", "DPMSolverMultistepScheduler", "DPMSolverSinglestepScheduler",
    "EulerAncestralDiscreteScheduler", "EulerDiscreteScheduler", "HeunDiscreteScheduler",
    "KDPM2AncestralDiscreteScheduler", "KDPM2DiscreteScheduler", "LMSDiscreteScheduler",
    "PNDMScheduler", "UniPCMultistepScheduler",
)  # fmt: skip
"""Schedulers whose networks have numbered steps and a table of betas."""
FLOWS = ("FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler")
EDMS = ("EDMEulerScheduler", "EDMDPMSolverMultistepScheduler")
IGNORED = {
    ("clip_sample", True): "diffusers clips the predicted target in each step, a velocity is not",
    ("thresholding", True): "diffusers clips the predicted target in each step, a velocity is not",
    (
        "set_alpha_to_one",
        False,
    ): "diffusers stops where some noise is left, a flow goes on to t = 0",
    (
        "timestep_spacing",
        "leading",
    ): "its grid leaves out the last steps, a flow starts at the last",
    ("stochastic_sampling", True): "diffusers adds noise in each step, an ODE does not",
    ("use_dynamic_shifting", True): "its shift follows the size of an image; set solver.shift",
}
"""Settings of a sampler, which change no velocity, and how its samples differ from a flow's."""


def prediction_of(config: dict[str, Any], where: str) -> tuple[AnyPrediction, list[str]]:
    """Return what the network of a scheduler predicts, and lines on what is not taken over.

    Raises ReflowError for a scheduler that no rule is known for; `where` is its file.
    """
    name = config.get("_class_name")
    if name not in (*STEPS, *FLOWS, *EDMS):
        known = ", ".join((*STEPS, *FLOWS, *EDMS))
        raise ReflowError(
            f"{where}: scheduler {name}, expected one of {known}; or set `prediction`"
        )
    whole = dict(getattr(diffusers(), name).from_config(config).config)
    if whole.get("invert_sigmas") or whole.get("timestep_type", "discrete") != "discrete":
        raise ReflowError(
            f"{where}: invert_sigmas or timestep_type is set, which no rule is known for; set"
            " `prediction`"
        )
    said = [f"scheduler: {k}: {why}" for (k, v), why in IGNORED.items() if whole.get(k) == v]
    if (shift := whole.get("shift") or whole.get("flow_shift") or 1.0) != 1.0:
        said.append(
            f"scheduler: shift {shift:g} is a grid: set solver.shift {shift:g} where wanted"
        )
    return read(AnyPrediction, _given(name, whole), where), said


def _given(name: str, whole: dict[str, Any]) -> dict[str, Any]:
    kind = whole.get("prediction_type")
    steps = whole.get("num_train_timesteps", 1000)
    if name in FLOWS or kind == "flow_prediction":
        return {"name": "flow_prediction", "steps": steps}
    if name in EDMS:
        given = {key: whole[key] for key in ("sigma_min", "sigma_max", "sigma_data")}
        return {"name": "edm", **given, "output": kind}
    betas = whole.get("trained_betas")
    return {
        "name": kind,
        "steps": steps if betas is None else len(betas),
        **{key: whole[key] for key in ("beta_schedule", "beta_start", "beta_end")},
        **({"betas": tuple(map(float, betas))} if betas is not None else {}),
        "zero_terminal_snr": bool(whole.get("rescale_betas_zero_snr", False)),
    }
