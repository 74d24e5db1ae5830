"""What a verb is given beside its paths and settings: the circumstances of its work."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fmcore.settings import Accept, Log
from fmcore.work.compute import Compute
from fmcore.work.executor import IN_PROCESS, Executor


def silent(values: dict[str, float], step: int) -> None:
    """Log to nowhere."""


def anything(metrics: Mapping[str, Any]) -> None:
    """Accept all metrics."""


@dataclass(frozen=True, kw_only=True)
class Work:
    """The circumstances of a verb's work.

    Seed, device and compute decide the bytes of its outputs. `scratch` is a folder in which a
    killed verb finds what it had done. `log` is told the progress, `accept` is asked before outputs
    are put in place, and the executor says who samples.
    """

    scratch: Path
    seed: int = 0
    device: torch.device = torch.device("cpu")
    compute: Compute = Compute()
    log: Log = silent
    accept: Accept = anything
    executor: Executor = IN_PROCESS
