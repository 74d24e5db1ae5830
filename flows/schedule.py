"""What a run of the chain shares, with or without Prefect: its stages, observers and report."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from flows import dag
from flows.cores import Cores, wanted
from flows.execute import Outcome, Processes, StageFailed, execute
from fmcore.settings import ReflowError

Observer = Callable[[str, Outcome], None]
"""Told of each stage that is up to date, in that stage's thread."""

OnLine = Callable[[str, str], None]
"""Told of each line that a stage prints: `on_line("train@rf1", "loss 0.3")`."""

Closing = Callable[["Report"], None]
"""Called once when no stage is left to run, in the flow run if there is one: keeps the records."""

Say = Callable[[str], object]
"""Told of what a person should know of the run besides its stages, a line at a time."""

RETRIES = 2
RETRY_DELAYS = (2.0, 10.0)
"""Seconds before each retry of a stage that was killed, out of memory, or locked out."""


@dataclass(frozen=True)
class StageReport:
    """What became of a stage; a `blocked` one depends on one that failed."""

    state: Literal["cached", "done", "failed", "blocked"]
    seconds: float = 0.0
    error: str = ""
    reasons: tuple[str, ...] = ()


@dataclass(frozen=True)
class Report:
    """What became of the chain, stage by stage in topological order."""

    stages: dict[str, StageReport]
    flow_run: str = ""

    @property
    def ok(self) -> bool:
        """Whether every stage is up to date."""
        return all(stage.state in ("cached", "done") for stage in self.stages.values())

    @property
    def errors(self) -> list[str]:
        """One line per failed stage."""
        return [s.error for s in self.stages.values() if s.state == "failed"]


@dataclass
class Session:
    """One run of the chain: what every stage of it shares."""

    root: Path
    stages: dict[str, dag.Stage]
    observer: Observer | None = None
    on_line: OnLine | None = None
    closing: Closing | None = None
    processes: Processes = field(default_factory=Processes)
    cores: Cores = field(default_factory=Cores)
    reports: dict[str, StageReport] = field(default_factory=dict)
    flow_run: str = ""
    say: Say = lambda _: None

    def perform(self, name: str, emit: Callable[[str], None]) -> Outcome:
        """Bring one stage up to date once; report and tell the observers."""

        def tell(line: str) -> None:
            emit(line)
            if self.on_line:
                self.on_line(name, line)

        start = time.monotonic()
        room = self.cores.take(wanted(self.stages[name]))
        try:
            outcome = execute(self.root, name, tell, self.processes, room)
        except Exception as error:
            seconds = time.monotonic() - start
            text = str(error) if isinstance(error, StageFailed) else f"{name}: {error}"
            self.reports[name] = StageReport("failed", seconds, text)
            raise
        self.reports[name] = StageReport(outcome.state, outcome.seconds, reasons=outcome.reasons)
        if self.observer:
            try:
                self.observer(name, outcome)
            except Exception as error:  # a record of the stage must not fail the stage
                tell(f"warning: {name} is done, but telling of it failed: {error}")
        return outcome

    def close(self) -> None:
        """Keep the records of the run, once; what they raise is theirs to catch."""
        closing, self.closing = self.closing, None
        if closing:
            closing(self.report())

    def report(self) -> Report:
        """Return what became of every stage; those that never started are blocked."""
        blocked = StageReport("blocked")
        stages = {name: self.reports.get(name, blocked) for name in self.stages}
        return Report(stages, self.flow_run)


def select(stages: dict[str, dag.Stage], targets: list[str] | None) -> dict[str, dag.Stage]:
    """Return `targets` and all that they depend on; `train` stands for every train@..."""
    if not targets:
        return stages
    chosen: set[str] = set()
    for target in targets:
        found = [name for name in stages if name == target or name.startswith(f"{target}@")]
        if not found:
            raise ReflowError(f"no stage {target!r} in dvc.yaml; its stages: {', '.join(stages)}")
        chosen.update(found)
    for name in reversed(stages):
        if name in chosen:
            chosen.update(stages[name].upstream)
    return {name: stage for name, stage in stages.items() if name in chosen}


def may_pass(error: object) -> bool:
    """Say whether a stage that failed with this error is worth another try."""
    return isinstance(error, StageFailed) and error.retryable
