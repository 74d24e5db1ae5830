"""`reflow compare`: one chain or many, as a table, JSON, csv and a page."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Literal

from rich.console import Console

from flows.compare.chains import gather
from flows.compare.gates import told
from flows.compare.groups import Group, frame, grouped, notes
from flows.compare.groups import as_json as groups_as_json
from flows.compare.tables import (
    TimedComparison,
    against,
    comparison,
    group_tables,
    headline_table,
    replicates_table,
    rounds_table,
    samplers_of,
)
from fmcore.settings import ReflowError
from fmcore.verdict.errors import with_error

Form = Literal["short", "full", "json"]
"""What is printed: the few numbers of each round, every NFE and gate, or JSON for programs."""


def show(
    root: Path,
    revs: list[str],
    *,
    published: bool,
    form: Form,
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
    if form == "json":
        found = comparison(root, baseline).as_dict() if alone else groups_as_json(groups)
        print(json.dumps(found, indent=2))
        return
    if alone:
        _show_alone(comparison(root, baseline), form == "full", out)
    for table in group_tables(groups, full=form == "full") if not alone else []:
        out.print(table)
    for note in notes(groups):
        out.print(note, markup=False, highlight=False, soft_wrap=True)
    for file in (csv, html):
        if file:
            out.print(f"written: {file}", markup=False, highlight=False)


def _show_alone(timed: TimedComparison, full: bool, out: Console) -> None:
    """Print the comparison of one chain: its table, what to ship, what to do next, the gates."""
    found = timed.found
    out.print(rounds_table(timed) if full else headline_table(timed))
    if others := samplers_of(timed):
        out.print(others)
    for use, choice in found.ship.items():
        scored = with_error(choice.distance, choice.se)
        out.print(f"{use:<9} {choice.round} at NFE {choice.nfe} ({scored})", highlight=False)
    if found.replicates:
        out.print(replicates_table(found))
    gates = [one.text for one in told(found.gates) if full or one.state != "undecided"]
    if full:
        gates += [j.text for j in found.gates if j.verdict.state == "not measured"]
    for line in [*found.next, *gates]:
        out.print(line, markup=False, highlight=False, soft_wrap=True)
    if not full:
        said = "every NFE and gate: --full; all numbers: --json, --csv FILE, --html FILE"
        out.print(said, style="dim", highlight=False)


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
