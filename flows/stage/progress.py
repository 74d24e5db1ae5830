"""Progress of a long stage: a live bar on a terminal, plain lines elsewhere."""

import re
import sys
import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

LINE = re.compile(r"^(?P<stage>\S+) (?P<step>\d+)/(?P<total>\d+)(?P<values>( \S+=\S+)*)$")
EVERY_SECONDS = 2.0


def parse(line: str) -> tuple[int, dict[str, float]] | None:
    """Return (step, values) of a plain progress line, None for any other line.

    >>> parse("train@rf1 50/100 loss=0.5 eta=3s")
    (50, {'loss': 0.5})
    """
    match = LINE.match(line.strip())
    if not match:
        return None
    values = {}
    for item in match["values"].split():
        name, _, value = item.partition("=")
        try:
            values[name] = float(value)
        except ValueError:
            continue
    return int(match["step"]), values


class Reporter:
    """The `log` of a verb: call it with (values, step)."""

    def __init__(self, stage: str, total: int, *, shown: bool = True) -> None:
        self.stage, self.total, self.shown = stage, total, shown
        self.values: dict[str, float] = {}
        self.started: tuple[float, int] | None = None
        self.said = 0.0
        self.bar: Progress | None = None
        if shown and sys.stdout.isatty():
            self.bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[values]}"),
                TimeRemainingColumn(),
                console=Console(file=sys.stdout),
            )
            self.task = self.bar.add_task(stage, total=total, values="")

    def __enter__(self) -> Self:
        if self.bar:
            self.bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        if self.bar:
            self.bar.stop()

    def __call__(self, values: dict[str, float], step: int) -> None:
        """Show the latest values at `step`."""
        if not self.shown:
            return
        now = time.monotonic()
        self.values.update(values)
        if self.started is None:
            self.started = (now, step)
        shown = " ".join(f"{name}={value:.4g}" for name, value in self.values.items())
        if self.bar:
            self.bar.update(self.task, completed=step, values=shown)
        elif now - self.said >= EVERY_SECONDS or step >= self.total:
            began, first = self.started
            rate = (step - first) / max(now - began, 1e-9)
            eta = f" eta={(self.total - step) / rate:.0f}s" if rate > 0 else ""
            text = f"{self.stage} {step}/{self.total} {shown}".rstrip()
            print(text + eta, flush=True)
            self.said = now
