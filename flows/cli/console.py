"""What every command shares: consoles, errors in one line, the project, a plan as a table."""

import errno
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from flows.params.checked import check
from flows.project.environment import check_own_code, configure, find_root
from fmcore.settings import ReflowError

if TYPE_CHECKING:
    from flows.dag.plan import Planned

out = Console()
err = Console(stderr=True, soft_wrap=True, highlight=False)
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]


STOPPED = "stopped; `reflow run` goes on from here"


@contextmanager
def one_line_errors(stopped: str = STOPPED) -> Iterator[None]:
    """Turn an error that the user can fix into one line and exit code 2, Ctrl-C into 130.

    So is one of a file that cannot be written or read: a folder of somebody else, a full disk.
    """
    try:
        yield
    except ReflowError as error:
        for line in str(error).splitlines():
            err.print(f"error: {line}", markup=False)
        raise typer.Exit(2) from None
    except OSError as error:
        if error.filename is None and error.errno != errno.ENOSPC:  # no file: a pipe, a socket
            raise
        place = "" if error.filename is None else f"{error.filename}: "
        mend = "mend its permissions, free some space, or work in a copy of your own"
        err.print(f"error: {place}{error.strerror}; {mend}", markup=False)
        raise typer.Exit(2) from None
    except KeyboardInterrupt:
        err.print(stopped, markup=False)
        raise typer.Exit(130) from None


def say(line: str) -> None:
    """Print a line as it is."""
    out.print(line, markup=False, highlight=False, soft_wrap=True)


def project() -> Path:
    """Find the project, set the environment of its tools, and check params.yaml as a whole.

    A project with code of its own must be run by that code.
    """
    root = find_root(Path.cwd())
    check_own_code(root)
    configure(root)
    check(root)
    return root


def plan_table(planned: "Sequence[Planned]") -> Table:
    """Lay out a plan: stage, what happens, why."""
    table = Table(box=None, pad_edge=False)
    for column in ("stage", "state", "why"):
        table.add_column(column)
    colours = {"run": "yellow", "downstream": "yellow", "unchanged": "green"}
    for item in planned:
        colour = colours.get(item.state, "")
        state = f"[{colour}]{item.state}[/]" if colour else item.state
        table.add_row(escape(item.stage), state, escape("\n".join(item.reasons)))
    return table
