"""`reflow docs`: where the pages of the manual lie, in a checkout and in an installed package."""

import json
from pathlib import Path

from flows.cli.console import AsJson, one_line_errors, out
from fmcore.settings import ReflowError

FOLDER = Path(__file__).resolve().parents[2] / "docs"


def docs(as_json: AsJson = False) -> None:
    """List the pages of the manual and the folder that has them; needs no project."""
    with one_line_errors():
        found = pages(FOLDER)
    if as_json:
        print(json.dumps({"folder": str(FOLDER), "pages": found}, indent=2))
        return
    out.print(str(FOLDER), markup=False, highlight=False, soft_wrap=True)
    for name, title in found.items():
        out.print(f"  {name:<26} {title}", markup=False, highlight=False, soft_wrap=True)


def pages(folder: Path) -> dict[str, str]:
    """Return the title of each page by its path in the folder. Raises ReflowError without any.

    Why the project is built as it is (`decisions`) is for those who change it.
    """
    files = [file for file in folder.rglob("*.md") if file.parent.name != "decisions"]
    files.sort(key=lambda file: (len(file.parts), file))
    if not files:
        raise ReflowError(f"{folder}: expected the pages of the manual; install the package again")
    return {file.relative_to(folder).as_posix(): _title(file) for file in files}


def _title(file: Path) -> str:
    first = next((line for line in file.open() if line.startswith("# ")), "")
    return first.removeprefix("# ").strip()
