"""`reflow run`: the chain, its live records, and what is said at the end."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from flows import records, reflow
from flows.execute import Outcome
from flows.progress import parse
from flows.report import comparison, paths, rounds_table
from flows.schedule import Report
from flows.tracking.records import note_timings
from fmcore.settings import ReflowError

if TYPE_CHECKING:
    from flows.tracking import Live

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


def run_chain(
    root: Path, targets: list[str] | None, *, prefect: bool, mlflow: bool, out: Console
) -> bool:
    """Run the chain, record it, print the rounds and where things are; True if all is well."""
    live = _live(root, out) if mlflow else None
    seconds: dict[str, float] = {}
    screen = Screen(out)

    def line(stage: str, text: str) -> None:
        if live:
            live.line(stage, text)
        screen.line(stage, text)

    def done(stage: str, outcome: Outcome) -> None:
        if outcome.state == "done":
            seconds[stage] = outcome.seconds
        screen.done(stage, outcome)

    def say(text: str) -> None:
        out.print(text, markup=False, highlight=False, soft_wrap=True)

    def settle() -> None:
        note_timings(root, seconds)
        if live:
            live.close()

    def closing(report: Report) -> None:
        settle()
        records.close(root, report, say=say, mlflow=mlflow, prefect=prefect)

    try:
        with screen.bars:
            report = reflow.run(
                root, targets=targets, prefect=prefect, observer=done, on_line=line,
                closing=closing, say=say,
            )  # fmt: skip
    finally:
        settle()
    _failures(report, out)
    if report.ok:
        _where(root, report.flow_run, out)
    return report.ok


def _failures(report: Report, out: Console) -> None:
    for name, stage in report.stages.items():
        if stage.state == "failed":
            out.print(f"[red]failed[/] {name}", highlight=False)
            out.print(f"       {stage.error}", markup=False, soft_wrap=True)
        elif stage.state == "blocked":
            out.print(f"[yellow]blocked[/] {name}: it depends on a stage that failed")


def _live(root: Path, out: Console) -> "Live":
    from flows.tracking import Live

    return Live(root, lambda text: out.print(text, markup=False, soft_wrap=True))


def _where(root: Path, flow_run: str, out: Console) -> None:
    """Print the rounds and where the pictures, the records and the runs are."""
    try:
        out.print(rounds_table(comparison(root)))
        folder = paths(root, "compare")["out"]
        out.print(f"pictures     {folder.relative_to(root)}/ and pictures/", highlight=False)
    except ReflowError:
        pass
    out.print(f"MLflow       {os.environ['MLFLOW_TRACKING_URI']}", markup=False, highlight=False)
    if flow_run:
        out.print(f"Prefect run  {flow_run} in {os.environ['PREFECT_HOME']}", highlight=False)
    out.print("see both in a browser: make ui", highlight=False)
