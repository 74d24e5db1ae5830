"""Who computes, chosen in the environment: no parameter, because it does not change a byte."""

import os

from fmcore.executor import Executor

EXECUTOR = "REFLOW_EXECUTOR"
"""The executor of `couple` and `evaluate`: `processes:4`, `ray://head:10001`, ..."""


def chosen() -> Executor:
    """Return the executor that the environment names; this process where it names none."""
    return Executor.parse(os.environ.get(EXECUTOR) or "in-process")
