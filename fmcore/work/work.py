"""The context in which a verb runs: its arguments besides paths and settings."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fmcore.settings import Accept, Log, Say
from fmcore.settings import silent as unsaid
from fmcore.work.compute import Compute
from fmcore.work.executor import IN_PROCESS, Executor


def silent(values: dict[str, float], step: int) -> None:
    """Log to nowhere."""


def anything(metrics: Mapping[str, Any]) -> None:
    """Accept all metrics."""


def unseen(training: object) -> None:
    """Look at nothing."""


@dataclass(frozen=True, kw_only=True)
class Work:
    """The context in which a verb runs.

    Seed, device and compute decide the bytes of its outputs. `scratch` is a folder that keeps
    finished work if the verb is killed. `log` gets the progress, `accept` gets the metrics before
    outputs are put in place, `warn` gets sentences for people, and the executor decides where
    samples are computed. `look` is called with a training now and then; it may change nothing.
    """

    scratch: Path
    seed: int = 0
    device: torch.device = torch.device("cpu")
    compute: Compute = Compute()
    log: Log = silent
    accept: Accept = anything
    warn: Say = unsaid
    executor: Executor = IN_PROCESS
    look: Callable[[Any], object] = unseen
