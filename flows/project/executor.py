"""Which executor the stages use: an environment variable, since it does not affect results."""

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fmcore.work.executor import Executor

EXECUTOR = "REFLOW_EXECUTOR"
"""The executor of `couple` and `evaluate`: `processes:4`, `ray://head:10001`, ..."""


def chosen() -> "Executor":
    """Return the executor that the environment names; in-process if it names none."""
    from fmcore.work.executor import Executor  # imports torch: slow

    return Executor.parse(os.environ.get(EXECUTOR) or "in-process")


def choose(text: str | None) -> None:
    """Check the executor and pass it to the stages that this process starts."""
    if text is not None:
        os.environ[EXECUTOR] = text
    if os.environ.get(EXECUTOR):
        chosen()
