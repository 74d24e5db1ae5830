"""`reflow replicate`: write replicates of the rounds into params.yaml."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from flows.cli import complete
from flows.cli.console import one_line_errors, out
from flows.project.environment import check_own_code, configure, find_root


def replicate(
    count: Annotated[
        int, typer.Argument(help="How many of every round, itself included; 1 removes them.")
    ],
    round_: Annotated[
        list[str] | None,
        typer.Option(
            "--round",
            help="Only this round; may be repeated. Default: all of them.",
            autocompletion=complete.rounds,
        ),
    ] = None,
) -> None:
    """Write replicates into params.yaml: rounds that differ in the draws of training alone."""
    with one_line_errors():
        write_replicates(count, round_ or [])


def write_replicates(count: int, only: Sequence[str]) -> None:
    """Write them and say which; params.yaml needs not be right before, for they may be old."""
    from flows.params.load import FILE
    from flows.params.replicates import replicate as write

    root = find_root(Path.cwd())
    check_own_code(root)
    configure(root)
    names = write(root / FILE, count, only)
    said = f"replicates {', '.join(names)}" if names else "no replicates"
    out.print(f"{FILE} has {said}", markup=False, soft_wrap=True)
