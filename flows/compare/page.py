"""The report: one self-contained page of numbers, charts, pictures and where they come from.

While a run goes on it is the same page, of what there is so far, with the run on top.
"""

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from flows.compare.chains import ComparedChain
from flows.compare.charts import HELD_OUT, Axes, Line, chart
from flows.compare.costs import spent_table
from flows.compare.gates import Said, told
from flows.compare.groups import SPREAD, Group, GroupRow, by_metric, frame, group_rows, notes
from flows.compare.samples import by_title, data_uri, drawn
from flows.dag.chain import flat
from flows.dag.description import Description
from fmcore.checked import MEND
from fmcore.settings import ReflowError
from fmcore.verdict import keys
from fmcore.verdict.advice import guidance
from fmcore.verdict.comparison import Choice, Comparison, Table, nearest
from fmcore.verdict.drawing import Dashes, dashes
from fmcore.verdict.errors import short, with_error
from fmcore.verdict.replicates import gap_text, spread_text
from fmcore.verdict.shown import FILE as SAMPLES
from fmcore.verdict.shown import REAL, Shown
from fmcore.verdict.spent import sampler_table

USES = {"one_step": "one step", "few_step": "few steps", "best": "best"}
SHOWN = ("straightness_rel", "transport_cost", "held_out_ratio", "budget_defect")
LOSSES = "Losses of training: dotted on pairs that are held out"


@dataclass(frozen=True)
class Block:
    """A table of one distance over all chains."""

    metric: str
    nfes: list[int]
    columns: Sequence[str]
    rows: list[GroupRow]


@dataclass(frozen=True)
class Section:
    """What the page shows of one chain."""

    name: str
    about: Description
    found: Comparison
    table: Table
    samplers: list[list[str]]
    guided: list[str]
    uses: list[tuple[str, Choice]]
    said: list[Said]
    unmeasured: list[str]
    spent: list[list[str]]
    charts: list[tuple[str, str]]
    samples: list[tuple[str, list[tuple[str, str]]]]
    first: list[str]
    pictures: list[tuple[str, list[tuple[str, str]]]]
    settings: dict[str, str]


@dataclass(frozen=True)
class Live:
    """What the page shows of a run: its state in a line, its stages, what gates say, errors.

    `stages` are name, state, share done and a text; `losses` is a chart; `samples` are those of
    running trainings by title. While it is `running` a browser loads the page again now and then.
    """

    title: str
    line: str
    running: bool
    stages: list[tuple[str, str, float, str]]
    gates: list[tuple[str, str]]
    losses: str
    samples: list[tuple[str, list[tuple[str, str]]]]
    seconds: int


def page(groups: Sequence[Group], live: Live | None = None) -> str:
    """Write the report of some chains; nothing in it is loaded from elsewhere.

    While a run goes on it stands on top, and what to ship is not said before all is measured.
    """
    place = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    place.globals.update(number=_number, error=with_error)
    place.globals.update(spread_text=spread_text, gap_text=gap_text, spread=SPREAD)
    chains = [one for group in groups for one in group.chains]
    titles = [one.about.data.replace("_", " ") for one in chains]
    return place.get_template("page.html").render(
        live=live,
        title=", ".join(dict.fromkeys(titles or ([live.title] if live else []))),
        many=len(chains) > 1,
        table=_across(groups),
        notes=notes(groups),
        curves=_all_curves(groups) if len(chains) > 1 else [],
        chains=[_section(one, losses=live is None) for one in chains],
    )


def _number(value: object) -> str:
    """Format a number for people."""
    if value is None:
        return ""
    if isinstance(value, int) or (isinstance(value, float) and value.is_integer()):
        return f"{int(value):,}"
    return short(value) if isinstance(value, float) else str(value)


def _across(groups: Sequence[Group]) -> list[Block]:
    """Return a table for each distance: its columns, and a row per group and round."""
    found = []
    for metric, mine in by_metric(groups).items():
        nfes = keys.nfes(frame(mine).columns, metric)
        found.append(Block(metric, nfes, SHOWN, group_rows(mine, nfes, SHOWN)))
    return found


def _all_curves(groups: Sequence[Group]) -> list[str]:
    """Draw the distance over NFE of all groups, mean and spread, a chart for each distance."""
    drawn = []
    for metric, mine in by_metric(groups).items():
        lines = [
            _line(group, round_, dashes(i))  # of the chain; colour and marker are the round's
            for i, group in enumerate(mine)
            for round_ in group.mean
        ]
        ticks = sorted({x for line in lines for x in line.x})
        drawn.append(chart(lines, Axes("NFE", metric, log_x=True, ticks=ticks)))
    return drawn


def _line(group: Group, round_: str, style: Dashes) -> Line:
    nfes = group.nfes(round_)
    points = [group.distance(round_, nfe) for nfe in nfes]
    sd = [spread for _, spread in points if spread is not None]
    whole = sd if len(sd) == len(points) else ()
    own = next(known[round_] for one in group.chains if round_ in (known := one.found.looks))
    name, means = f"{group.name} {round_}", [mean for mean, _ in points]
    return Line(name, nfes, means, whole, own.colour, style, own.marker)


def _section(one: ComparedChain, *, losses: bool) -> Section:
    samples = _samples(one)
    titles = [title for title, _ in samples]
    nfes = sorted(int(title.split()[1]) for title in titles if title != REAL)
    few = {nfes[0], nearest(nfes), nfes[-1]} if nfes else set()
    old = () if samples else ("samples",)
    return Section(
        name=one.name,
        about=one.about,
        found=one.found,
        table=one.found.table(SHOWN),
        samplers=sampler_table(one.found),
        guided=guidance(one.found.rounds),
        uses=[(USES.get(use, use), choice) for use, choice in one.found.ship.items()],
        said=told(one.found.gates),
        unmeasured=[j.text for j in one.found.gates if j.verdict.state == "not measured"],
        spent=spent_table(one.found, one.spent),
        charts=_charts(one, losses=losses),
        samples=samples,
        first=[f"NFE {nfe}" for nfe in sorted(few)],
        pictures=[(name, _pictures(one, name)) for name in (*old, "trajectories")],
        settings=flat(one.about.settings),
    )


def _samples(one: ComparedChain) -> list[tuple[str, list[tuple[str, str]]]]:
    """Return samples by title, all rounds side by side; empty for chains that kept none."""
    found = {}
    for round_, files in one.about.files.rounds.items():
        path = f"{files.pictures}/{SAMPLES}"
        content = one.read(path)
        if content is not None and round_ in one.found.colours:
            shown = Shown.read(content, f"{one.name}: {path}")
            found[round_] = drawn(shown, one.found.colours[round_])
    return by_title(found)


def _charts(one: ComparedChain, *, losses: bool) -> list[tuple[str, str]]:
    """Draw distance over NFE, the losses, straightness over t, transport cost over the rounds."""
    found, rounds, known_as = one.found, one.found.rounds, one.found.looks
    distances = []
    for r in rounds:
        own = sorted(r.distances)
        errors = [2 * error for nfe in own if (error := r.error(nfe)) is not None]
        known = errors if len(errors) == len(own) else ()
        values = [r.distances[nfe] for nfe in own]
        distances.append(Line(r.name, own, values, known, *known_as[r.name]))
    label = f"{found.metric} ± 2 standard errors"
    axes = Axes("NFE", label, log_x=True, ticks=found.nfes, floor=max(found.floor, 0))
    drawn = [("Distance to real data: lower is better", chart(distances, axes))]
    files = one.about.files.rounds
    if losses:
        paths = {r.name: files[r.name].losses for r in rounds if r.name in files}
        curves = [
            line
            for name, path in paths.items()
            for column in ("loss", HELD_OUT)
            if (line := _curve(one, name, path, ("step", column)))
        ]
        if curves:
            drawn.append((LOSSES, chart(curves, Axes("step", "loss"))))
    bends = {r.name: files[r.name].straightness for r in rounds if r.name in files}
    gaps = [line for name, path in bends.items() if (line := _curve(one, name, path, ("t", "gap")))]
    if gaps:
        straight = Axes("t  (0 = data, 1 = noise)", "E‖(Z₁ − Z₀) − v‖²")
        drawn.append(("Straightness over t: lower is straighter", chart(gaps, straight)))
    return [*drawn, _cost(one)]


def _cost(one: ComparedChain) -> tuple[str, str]:
    rounds = one.found.rounds
    cost = [r.metrics["transport_cost"] for r in rounds]
    before = rounds[0].metrics.get("transport_cost_before")
    names = [r.name for r in rounds]
    if before is not None and rounds[0].coupling == "independent":
        cost, names = [before, *cost], ["independent", *names]
    places = list(range(len(cost)))
    line = Line("E‖source − target‖²", places, cost)
    axes = Axes("coupling", "transport cost", log_y=False, ticks=places, tick_names=names)
    return "Transport cost: no rectification raises it", chart([line], axes)


def _curve(one: ComparedChain, round_: str, path: str, columns: tuple[str, str]) -> Line | None:
    """Return a column of a round's curve over another; None where neither has a number."""
    text = one.read(path) if path else None
    if text is None:
        return None
    try:
        rows = [
            [float(row[name]) for name in columns]
            for row in csv.DictReader(io.StringIO(text.decode()))
            if row[columns[1]]
        ]
    except (ValueError, KeyError, TypeError) as error:
        raise ReflowError(
            f"{one.name}: the curve of {round_} is damaged ({error}); {MEND}"
        ) from None
    x, y = ([row[i] for row in rows] for i in (0, 1))
    held_out = columns[1] == HELD_OUT
    return Line.of(round_, x, y, one.found.looks[round_], held_out=held_out) if rows else None


def _pictures(one: ComparedChain, name: str) -> list[tuple[str, str]]:
    """Return (round, data URI) of one kind of picture, of the rounds that have it."""
    found = []
    for round_, files in one.about.files.rounds.items():
        content = one.read(f"{files.pictures}/{name}.png")
        if content is not None:
            found.append((round_, data_uri(content)))
    return found
