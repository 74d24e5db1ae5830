"""The full state of a training run, saved so that a killed run resumes bit for bit.

Draws are functions of (seed, step), so the generators need no state beyond the step.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR
from torch.optim.swa_utils import AveragedModel

from fmcore.network.build import VelocityNetwork
from fmcore.network.store import write_tensors

History = list[dict[str, float]]


@dataclass
class State:
    """What a training run keeps from step to step."""

    network: VelocityNetwork
    ema: AveragedModel
    optimizer: AdamW
    schedule: LambdaLR
    step: int = 0
    history: History = field(default_factory=list)


FILE = "checkpoint.safetensors"


def save_state(folder: Path, state: State) -> None:
    """Write the state to `folder` atomically: temporary name, then rename."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors: dict[str, Tensor] = {}
    for key, value in state.network.state_dict().items():
        tensors[f"network.{key}"] = value
    for key, value in state.ema.state_dict().items():
        tensors[f"ema.{key}"] = value
    for index, slot in state.optimizer.state_dict()["state"].items():
        for key, value in slot.items():
            tensors[f"optimizer.{index}.{key}"] = value
    tensors = {k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()}
    note = {"step": str(state.step), "history": json.dumps(state.history)}
    temporary = folder / f".{FILE}.tmp"
    write_tensors(temporary, tensors, about=note)
    temporary.replace(folder / FILE)


def load_state(folder: Path, state: State) -> bool:
    """Fill `state` from the checkpoint in `folder`; False if there is none.

    A checkpoint that cannot be read (a truncated file, say) counts as none: training starts over
    rather than from a damaged state.
    """
    path = folder / FILE
    if not path.exists():
        return False
    try:
        tensors = load_file(path)
        with safe_open(path, framework="pt") as file:
            note = file.metadata()
    except SafetensorError:
        path.unlink()
        return False
    state.network.load_state_dict(_part(tensors, "network."))
    state.ema.load_state_dict(_part(tensors, "ema."))
    slots: dict[int, dict[str, Tensor]] = {}
    for key, value in _part(tensors, "optimizer.").items():
        index, name = key.split(".", 1)
        slots.setdefault(int(index), {})[name] = value
    groups = state.optimizer.state_dict()["param_groups"]
    state.optimizer.load_state_dict({"state": slots, "param_groups": groups})
    state.step = int(note["step"])
    state.history = json.loads(note["history"])
    state.schedule.last_epoch = state.step
    for group, factor in zip(state.optimizer.param_groups, state.schedule.lr_lambdas, strict=True):
        group["lr"] = group["initial_lr"] * factor(state.step)
    return True


def _part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


def finite(state: State) -> bool:
    """Whether every weight is finite."""
    return all(bool(torch.isfinite(p).all()) for p in state.network.parameters())
