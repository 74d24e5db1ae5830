"""Models of diffusers from their folders. diffusers is imported when the first one is made."""

import json
import logging
import warnings
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from fmcore.settings import ReflowError


def diffusers() -> Any:
    """Import diffusers, only where needed: it takes ten times as long as the rest of fmcore."""
    with warnings.catch_warnings(action="ignore"):
        import diffusers
    logging.getLogger("diffusers").setLevel(logging.ERROR)
    diffusers.utils.logging.disable_progress_bar()
    return diffusers


def config_in(file: Path) -> dict[str, Any]:
    """Return the object in a config of diffusers; raise ReflowError if there is none."""
    try:
        found = json.loads(file.read_bytes())
    except OSError as error:
        raise ReflowError(
            f"{file}: cannot be read ({error.strerror}); expected a folder that diffusers'"
            " save_pretrained wrote"
        ) from None
    except ValueError as error:
        raise ReflowError(f"{file}: not JSON ({error}); save the model again") from None
    if not isinstance(found, dict):
        raise ReflowError(f"{file}: not a JSON object; save the model again")
    return found


def pretrained(kind: str, folder: Path) -> Any:
    """Return diffusers' own model of a folder in float32, from safetensors and complete."""
    if not sorted(folder.glob("*.safetensors")):
        raise ReflowError(
            f"{folder}: no safetensors there; load the model where you trust it and save it with"
            " save_pretrained(folder, safe_serialization=True)"
        )
    told = logging.getLogger("diffusers")
    told.setLevel(logging.ERROR)
    try:
        made, info = getattr(diffusers(), kind).from_pretrained(
            str(folder), use_safetensors=True, low_cpu_mem_usage=False, local_files_only=True,
            output_loading_info=True, torch_dtype=torch.float32,
        )  # fmt: skip
    except (OSError, ValueError, TypeError, RuntimeError, KeyError, SafetensorError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ReflowError(f"{folder}: diffusers cannot load it ({reason[:200]})") from None
    lacking = [*info["missing_keys"], *info["mismatched_keys"], *info["unexpected_keys"]]
    if lacking:
        raise ReflowError(
            f"{folder}: its weights are not those of its config, for one {lacking[0]}; save the"
            " model again"
        )
    return made
