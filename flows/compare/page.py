"""The report: one self-contained page of numbers, charts, pictures and where they come from."""

import base64
import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from flows.compare.chains import ComparedChain, Group, frame, notes, spread
from flows.compare.charts import Axes, Line, chart
from flows.dag.chain import flat

USES = {"one_step": "one step", "few_step": "few steps", "best": "best"}
SHOWN = ("straightness_rel", "transport_cost", "held_out_ratio", "budget_defect")
LIMIT = 6
"""Lines in one chart: more cannot be told apart."""


def page(groups: Sequence[Group]) -> str:
    """Write the report of some chains; nothing in it is loaded from elsewhere."""
    place = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    place.globals.update(spread=spread, number=_number)
    records = [record for group in groups for record in group.records]
    return place.get_template("page.html").render(
        title=", ".join(dict.fromkeys(_title(r) for r in records)),
        many=len(records) > 1,
        table=_across(groups),
        notes=notes(groups),
        curves=_all_curves(groups) if len(records) > 1 else [],
        chains=[_chain(record) for record in records],
    )


def _title(record: ComparedChain) -> str:
    return f"{record.about['data'].replace('_', ' ')}"


def _number(value: object) -> str:
    """Write a number to read, not to compute with."""
    if value is None:
        return ""
    if isinstance(value, int) or (isinstance(value, float) and value.is_integer()):
        return f"{int(value):,}"
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _across(groups: Sequence[Group]) -> list[dict[str, Any]]:
    """Return a table for each distance: its columns, and a row per group and round."""
    found = []
    for metric in dict.fromkeys(g.metric for g in groups):
        mine = [g for g in groups if g.metric == metric]
        columns = frame(mine).columns
        nfes = sorted(int(c.split("nfe_")[1]) for c in columns if _distance(c, metric))
        rows = [
            {
                "chain": g.name,
                "seeds": len(g.records),
                "round": round_,
                "cells": [
                    spread(mean[n], g.sd[round_].get(n)) if n in mean else ""
                    for n in (*(f"{metric}/nfe_{k}" for k in nfes), *SHOWN)
                ],
            }
            for g in mine
            for round_, mean in g.mean.items()
        ]
        found.append({"metric": metric, "nfes": nfes, "columns": SHOWN, "rows": rows})
    return found


def _distance(column: str, metric: str) -> bool:
    return column.startswith(f"{metric}/nfe_") and not column.endswith("_sd")


def _all_curves(groups: Sequence[Group]) -> list[str]:
    """Draw the distance over NFE of all groups, mean and spread, a chart for each distance."""
    drawn = []
    for metric in dict.fromkeys(g.metric for g in groups):
        lines: list[Line] = []
        for group in (g for g in groups if g.metric == metric):
            for round_, mean in group.mean.items():
                names = {int(k.split("nfe_")[1]): k for k in mean if k.startswith(f"{metric}/nfe_")}
                nfes, sd = sorted(names), group.sd[round_]
                lines.append(
                    Line(
                        f"{group.name} {round_}",
                        nfes,
                        [mean[names[n]] for n in nfes],
                        [sd[names[n]] for n in nfes] if names[nfes[0]] in sd else (),
                    )
                )
        ticks = sorted({x for line in lines for x in line.x})
        drawn.append(chart(lines[:LIMIT], Axes("NFE", metric, log_x=True, ticks=ticks)))
    return drawn


def _chain(record: ComparedChain) -> dict[str, Any]:
    """Return what the page shows of one chain."""
    found = record.found
    rounds = found["rounds"]
    metric = found["metric"]
    nfes = sorted({int(n) for row in rounds for n in row[metric]})
    return {
        "name": record.name,
        "about": record.about,
        "found": found,
        "metric": metric,
        "floor": found["floor"],
        "nfes": nfes,
        "rounds": rounds,
        "least": {
            n: min(row[metric][str(n)] for row in rounds if str(n) in row[metric]) for n in nfes
        },
        "columns": [c for c in SHOWN if any(c in row for row in rounds)],
        "uses": [(USES.get(k, k), v) for k, v in found.get("ship", {}).items()],
        "next": found.get("next", []),
        "gates": [g for g in found.get("gates", []) if g["state"] != "ok"],
        "judged": len(found.get("gates", [])),
        "charts": _charts(record, nfes),
        "pictures": [(name, _pictures(record, name)) for name in ("samples", "trajectories")],
        "settings": flat(record.about["settings"]),
    }


def _charts(record: ComparedChain, nfes: Sequence[int]) -> list[tuple[str, str]]:
    """Draw distance over NFE, straightness over t and transport cost over the rounds."""
    found, metric = record.found, record.found["metric"]
    rounds = found["rounds"][:LIMIT]
    distances = []
    for row in rounds:
        own = sorted(int(n) for n in row[metric])
        distances.append(Line(row["round"], own, [row[metric][str(n)] for n in own]))
    axes = Axes("NFE", metric, log_x=True, ticks=nfes, floor=found["floor"])
    drawn = [("Distance to real data: lower is better", chart(distances, axes))]
    gaps = [line for row in rounds if (line := _gap(record, row["round"]))]
    if gaps:
        straight = Axes("t  (0 = data, 1 = noise)", "E‖(Z₁ − Z₀) − v‖²")
        drawn.append(("Straightness over t: lower is straighter", chart(gaps, straight)))
    cost = [row["transport_cost"] for row in rounds]
    before = rounds[0].get("transport_cost_before")
    names = [row["round"] for row in rounds]
    if before is not None and rounds[0]["coupling"] == "independent":
        cost, names = [before, *cost], ["independent", *names]
    places = list(range(len(cost)))
    drawn.append(
        (
            "Transport cost: no rectification raises it",
            chart(
                [Line("E‖source − target‖²", places, cost)],
                Axes("coupling", "transport cost", log_y=False, ticks=places, tick_names=names),
            ),
        )
    )
    return drawn


def _gap(record: ComparedChain, round_: str) -> Line | None:
    files = record.about["files"]["rounds"].get(round_)
    text = record.read(files["straightness"]) if files else None
    if text is None:
        return None
    rows = list(csv.DictReader(io.StringIO(text.decode())))
    return Line(round_, [float(r["t"]) for r in rows], [float(r["gap"]) for r in rows])


def _pictures(record: ComparedChain, name: str) -> list[tuple[str, str]]:
    """Return (round, data URI) of one kind of picture, of the rounds that have it."""
    found = []
    for round_, files in record.about["files"]["rounds"].items():
        content = record.read(f"{files['pictures']}/{name}.png")
        if content is not None:
            found.append((round_, "data:image/png;base64," + base64.b64encode(content).decode()))
    return found
