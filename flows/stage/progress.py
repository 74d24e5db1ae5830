"""Progress of a long stage: events for programs; for people a bar, or lines without a terminal."""

import sys
import time
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from flows.project import events
from fmcore.verdict.shown import Shown

EVERY_SECONDS = 2.0


class Reporter:
    """The `log` of a verb: call it with (values, step).

    Each call is an event in the file that belongs to the scratch folder; without that folder no
    events are written. For people it prints a line every few seconds, with the latest values.
    """

    def __init__(
        self, stage: str, total: int, scratch: Path | None = None, *, shown: bool = True
    ) -> None:
        self.stage, self.total, self.scratch, self.shown = stage, total, scratch, shown
        self.known: dict[str, tuple[float, int]] = {}
        self.started: tuple[float, int] | None = None
        self.said, self.step = 0.0, 0
        self.events: events.Writer | None = None
        self.bar: Progress | None = None
        self.open = ExitStack()

    def __enter__(self) -> Self:
        if not self.shown:
            return self
        if self.scratch:
            writer = events.Writer(events.beside(self.scratch), self.stage, self.total)
            self.events = self.open.enter_context(writer)
        if sys.stdout.isatty():
            bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[values]}"),
                TimeRemainingColumn(),
                console=Console(file=sys.stdout),
            )
            self.task = bar.add_task(self.stage, total=self.total, values="")
            self.bar = self.open.enter_context(bar)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self.open.close()

    def __call__(self, values: dict[str, float], step: int) -> None:
        """Record the values measured at `step`; without values, only how far the stage is."""
        if not self.shown:
            return
        if self.events:
            self.events.write(step, values)
        now = time.monotonic()
        self.known |= {name: (value, step) for name, value in values.items()}
        if self.started is None:
            self.started = (now, step)
        self.step = step
        if self.bar:
            self.bar.update(self.task, completed=step, values=self._known(step))
        elif now - self.said >= EVERY_SECONDS or step >= self.total:
            print(self._line(now, step), flush=True)
            self.said = now

    def judged(self, gates: Iterable[events.GateEvent]) -> None:
        """Record what gates say of the metrics of the stage."""
        if self.events:
            self.events.judged(gates)

    def show(self, shown: Shown) -> None:
        """Keep the samples that a training shows for those who watch it, the last ones only."""
        if self.events:
            self.events.show(shown.content())

    def _line(self, now: float, step: int) -> str:
        assert self.started is not None
        began, first = self.started
        rate = (step - first) / max(now - began, 1e-9)
        eta = f" eta={(self.total - step) / rate:.0f}s" if rate > 0 else ""
        return f"{self.stage} {step}/{self.total} {self._known(step)}".rstrip() + eta

    def _known(self, step: int) -> str:
        """Return the latest values; one from an earlier step is shown with that step."""
        return " ".join(
            f"{name}={value:.4g}" + ("" if at == step else f"@{at}")
            for name, (value, at) in self.known.items()
        )


def is_progress(stage: str, line: str) -> bool:
    """Say whether a line that a stage printed comes from its Reporter.

    >>> is_progress("train@rf1", "train@rf1 50/100 loss=0.5 eta=3s")
    True
    """
    return line.startswith(f"{stage} ")
