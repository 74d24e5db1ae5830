"""`reflow --version`: the package's version and, in a checkout, the commit of the code."""

from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated

import typer

from flows.project.git import git
from fmcore.settings import ReflowError

PACKAGE = "reflow-chain"


def described() -> str:
    """Return the name, the version, and the commit if the code that runs is in a checkout."""
    try:
        said = f"{PACKAGE} {version(PACKAGE)}"
    except PackageNotFoundError:
        said = f"{PACKAGE}, not installed"
    folder = Path(__file__).resolve().parents[2]
    if not (folder / ".git").exists():
        return said
    try:
        commit = git(folder, "rev-parse", "--short", "HEAD")
        changed = bool(git(folder, "status", "--porcelain", "--", "flows", "fmcore"))
    except (ReflowError, OSError):  # no commit yet, or no git
        return said
    return f"{said}, commit {commit}{' with changes' if changed else ''}"


def _print(wanted: bool) -> None:
    if wanted:
        print(described())
        raise typer.Exit


def common(
    _version: Annotated[
        bool,
        typer.Option("--version", callback=_print, is_eager=True, help="Say the version and exit."),
    ] = False,
) -> None:
    """Options of `reflow` itself; the help of the application is not this text."""
