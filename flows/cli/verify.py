"""`reflow verify`: read every byte of the chain's outputs, name what is damaged, mend it."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flows.cli.console import AsJson, err, one_line_errors, say
from flows.project.environment import configure, find_root
from fmcore.settings import ReflowError

if TYPE_CHECKING:
    from flows.dag.outputs.verify import Report


def verify(
    folder: Annotated[
        Path | None,
        typer.Argument(help="A coupling in any folder; default: all outputs of the chain."),
    ] = None,
    cache: Annotated[
        bool, typer.Option("--cache/--no-cache", help="Also every object of DVC's cache.")
    ] = True,
    remote: Annotated[
        list[str] | None,
        typer.Option(help="Also this DVC remote: read if it is a folder, else asked what it has."),
    ] = None,
    heal: Annotated[
        bool, typer.Option("--heal", help="Restore what is damaged from a good copy, if any.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Read every byte and name what is damaged: the chain's outputs, or one coupling."""
    with one_line_errors():
        if heal and as_json:
            raise ReflowError("--json and --heal: one at a time; --json lists what is damaged")
        if folder is not None:
            if heal or remote:
                raise ReflowError("--heal and --remote are for the chain, without a folder")
            _coupling(folder, as_json)
            return
        root = find_root(Path.cwd())
        configure(root)
        whole = _chain(root, cache, remote or [], heal, as_json)
    raise typer.Exit(0 if whole else 1)


def _coupling(folder: Path, as_json: bool) -> None:
    from fmcore.coupling.verify import verify as check

    about = check(folder).about
    if as_json:
        found = {"folder": str(folder), "whole": True, "pairs": about.pairs, "kind": about.kind}
        print(json.dumps(found, indent=2))
        return
    say(f"{folder}: whole; {about.pairs} pairs, {about.kind}")


def _chain(root: Path, cache: bool, remotes: list[str], heal: bool, as_json: bool) -> bool:
    """Check the chain and say what was found; return whether all is whole, or mended."""
    from flows.dag.lineage import lock_entries

    if not lock_entries(root):
        raise ReflowError("dvc.lock records no stage: there is nothing to check; `reflow run`")
    report = _checked(root, cache, remotes)
    if as_json:
        print(json.dumps({"whole": not report.faults, **asdict(report)}, indent=2))
        return not report.faults
    for fault in report.faults:
        say(f"damaged  {fault}")
    for path in report.absent:
        say(f"absent   {path}: `reflow run` makes it, `dvc checkout {path}` if the cache has it")
    for note in report.notes:
        say(f"note     {note}")
    places = ", ".join(["workspace", *(["cache"] if cache else []), *remotes])
    read = f"{report.files:,} files, {report.bytes:,} bytes read in: {places}"
    if not report.faults:
        say(f"whole: {read}")
        return True
    say(f"{len(report.faults)} damaged; {read}")
    if not heal:
        more = "".join(f" --remote {name}" for name in remotes)
        say(f"`reflow verify --heal{more}` mends what it can and says what is left")
        return False
    return _heal(root, report, cache, remotes)


def _checked(root: Path, cache: bool, remotes: list[str]) -> "Report":
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    from flows.dag.outputs.verify import check

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=err, transient=True) as shown:
        task = shown.add_task("reading", total=None)
        return check(
            root,
            cache=cache,
            remotes=remotes,
            tell=lambda what, done, total: shown.update(
                task, description=what[-40:], completed=done, total=max(total, done)
            ),
        )


def _heal(root: Path, report: "Report", cache: bool, remotes: list[str]) -> bool:
    from flows.dag.outputs import mend

    mend.mend_cache(root, report, say)
    for remote in remotes:
        mend.mend_remote(root, remote, report, say)
    done = mend.mend(root, None, say)
    again = _checked(root, cache, remotes)
    if not again.faults:
        say("whole: all of it is mended")
        return True
    for fault in again.faults:
        say(f"damaged  {fault}")
    if done.remake:
        say(f"`reflow run` makes them again: {', '.join(sorted(set(done.remake)))}")
    return False
