"""What a run shows: a bar for each running stage on a terminal, plain lines elsewhere."""

import re
from collections import deque

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from flows.project.events import Event
from flows.run.repro import Outcome
from flows.stage.progress import is_progress

CHATTER = ("Running stage", "> ", "Updating lock file", "Generating lock file")
"""What DVC prints for every stage; only Prefect's log of the task keeps it."""

AGAIN = re.compile(r"ERROR: failed to reproduce .*exited with (?P<status>-?\d+)")
"""What DVC prints of a command that failed, often after the command itself said why."""


SHOWN = ("loss", "held_out_loss", "accuracy", "fd_clf", "energy")


class Screen:
    """What a run shows: a bar per running stage on a terminal, plain lines elsewhere."""

    def __init__(self, out: Console) -> None:
        self.out = out
        columns = (
            TextColumn("{task.description:<14}"),
            BarColumn(bar_width=24),
            TimeRemainingColumn(compact=True),
            TextColumn("{task.fields[values]}"),
        )
        self.bars = Progress(*columns, console=out, transient=True, disable=not out.is_terminal)
        self.tasks: dict[str, TaskID] = {}
        self.known: dict[str, dict[str, float]] = {}
        self.said: dict[str, deque[str]] = {}

    def line(self, stage: str, text: str) -> None:
        """Show a line of a stage; where there are bars, they show the progress."""
        if text.startswith(CHATTER) or self._again(stage, text):
            return
        progress = is_progress(stage, text)
        if progress and self.out.is_terminal:
            return
        self.said.setdefault(stage, deque(maxlen=50)).append(text)
        prefix = "" if progress else f"{stage}: "
        self.out.print(f"  {prefix}{text}", markup=False, highlight=False, soft_wrap=True)

    def told(self, stage: str, error: str) -> bool:
        """Say whether a stage itself has said why it failed: `error` ends with a line of it."""
        reason = re.sub(r" \(exit -?\d+\)$", "", error)
        said = (re.sub(r"^(error|ERROR):", "", line).strip() for line in self.said.get(stage, ()))
        return any(line and reason == f"{stage}: {line}" for line in said)

    def _again(self, stage: str, text: str) -> bool:
        """Say whether DVC repeats that a stage failed which has said why; a killed one did not."""
        repeated, said = AGAIN.match(text), self.said.get(stage)
        if not repeated or not said:
            return False
        return said[-1].startswith("error:") or 0 < int(repeated["status"]) < 128

    def event(self, event: Event) -> None:
        """Move the bar of a stage; it shows the latest values that are known."""
        if not self.out.is_terminal:
            return
        if event.stage not in self.tasks:
            self.known[event.stage] = {}
            self.tasks[event.stage] = self.bars.add_task(event.stage, values="")
        known = self.known[event.stage]
        known |= {name: value for name, value in event.values.items() if name in SHOWN}
        shown = "  ".join(f"{name} {value:.4g}" for name, value in known.items())
        self.bars.update(
            self.tasks[event.stage], completed=event.step, total=event.total, values=shown
        )

    def done(self, stage: str, outcome: Outcome) -> None:
        """Print that a stage is up to date, and remove its bar."""
        if stage in self.tasks:
            self.bars.remove_task(self.tasks.pop(stage))
        self.out.print(f"[green]{outcome.state:>6}[/] {stage} ({outcome.seconds:.1f} s)")
