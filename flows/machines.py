"""What the machines at hand change: who computes, and how much where there is no GPU.

Who computes is chosen in the environment: no parameter, because it does not change a byte.
"""

import os

from flows.params import Params, reduced
from fmcore.executor import Executor

EXECUTOR = "REFLOW_EXECUTOR"
"""The executor of `couple` and `evaluate`: `processes:4`, `ray://head:10001`, ..."""


def chosen() -> Executor:
    """Return the executor that the environment names; this process where it names none."""
    return Executor.parse(os.environ.get(EXECUTOR) or "in-process")


def choose(text: str | None) -> None:
    """Check the executor and hand it to the stages that this process starts."""
    if text is not None:
        os.environ[EXECUTOR] = text
    chosen()


def sized(params: Params) -> Params:
    """Return the parameters, at `compute.cpu_share` of their size where there is no GPU."""
    share = params.compute.cpu_share
    if share == 1 or params.compute.start().type != "cpu":
        return params
    return reduced(params, share)
