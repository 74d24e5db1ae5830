"""The full state of a training run, saved so that a killed run resumes bit for bit.

Draws are functions of (seed, step), so the generators need no state beyond the step.
"""

import contextlib
import hashlib
import json
import math
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor
from torch.optim import AdamW
from torch.optim.swa_utils import AveragedModel

from fmcore.network.build import VelocityNetwork
from fmcore.network.ema import frozen, here, trained
from fmcore.network.snapshots import write_tensors
from fmcore.settings import ReflowError

History = list[dict[str, float]]


@dataclass
class State:
    """What a training run keeps from step to step.

    `rate` is the learning rate of a step. `settings` are those it runs with. `powers` has the power
    averages by their relative length. `continued` has an entry for each training with other
    settings that it continued: the step, the checkpoint's sha256, the settings that were others.
    """

    network: VelocityNetwork
    ema: AveragedModel
    optimizer: AdamW
    rate: Callable[[int], float]
    step: int = 0
    history: History = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=dict)
    continued: list[dict[str, Any]] = field(default_factory=list)
    powers: dict[str, AveragedModel] = field(default_factory=dict)

    def to_step(self, step: int) -> None:
        """Set the step, and the learning rate to that of the step."""
        self.step = step
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate(step)


FILE = "checkpoint.safetensors"
EARLIER = "earlier.safetensors"
"""The checkpoint before `FILE`, for the case that `FILE` is damaged."""
START = "start"
"""The key, beside the settings of a training, of the model whose adapter alone is trained."""
CONTINUED = "continued"
"""The subfolder for the checkpoint of a training with other settings, which goes on here."""


def save_state(folder: Path, state: State) -> None:
    """Write the state to `folder` atomically: temporary name, then rename.

    The checkpoint before it is kept, as `EARLIER`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tensors: dict[str, Tensor] = {}
    for name, module in (("network.", state.network), *averages_of(state)):
        left = frozen(module)
        own = {k: v for k, v in module.state_dict().items() if k not in left}
        tensors |= {f"{name}{key}": value for key, value in own.items()}
    for index, slot in state.optimizer.state_dict()["state"].items():
        for key, value in slot.items():
            tensors[f"optimizer.{index}.{key}"] = value
    tensors = {k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()}
    note = note_of(state)
    temporary = folder / f".{FILE}.tmp"
    write_tensors(temporary, tensors, about={**note, "sha256": _digest(tensors, note)})
    with contextlib.suppress(OSError):  # a file system may know no links: then none is kept
        if (folder / FILE).exists():
            (folder / EARLIER).unlink(missing_ok=True)
            os.link(folder / FILE, folder / EARLIER)
    temporary.replace(folder / FILE)


def note_of(state: State) -> dict[str, str]:
    """Return what a checkpoint holds besides tensors, as `restore` takes it."""
    return {
        "step": str(state.step),
        "history": json.dumps(state.history),
        "settings": json.dumps(state.settings),
        "continued": json.dumps(state.continued),
    }


def restore(state: State, note: Mapping[str, str]) -> None:
    """Set what a state has besides tensors to what `note_of` gave."""
    state.to_step(int(note["step"]))
    state.history = json.loads(note["history"])
    state.settings = json.loads(note.get("settings", "{}"))
    state.continued = json.loads(note.get("continued", "[]"))


def load_state(folder: Path, state: State, say: Callable[[str], object] = print) -> bool:
    """Fill `state` from the checkpoint in `folder`; False if there is none.

    A damaged checkpoint is removed and told to `say` in one line: training continues from the one
    before it, or starts over, rather than from a damaged state.
    """
    for name, then in ((FILE, "the checkpoint before it is tried"), (EARLIER, "it starts over")):
        try:
            found = read_checkpoint(folder / name)
        except (SafetensorError, OSError, ValueError) as error:
            (folder / name).unlink(missing_ok=True)
            reason = str(error).splitlines()[0]
            say(f"warning: {folder / name}: damaged and removed ({reason}); {then}")
            continue
        if found is not None:
            _fill(state, *found)
            return True
    return False


def fill_from_file(folder: Path, state: State) -> str | None:
    """Fill `state` from the checkpoint in `folder`; return its sha256, None if there is none."""
    found = read_checkpoint(folder / FILE)
    if found is None:
        return None
    _fill(state, *found)
    return _digest(*found)


def continue_state(
    folder: Path, state: State, fill: Callable[[Path, State], str | None] = fill_from_file
) -> bool:
    """Fill `state` from the checkpoint of a training with other settings; False if there is none.

    The weights, the moving average, the optimiser's moments and the step are taken over; the
    learning rate is that of the settings at this step. Raises ReflowError if it does not fit.
    """
    own = state.settings
    try:
        digest = fill(folder, state)
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        raise ReflowError(
            f"continue: the checkpoint of the earlier training does not fit this round"
            f" ({str(error).splitlines()[0]}); remove `continue` to start from its init"
        ) from None
    if digest is None:
        return False
    if own.get(START) != state.settings.get(START):
        raise ReflowError(
            "continue: the adapter of the earlier training is that of another model than the"
            " round's init; remove `continue` to train anew"
        )
    if state.step >= own["steps"]:
        raise ReflowError(
            f"continue: the earlier training is at step {state.step}, and train.steps is"
            f" {own['steps']}; raise train.steps, or remove `continue` to start from its init"
        )
    before = {k: v for k, v in state.settings.items() if own.get(k) != v}
    told = {"step": state.step, "checkpoint": digest, "before": before}
    state.settings, state.continued = own, [*state.continued, told]
    return True


def read_checkpoint(path: Path) -> tuple[dict[str, Tensor], dict[str, str]] | None:
    """Return tensors and note of a checkpoint, None if there is none; ValueError for damage."""
    if not path.exists():
        return None
    tensors = load_file(path)
    with safe_open(path, framework="pt") as file:
        note = dict(file.metadata() or {})
    if note.pop("sha256", None) != _digest(tensors, note):
        raise ValueError("its content is not that of its sha256")
    return tensors, note


def _digest(tensors: Mapping[str, Tensor], note: Mapping[str, str]) -> str:
    """Return the sha256 of the tensors, with their names, types and shapes, and of the note."""
    found = hashlib.sha256(json.dumps(sorted(note.items())).encode())
    for name, value in sorted(tensors.items()):
        found.update(f"{name} {value.dtype} {list(value.shape)}".encode())
        found.update(value.reshape(-1).contiguous().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def _fill(state: State, tensors: dict[str, Tensor], note: dict[str, str]) -> None:
    network = state.network
    network.load_state_dict({**frozen(network), **_part(tensors, "network.")})
    for name, average in averages_of(state):
        kept = _part(tensors, name)
        if not kept:
            raise ValueError("it kept no such power averages: train.power_ema was another")
        average.load_state_dict({**frozen(average), **kept})
    slots: dict[int, dict[str, Tensor]] = {}
    for key, value in _part(tensors, "optimizer.").items():
        index, name = key.split(".", 1)
        slots.setdefault(int(index), {})[name] = value
    groups = state.optimizer.state_dict()["param_groups"]
    state.optimizer.load_state_dict({"state": slots, "param_groups": groups})
    restore(state, note)


def averages_of(state: State) -> Iterator[tuple[str, AveragedModel]]:
    """Yield each average with the beginning of its tensors' names."""
    yield "ema.", state.ema
    for sigma, average in state.powers.items():
        yield f"power_{sigma}/", average


def _part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


def finite(state: State) -> bool:
    """Whether every trained weight is finite, of those that this process has."""
    own = [p for p in here(p.detach() for p in trained(state.network)) if p.numel()]
    return bool(torch.stack(torch._foreach_norm(own, math.inf)).isfinite().all())
