"""What a run of the chain shares, with or without Prefect: stages, listeners and results."""

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from flows.dag import graph
from flows.project.events import Event, GateEvent, OnEvent
from flows.project.journal import Journal, State
from flows.project.process_group import exists
from flows.run.cores import Cores, wanted
from flows.run.repro import Outcome, Processes, StageFailed, update_stage
from flows.stage import guard
from fmcore.settings import ReflowError

Observer = Callable[[str, Outcome], None]
"""Called with each stage that is up to date, in that stage's thread."""

OnLine = Callable[[str, str], None]
"""Called with each line that a stage prints: `on_line("train@rf1", "loss 0.3")`."""

Closing = Callable[["RunResult"], None]
"""Called once after the last stage, in the flow run if there is one; records the run."""

Say = Callable[[str], object]
"""Prints one line for the user, about something other than a stage."""


@dataclass(frozen=True)
class Listeners:
    """The functions that a run calls with its news; each is optional."""

    observer: Observer | None = None
    on_line: OnLine | None = None
    on_event: OnEvent | None = None
    closing: Closing | None = None
    say: Say = lambda _: None


RETRIES = 2
RETRY_DELAYS = (2.0, 10.0)
"""Seconds before each retry of a stage that was killed, out of memory, or found a lock held."""


@dataclass(frozen=True)
class StageResult:
    """The result of a stage; a `blocked` one depends on one that failed."""

    state: Literal["cached", "done", "failed", "blocked"]
    seconds: float = 0.0
    error: str = ""
    reasons: tuple[str, ...] = ()


@dataclass(frozen=True)
class RunResult:
    """The result of the chain, stage by stage in topological order."""

    stages: dict[str, StageResult]
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
class ChainRun:
    """One run of the chain: the state that all of its stages share."""

    root: Path
    stages: dict[str, graph.Stage]
    listeners: Listeners = Listeners()
    pull: bool = False
    processes: Processes = field(default_factory=Processes)
    cores: Cores = field(default_factory=Cores)
    results: dict[str, StageResult] = field(default_factory=dict)
    flow_run: str = ""
    unchanged: frozenset[str] = frozenset()
    closed: bool = False
    journal: Journal | None = None
    judged: dict[str, list[GateEvent]] = field(default_factory=dict)
    """Gates that warned or failed, by stage, of the stages that ran."""

    @property
    def nothing_to_do(self) -> bool:
        """Whether every stage was found up to date before the run began."""
        return self.unchanged >= self.stages.keys()

    def update(self, name: str, emit: Callable[[str], None]) -> Outcome:
        """Bring one stage up to date once; keep its result and tell the listeners."""
        told = self.listeners

        def tell(line: str) -> None:
            emit(line)
            if told.on_line:
                told.on_line(name, line)

        start = time.monotonic()
        try:
            if name in self.unchanged and not self._ran_above(name):
                outcome = Outcome(name, "cached", 0.0)
            else:
                outcome = self._update_when_free(name, tell)
        except Exception as error:
            seconds = time.monotonic() - start
            text = str(error) if isinstance(error, StageFailed) else f"{name}: {error}"
            self.results[name] = StageResult("failed", seconds, text)
            self._note(name, "failed", seconds=seconds, error=text)
            raise
        self.results[name] = StageResult(outcome.state, outcome.seconds, reasons=outcome.reasons)
        self._note(name, outcome.state, seconds=outcome.seconds)
        if told.observer:
            try:
                told.observer(name, outcome)
            except Exception as error:  # a record of the stage must not fail the stage
                tell(f"warning: {name} is done, but reporting it failed: {error}")
        return outcome

    def _note(self, name: str, state: State, **more: float | str) -> None:
        if self.journal:
            self.journal.stage(name, state, **more)

    def _update_when_free(self, name: str, tell: Callable[[str], None]) -> Outcome:
        """Bring one stage up to date; wait while another DVC works on its files, and say so once.

        DVC is asked again when that process has ended, and now and then before: it may go on to
        another stage.
        """
        said, delay = "", 2.0
        while True:
            try:
                return update_stage(
                    self.root, name, tell, self.processes, self._room(name),
                    on_event=self._hear, pull=self.pull,
                )  # fmt: skip
            except StageFailed as error:
                if not error.holders:
                    raise
                if error.reason != said:
                    said = error.reason
                    self.listeners.say(f"{name} waits: {said}")
                deadline = time.monotonic() + delay
                while any(map(exists, error.holders)) and time.monotonic() < deadline:
                    if self.processes.stopped:
                        raise
                    time.sleep(0.2)
            delay = min(2 * delay, 60.0)

    @contextlib.contextmanager
    def _room(self, name: str) -> Iterator[None]:
        """Hold the cores of a stage; it runs from when it has them."""
        with self.cores.take(wanted(self.stages[name])):
            self._note(name, "running", began=time.time())
            yield

    def _hear(self, event: Event) -> None:
        if unhappy := [gate for gate in event.gates if gate.state in ("warn", "fail")]:
            self.judged.setdefault(event.stage, []).extend(unhappy)
        if self.listeners.on_event:
            self.listeners.on_event(event)

    def _ran_above(self, name: str) -> bool:
        """Whether a stage ran on which this one depends: then DVC is asked again."""
        above = self.stages[name].upstream
        return any(up in self.results and self.results[up].state == "done" for up in above)

    def close(self) -> None:
        """Sort dvc.lock, remove the scratch of what it records, then call `closing` once.

        `closing` catches its own errors.
        """
        if any(result.state == "done" for result in self.results.values()):
            try:
                graph.sort_lock(self.root)
            except ReflowError as error:  # another DVC holds its lock: the records still come first
                self.listeners.say(f"dvc.lock was not sorted: {error}")
            with contextlib.suppress(ReflowError):  # the next stage that runs does it
                guard.sweep(self.root)
        if self.listeners.closing and not self.closed:
            self.closed = True
            self.listeners.closing(self.result())

    def result(self) -> RunResult:
        """Return the result of every stage; those that never started are blocked."""
        blocked = StageResult("blocked")
        stages = {name: self.results.get(name, blocked) for name in self.stages}
        return RunResult(stages, self.flow_run)


def select(stages: dict[str, graph.Stage], targets: list[str] | None) -> dict[str, graph.Stage]:
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
