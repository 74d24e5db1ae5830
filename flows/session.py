"""`reflow run`: the chain, its live records, and what is said at the end."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from flows import reflow
from flows.execute import Outcome
from flows.progress import parse
from flows.report import comparison, note_timings, paths, rounds_table
from fmcore.settings import ReflowError

if TYPE_CHECKING:
    from flows.tracking import Live

CHATTER = ("Running stage", "> ", "Updating lock file", "Generating lock file")
"""What DVC says of every stage; Prefect's log of the task keeps it."""


def run_chain(
    root: Path, targets: list[str] | None, *, prefect: bool, mlflow: bool, out: Console
) -> bool:
    """Run the chain, record it, print the rounds and where things are; True if all is well."""
    live = _live(root, out) if mlflow else None
    seconds: dict[str, float] = {}

    def line(stage: str, text: str) -> None:
        if live:
            live.line(stage, text)
        if text.startswith(CHATTER):
            return
        prefix = "" if parse(text) else f"{stage}: "
        out.print(f"  {prefix}{text}", markup=False, highlight=False, soft_wrap=True)

    def done(stage: str, outcome: Outcome) -> None:
        if outcome.state == "done":
            seconds[stage] = outcome.seconds
        out.print(f"[green]{outcome.state:>6}[/] {stage} ({outcome.seconds:.1f} s)")

    try:
        report = reflow.run(root, targets=targets, prefect=prefect, observer=done, on_line=line)
    finally:
        note_timings(root, seconds)
        if live:
            live.close()
    for name, stage in report.stages.items():
        if stage.state == "failed":
            out.print(f"[red]failed[/] {name}", highlight=False)
            out.print(f"       {stage.error}", markup=False, soft_wrap=True)
        elif stage.state == "blocked":
            out.print(f"[yellow]blocked[/] {name}: it depends on a stage that failed")
    if mlflow:
        _publish(root, out)
    if report.ok:
        _where(root, report.flow_run, out)
    return report.ok


def _live(root: Path, out: Console) -> "Live":
    from flows.tracking import Live

    return Live(root, lambda text: out.print(text, markup=False, soft_wrap=True))


def _publish(root: Path, out: Console) -> None:
    """Publish; a tracking server that is down does not make a finished chain a failure."""
    from flows.tracking import publish

    try:
        done = publish(root)
        for skipped in done.skipped:
            out.print(f"MLflow: {skipped}", markup=False, soft_wrap=True)
    except ReflowError as error:
        out.print(f"MLflow: {error}", markup=False, soft_wrap=True)
    except Exception as error:  # whatever MLflow raises: the chain itself is done
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        out.print(
            f"MLflow: not published ({reason[:200]}); the work is done and safe,"
            " `reflow publish` records it later",
            markup=False,
            soft_wrap=True,
        )


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
