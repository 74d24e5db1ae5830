"""`reflow compare`: one chain or many, as a table, JSON, csv and a page."""

import json
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from flows.compare.chains import gather
from flows.compare.groups import Group, frame, grouped, notes
from flows.compare.groups import as_json as groups_as_json
from flows.compare.tables import (
    against,
    comparison,
    group_tables,
    replicates_table,
    rounds_table,
    samplers_of,
)
from fmcore.settings import ReflowError
from fmcore.verdict.errors import with_error


def show(
    root: Path,
    revs: list[str],
    *,
    published: bool,
    as_json: bool,
    csv: Path | None,
    html: Path | None,
    baseline: str | None = None,
    out: Console,
) -> None:
    """Print the comparison asked for, and write it to the files asked for."""
    alone = not revs and not published
    groups: list[Group] = []
    if baseline is not None and not alone:
        raise ReflowError("--baseline tests replicates of this chain; leave out --rev and --all")
    if csv or html or not alone:
        chains = gather(root, revs, published=published, skipped=_note)
        groups = grouped(replace(one, found=against(one.found, baseline)) for one in chains)
    if csv:
        _write(csv, ".csv", frame(groups).to_csv(index=False, lineterminator="\n"))
    if html:
        from flows.compare.page import page

        _write(html, ".html", page(groups))
    if as_json:
        found = comparison(root, baseline).as_dict() if alone else groups_as_json(groups)
        print(json.dumps(found, indent=2))
        return
    if alone:
        timed = comparison(root, baseline)
        out.print(rounds_table(timed))
        if others := samplers_of(timed):
            out.print(others)
        for use, choice in timed.found.ship.items():
            scored = with_error(choice.distance, choice.se)
            out.print(f"{use:<9} {choice.round} at NFE {choice.nfe} ({scored})", highlight=False)
        if timed.found.replicates:
            out.print(replicates_table(timed.found))
    for table in group_tables(groups) if not alone else []:
        out.print(table)
    for note in notes(groups):
        out.print(note, markup=False, highlight=False, soft_wrap=True)
    for file in (csv, html):
        if file:
            out.print(f"written: {file}", markup=False, highlight=False)


def _note(line: str) -> None:
    told = Console(stderr=True, soft_wrap=True, highlight=False)
    told.print(f"note: {line}", markup=False)


def _write(file: Path, ending: str, text: str) -> None:
    if file.suffix != ending:
        raise ReflowError(f"{file}: expected a name that ends in {ending}")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    except OSError as error:
        raise ReflowError(f"{file}: cannot be written ({error.strerror})") from error
