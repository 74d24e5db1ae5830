"""What every command of `reflow` shares: the consoles, one-line errors, finding the project."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from flows.params.checked import check
from flows.project.environment import configure, find_root
from fmcore.settings import ReflowError

out = Console()
err = Console(stderr=True, soft_wrap=True, highlight=False)
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Turn an error that the user can fix into one line and exit code 2, Ctrl-C into 130."""
    try:
        yield
    except ReflowError as error:
        for line in str(error).splitlines():
            err.print(f"error: {line}", markup=False)
        raise typer.Exit(2) from None
    except KeyboardInterrupt:
        err.print("stopped; `reflow run` goes on from here", markup=False)
        raise typer.Exit(130) from None


def say(line: str) -> None:
    """Print a line as it is."""
    out.print(line, markup=False, highlight=False, soft_wrap=True)


def project() -> Path:
    """Find the project, set the environment of its tools, and check params.yaml as a whole."""
    root = find_root(Path.cwd())
    configure(root)
    check(root)
    return root
