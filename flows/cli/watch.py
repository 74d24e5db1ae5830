"""`reflow watch`."""

from pathlib import Path
from typing import Annotated

import typer

from flows.cli.console import AsJson, one_line_errors, out
from flows.project.environment import check_own_code, find_root


def watch(
    once: Annotated[bool, typer.Option("--once", help="Show it once, and end.")] = False,
    page: Annotated[
        Path | None,
        typer.Option(help="Also write this page: the report of what there is so far (.html)."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show a run that goes on elsewhere, or the last one: losses, time left, gates, samples."""
    from flows.watch.show import show

    with one_line_errors("no longer watched; the run goes on"):
        root = find_root(Path.cwd())
        check_own_code(root)
        show(root, once=once, as_json=as_json, page=page, out=out)
