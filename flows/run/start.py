"""`reflow run`: the chain, its live records, and what is said at the end."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from flows.compare.tables import comparison, paths, rounds_table
from flows.dag.receipts import note_timings
from flows.run import closing as records
from flows.run.chain import update_chain
from flows.run.repro import Outcome
from flows.run.schedule import RunResult
from flows.run.screen import Screen
from fmcore.settings import ReflowError

if TYPE_CHECKING:
    from flows.tracking.live import Live


def start(
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

    def closing(report: RunResult) -> None:
        settle()
        records.close(root, report, say=say, mlflow=mlflow, prefect=prefect)

    try:
        with screen.bars:
            report = update_chain(
                root, targets=targets, prefect=prefect, observer=done, on_line=line,
                closing=closing, say=say,
            )  # fmt: skip
    finally:
        settle()
    _failures(report, out)
    if report.ok:
        _where(root, report.flow_run, out)
    return report.ok


def _failures(report: RunResult, out: Console) -> None:
    for name, stage in report.stages.items():
        if stage.state == "failed":
            out.print(f"[red]failed[/] {name}", highlight=False)
            out.print(f"       {stage.error}", markup=False, soft_wrap=True)
        elif stage.state == "blocked":
            out.print(f"[yellow]blocked[/] {name}: it depends on a stage that failed")


def _live(root: Path, out: Console) -> "Live":
    from flows.tracking.live import Live

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
