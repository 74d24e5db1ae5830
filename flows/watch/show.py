"""`reflow watch`: a run in a terminal, as JSON, as a page; once, or until it ends."""

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.live import Live

from flows.watch.state import Eye, Seen
from flows.watch.terminal import view
from fmcore.settings import ReflowError

if TYPE_CHECKING:
    from flows.watch.grown import Grown

LOOK_SECONDS = 1.0
PAGE_SECONDS = 5.0


def show(root: Path, *, once: bool, as_json: bool, page: Path | None, out: Console) -> None:
    """Show the run that goes on until it ends, or the last one; write the page meanwhile.

    Without a terminal it is shown once, after its end if a page is written.
    """
    eye = Eye(root)
    seen = eye.look()
    grown = _grown(root, page) if page else None
    follow = not once and not as_json and (out.is_terminal or page is not None)
    if page and grown:
        _write(page, grown.html(seen))
    if follow and seen.state == "running":
        with Live(view(seen, out), console=out, transient=True, auto_refresh=False) as live:
            seen = _followed(eye, live, page, grown)
    if as_json:
        print(json.dumps(seen.as_dict(), indent=2))
        return
    out.print(view(seen, out))
    if page:
        out.print(f"written: {page}", markup=False, highlight=False, soft_wrap=True)


def _followed(eye: Eye, live: Live, page: Path | None, grown: "Grown | None") -> Seen:
    """Show the run until it ends; return how it ended."""
    written = time.monotonic()
    while (seen := eye.look()).state == "running":
        if live.console.is_terminal:
            live.update(view(seen, live.console), refresh=True)
        if page and grown and time.monotonic() - written > PAGE_SECONDS:
            _write(page, grown.html(seen))
            written = time.monotonic()
        time.sleep(LOOK_SECONDS)
    if page and grown:
        _write(page, grown.html(seen))
    return seen


def _grown(root: Path, page: Path) -> "Grown":
    if page.suffix != ".html":
        raise ReflowError(f"{page}: expected a name that ends in .html")
    from flows.watch.grown import Grown  # imports DVC, which the terminal does not need

    return Grown(root)


def _write(page: Path, text: str) -> None:
    """Put the whole page in place at once: a browser may load it in this moment."""
    new = page.with_name(f".{page.name}.new")
    try:
        page.parent.mkdir(parents=True, exist_ok=True)
        new.write_text(text)
        new.replace(page)
    except OSError as error:
        raise ReflowError(f"{page}: cannot be written ({error.strerror})") from error
