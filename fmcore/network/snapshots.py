"""Weights as files: of one network, and of the power averages that a training keeps."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load as tensors_in
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from fmcore.checked import read_checked
from fmcore.network.power import factors
from fmcore.settings import ReflowError

POWER = "power"
"""The folder of a model's folder that has snapshots of its power averages."""


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


def weights_in(module: nn.Module) -> dict[str, Tensor]:
    """Return the tensors of a network, on the CPU."""
    return {k: v.detach().cpu().contiguous().clone() for k, v in module.state_dict().items()}


def snapshot_file(step: int) -> str:
    """Return the name of the file with the power averages after a step.

    >>> snapshot_file(250)
    'step_000000250.safetensors'
    """
    return f"step_{step:09d}.safetensors"


def save_snapshot(folder: Path, step: int, powers: Mapping[str, AveragedModel]) -> None:
    """Write the power averages after a step to `folder`, by their relative lengths, atomically."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {f"{s}/{k}": v for s, p in powers.items() for k, v in weights_in(p.module).items()}
    temporary = folder / f".{snapshot_file(step)}.tmp"
    write_tensors(temporary, tensors)
    temporary.replace(folder / snapshot_file(step))


def power_average(
    path: Path, config: dict[str, Any], sigma_rel: float
) -> tuple[dict[str, Tensor], bytes]:
    """Return the power average of a model by its relative length, and bytes that identify it."""
    kept = config.get("power_ema")
    if not kept:
        raise ReflowError(
            f"{path}: weights {sigma_rel:g} is a power average, and this model kept none; set"
            " train.power_ema of its round, or take ema or raw"
        )
    total: dict[str, Tensor] = {}
    found = hashlib.sha256(f"{sigma_rel:g}".encode())
    rows = factors(kept["steps"], kept["sigma_rel"], sigma_rel)
    for step, row in zip(kept["steps"], rows, strict=True):
        content = read_checked(path, f"{POWER}/{snapshot_file(step)}", config)
        found.update(content)
        tensors = tensors_in(content)
        for sigma, factor in zip(kept["sigma_rel"], row.tolist(), strict=True):
            for key, value in tensors.items():
                if (name := key.removeprefix(f"{sigma:g}/")) == key:
                    continue
                whole = not value.is_floating_point()  # a buffer that counts: that of the end
                part = value if whole else factor * value.double()
                total[name] = part if whole or name not in total else total[name] + part
    weights = {k: v.float() if v.is_floating_point() else v for k, v in total.items()}
    return weights, found.digest()
