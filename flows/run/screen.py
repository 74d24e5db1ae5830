"""What a run shows: a bar for each running stage on a terminal, plain lines elsewhere."""

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from flows.run.repro import Outcome
from flows.stage.progress import parse

CHATTER = ("Running stage", "> ", "Updating lock file", "Generating lock file")
"""What DVC says of every stage; Prefect's log of the task keeps it."""


SHOWN = ("loss", "held_out_loss", "accuracy", "fd_clf", "fd_identity")


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

    def line(self, stage: str, text: str) -> None:
        """Show a line of a stage; a progress line moves the stage's bar."""
        if text.startswith(CHATTER):
            return
        found = parse(text)
        if found and self.out.is_terminal:
            step, values = found
            shown = "  ".join(f"{k} {v:.4g}" for k, v in values.items() if k in SHOWN)
            if stage not in self.tasks:
                total = float(text.split()[1].split("/")[1])
                self.tasks[stage] = self.bars.add_task(stage, total=total, values="")
            self.bars.update(self.tasks[stage], completed=step, values=shown)
        else:
            prefix = "" if found else f"{stage}: "
            self.out.print(f"  {prefix}{text}", markup=False, highlight=False, soft_wrap=True)

    def done(self, stage: str, outcome: Outcome) -> None:
        """Say that a stage is up to date, and take its bar away."""
        if stage in self.tasks:
            self.bars.remove_task(self.tasks.pop(stage))
        self.out.print(f"[green]{outcome.state:>6}[/] {stage} ({outcome.seconds:.1f} s)")
