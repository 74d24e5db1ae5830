"""`reflow settings`: describe a key of params.yaml, with the text of docs/settings.md."""

import json
from textwrap import fill
from typing import Annotated

import typer
from rich.markup import escape

from flows.cli.console import AsJson, one_line_errors, out, say


def settings(
    key: Annotated[
        str,
        typer.Argument(metavar="KEY", help="lr, train.lr, rounds.rf2.train, u_shaped, gates, ..."),
    ] = "",
    as_json: AsJson = False,
) -> None:
    """Describe a setting: value, bounds, default, when to change it; needs no project."""
    from dataclasses import asdict

    from flows.params.reference import find, value_of

    with one_line_errors():
        found = find(key)
    if as_json:
        print(json.dumps([asdict(setting) for setting in found], indent=2))
        return
    for one in found:
        kind = f" [dim](name: {one.kind})[/]" if one.kind and one.kind != one.holds else ""
        out.print(f"[bold]{escape(one.place)}[/]{kind}", highlight=False)
        default = f"default {one.default}" if one.default else "required"
        for line in (f"{value_of(one)}; {default}", one.description):
            say(fill(line, out.width, initial_indent="    ", subsequent_indent="    "))
