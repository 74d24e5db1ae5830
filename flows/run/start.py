"""`reflow run`: run the chain, record it live, and print the results."""

import os
import shlex
from collections.abc import Callable
from pathlib import Path

from rich.console import Console

from flows.compare.tables import comparison, rounds_table
from flows.dag.graph import paths
from flows.dag.receipts import note_timings
from flows.project import links, servers
from flows.project.events import Event
from flows.project.git import git
from flows.run import closing as records
from flows.run.chain import update_chain
from flows.run.repro import Outcome
from flows.run.schedule import Listeners, RunResult
from flows.run.screen import Screen
from flows.tracking.live import Live
from fmcore.settings import ReflowError


def start(
    root: Path,
    targets: list[str] | None,
    *,
    prefect: bool,
    mlflow: bool,
    pull: bool = False,
    out: Console,
) -> bool:
    """Run the chain, record it, print the rounds and where results are; return whether it is ok."""
    seconds: dict[str, float] = {}
    screen = Screen(out)

    def event(event: Event) -> None:
        if live:
            live.event(event)
        screen.event(event)

    def done(stage: str, outcome: Outcome) -> None:
        if outcome.state == "done":
            seconds[stage] = outcome.seconds
        screen.done(stage, outcome)

    def say(text: str) -> None:
        out.print(text, markup=False, highlight=False, soft_wrap=True)

    live = Live(root, say) if mlflow else None

    def settle() -> None:
        note_timings(root, seconds)
        if live:
            live.close()

    def closing(result: RunResult) -> None:
        settle()
        records.close(root, result, say=say, mlflow=mlflow, prefect=prefect)

    listeners = Listeners(done, screen.line, event, closing, say)
    try:
        with screen.bars:
            result = update_chain(
                root, targets=targets, prefect=prefect, pull=pull, listeners=listeners
            )
    finally:
        settle()
    _failures(result, screen)
    if result.ok:
        _rounds(root, out)
        _end(say, [*_recorded(root, result.flow_run, mlflow), *_keeping(root, uncommitted(root))])
    return result.ok


def _failures(result: RunResult, screen: Screen) -> None:
    """Say which stages failed or did not begin; an error is told here only if it was not yet."""
    out = screen.out
    for name, stage in result.stages.items():
        if stage.state == "failed" and screen.told(name, stage.error):
            out.print(f"[red]failed[/] {name}, as said above", highlight=False)
        elif stage.state == "failed":
            out.print(f"[red]failed[/] {name}", highlight=False)
            out.print(f"       {stage.error}", markup=False, soft_wrap=True)
        elif stage.state == "blocked":
            out.print(f"[yellow]blocked[/] {name}: it depends on a stage that failed")


def _end(say: Callable[[str], None], lines: list[str]) -> None:
    for line in lines:
        say(line)


def _rounds(root: Path, out: Console) -> None:
    """Print the rounds and where the pictures are."""
    try:
        out.print(rounds_table(comparison(root)))
        folder = paths(root, "compare")["out"]
        out.print(f"pictures     {folder.relative_to(root)}/ and pictures/", highlight=False)
    except ReflowError as error:  # some stages alone were asked for, and there is no comparison yet
        out.print(f"rounds       {error}", markup=False, highlight=False, soft_wrap=True)


def _recorded(root: Path, flow_run: str, mlflow: bool) -> list[str]:
    """Return where the records and the run are, and how to see them in a browser.

    `reflow ui` is named only where it would start something: not while it runs.
    """
    lines, place = [], os.environ["MLFLOW_TRACKING_URI"]
    served = servers.living(root)
    prefect = os.environ.get("PREFECT_API_URL") or (served.prefect if served else "")
    unseen = []
    if mlflow:
        if place.startswith("http"):
            pages = links.known(place, links.login())
            place = pages.get("rounds", pages["runs"])
        else:
            unseen.append("the records")
        lines.append(f"MLflow       {links.shown(place)}")
    if flow_run:
        if not prefect:
            unseen.append("the run")
        kept = links.shown(prefect) if prefect else os.environ["PREFECT_HOME"]
        lines.append(f"Prefect run  {flow_run} in {kept}")
    if unseen and not served:
        lines.append(f"in a browser `reflow ui` shows {' and '.join(unseen)}")
    return lines


def _keeping(root: Path, files: list[str]) -> list[str]:
    """Return the line that says how to commit files, as seen from here; none without any."""
    there = " ".join(shlex.quote(os.path.relpath(root / file)) for file in files)
    return [f"keep it      git add {there} && git commit -m 'A chain'"] if files else []


def uncommitted(root: Path) -> list[str]:
    """Return what git keeps of a chain and has not in its last commit: dvc.lock, receipts, edits.

    A commit without them names no version of any coupling.
    """
    try:
        receipts = str(paths(root, "compare")["metrics"].relative_to(root))
        kept = ("params.yaml", "dvc.yaml", "dvc.lock", receipts)
        return [name for name in kept if git(root, "status", "--porcelain", "--", name)]
    except ReflowError:  # no git repository: a chain runs without one
        return []
