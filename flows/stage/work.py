"""Build the `Work` of a stage from params.yaml, the guard and the environment."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from flows.params.load import Params
from flows.project.events import GateEvent
from flows.project.executor import chosen
from flows.stage.progress import Reporter
from fmcore.settings import Log, ReflowError
from fmcore.verdict.gates import Gates, Verdict, judge
from fmcore.work.work import Work, silent


def work_of(params: Params, scratch: Path, log: Log = silent, *, seed: int | None = None) -> Work:
    """Return the work of a stage, on the device of this machine, by the chain's seed or its own."""
    return Work(
        seed=params.seed if seed is None else seed,
        device=params.compute.start(),
        compute=params.compute,
        scratch=scratch,
        log=log,
        accept=partial(gated, params, log=log),
        warn=warn,
        executor=chosen(),
    )


def warn(text: str) -> None:
    """Print a warning."""
    print(f"warning: {text}", flush=True)


def gated(params: Params, values: Mapping[str, Any], log: Log = silent) -> None:
    """Check a stage's metrics against the gates; a failing gate fails the stage.

    Warnings are printed, and so is what too few rows do not decide. All are events of the stage.
    """
    verdicts = judge(params.gates, values)
    if isinstance(log, Reporter):
        log.judged(_judged(params.gates, verdict) for verdict in verdicts)
    for verdict in verdicts:
        if verdict.state == "warn":
            print(f"warning: {verdict.says}", flush=True)
        if verdict.state == "undecided":
            print(f"gate: {verdict.says}", flush=True)
    if failed := [v.says for v in verdicts if v.state == "fail"]:
        raise ReflowError("; ".join(failed))


def _judged(gates: Gates, verdict: Verdict) -> GateEvent:
    level = getattr(getattr(gates, verdict.gate), verdict.state, None)
    return GateEvent(verdict.gate, verdict.state, verdict.value, level, verdict.says)
