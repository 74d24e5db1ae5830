"""The commands that make and change a project: `reflow init`, `reflow new`, `reflow upgrade`."""

import shlex
from pathlib import Path
from typing import Annotated

import typer

from flows.cli.console import one_line_errors, say


def init(
    folder: Annotated[Path, typer.Argument(help="The folder to make, such as my-flows.")],
    data: Annotated[
        str, typer.Option("--from", help="Its data set: digits, eight_gaussians, images, ...")
    ] = "digits",
) -> None:
    """Make a project: parameters, stages, a git repository with a first commit."""
    from flows.start.init import init as make

    with one_line_errors():
        made = make(folder, data)
        for note in made.notes:
            say(note)
        commit = f", commit {made.commit}" if made.commit else ""
        say(f"{folder}: a project with the data set {data}{commit}")
        say(f"next: cd {shlex.quote(str(folder))} && reflow run")
