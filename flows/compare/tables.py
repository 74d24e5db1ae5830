"""The tables of `reflow run` and `reflow compare`: the workspace's rounds, groups of chains."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from rich.markup import escape
from rich.table import Table

from flows.compare.groups import SPREAD, Group, by_metric, group_rows
from flows.dag import lineage
from flows.dag.chain import current
from flows.dag.graph import paths
from flows.dag.receipts import timings
from fmcore.settings import ReflowError
from fmcore.verdict import keys
from fmcore.verdict.comparison import FILE, Comparison, nearest
from fmcore.verdict.errors import short, with_error
from fmcore.verdict.headline import METRICS, best
from fmcore.verdict.replicates import gap_text, replicates, spread_text
from fmcore.verdict.spent import sampler_table


@dataclass(frozen=True)
class TimedComparison:
    """The workspace's comparison, and the seconds that rounds took to train on this machine."""

    found: Comparison
    seconds: dict[str, float]

    def as_dict(self) -> dict[str, object]:
        """Return the comparison as JSON holds it; each round also has the floor and its seconds."""
        floor, seconds = self.found.floor, self.seconds
        rows = [
            {**self.found.row(r), "floor": floor, "train_seconds": seconds.get(r.name)}
            for r in self.found.rounds
        ]
        return {**self.found.as_dict(), "rounds": rows}


def against(found: Comparison, baseline: str | None) -> Comparison:
    """Return a comparison whose replicates are tested against the round `baseline`, if named."""
    if baseline is None:
        return found
    return replace(found, replicates=replicates(found.rounds, baseline))


def comparison(root: Path, baseline: str | None = None) -> TimedComparison:
    """Return the comparison of the workspace's rounds, replicates against the round `baseline`."""
    file = paths(root, "compare")["out"] / FILE
    where = str(file.relative_to(root))
    if not file.exists():
        raise ReflowError(f"{where}: no comparison yet; `reflow run` makes it")
    found = against(Comparison.read(file.read_bytes(), where), baseline)
    took, entries = timings(root), lineage.lock_entries(root)
    if "compare" in {e.verb for name, e in entries.items() if name not in current(entries)}:
        raise ReflowError(
            f"{where}: measured on models that were made again since; `reflow run` measures anew,"
            " `reflow compare --rev HEAD` shows what was committed"
        )
    seconds = {
        entry.key: round(took[name, entry.digest], 1)
        for name, entry in entries.items()
        if entry.verb == "train" and (name, entry.digest) in took
    }
    return TimedComparison(found, seconds)


def _table(title: str | None = None) -> Table:
    """Return an empty table without lines, its title in markup."""
    return Table(title=title, title_justify="left", box=None, pad_edge=False, padding=(0, 1, 0, 0))


def headline_table(timed: TimedComparison) -> Table:
    """Lay out the few numbers that come first, each with its standard error; fits 80 columns."""
    found, least = timed.found, min(timed.found.nfes)
    floor = with_error(found.floor, found.floor_se)
    table = _table(f"{escape(found.metric)} by NFE, floor {floor}")
    table.add_column("round", no_wrap=True, overflow="fold")
    names = [name.replace("_", " ") for name in METRICS]
    for column in (f"NFE {least}", "best", "at NFE", *names, "train"):
        table.add_column(column, justify="right")
    for r in found.rounds:
        choice, seconds = best(r), timed.seconds.get(r.name)
        table.add_row(
            escape(r.name),
            with_error(r.at(least), r.error(least)),
            with_error(choice.distance, choice.se),
            str(choice.nfe),
            *(with_error(r.metrics.get(m), r.metrics.get(keys.error(m))) for m in METRICS),
            "" if seconds is None else f"{seconds:.0f} s",
        )
    return table


def rounds_table(timed: TimedComparison) -> Table:
    """Lay out a comparison: a row per round, a column per NFE; fits 80 columns."""
    found, layout = timed.found, timed.found.table(())
    floor = with_error(found.floor, found.floor_se)
    table = _table(f"{escape(found.metric)} by NFE, floor {floor}")
    table.add_column("round")
    for nfe in layout.nfes:
        table.add_column(f"NFE {nfe}" if nfe == layout.nfes[0] else str(nfe), justify="right")
    for column in ("straight", "rel", "cost", "train"):
        table.add_column(column, justify="right")
    for row, result in zip(layout.rows, found.rounds, strict=True):
        metrics, seconds = result.metrics, timed.seconds.get(result.name)
        rel = metrics.get("straightness_rel")
        table.add_row(
            escape(row.round),
            *(cell.replace(" ± ", "\n±") for cell in row.cells),
            short(metrics.get("straightness")),
            "" if rel is None else f"{rel:.4f}",
            short(metrics.get("transport_cost")),
            "" if seconds is None else f"{seconds:.0f} s",
        )
    return table


def replicates_table(found: Comparison) -> Table:
    """Lay out rounds over their replicates, at the least NFE, that nearest to four, and the most.

    A row for each round: mean ± standard deviation; under it the paired difference from its
    baseline ± its standard error, with its p.
    """
    nfes = sorted({nfe for g in found.replicates for nfe in g.distances})
    nfes = sorted({nfes[0], nearest(nfes), nfes[-1]})
    table = _table(f"{escape(found.metric)} over replicates, mean ± standard deviation")
    table.add_column("round")
    table.add_column("n", justify="right")
    for nfe in nfes:
        table.add_column(f"NFE {nfe}", justify="right")
    for g in found.replicates:
        cells = [g.distances.get(nfe) for nfe in nfes]
        table.add_row(escape(g.round), str(g.count), *map(spread_text, cells))
        if g.baseline:
            less = f"  less {escape(g.baseline)}"
            table.add_row(less, str(g.pairs), *map(gap_text, cells))
    return table


def samplers_of(timed: TimedComparison) -> Table | None:
    """Lay out what samplers other than Euler score, and published metrics; None without any."""
    lines = sampler_table(timed.found)
    if not lines:
        return None
    table = _table()
    for i, name in enumerate(lines[0]):
        table.add_column(escape(name), justify="left" if i < 2 else "right")
    for cells in lines[1:]:
        table.add_row(*map(escape, cells))
    return table


def group_tables(groups: Sequence[Group], *, full: bool = False) -> list[Table]:
    """Lay out groups of chains, a table for each distance: a row per chain and round.

    It shows the smallest NFE, the one nearest to four, and the largest, or all if `full`; `frame`
    has all of them.
    """
    found = []
    for metric, mine in by_metric(groups).items():
        every = sorted({nfe for g in mine for round_ in g.mean for nfe in g.nfes(round_)})
        nfes = every if full else sorted({every[0], nearest(every), every[-1]})
        table = _table(f"{escape(metric)} by NFE, {SPREAD}")
        table.add_column("chain")
        table.add_column("seeds", justify="right")
        table.add_column("round")
        for column in [*(f"NFE {n}" for n in nfes), "rel", "cost"]:
            table.add_column(column, justify="right", no_wrap=True)
        for group in mine:
            head = [escape(group.name), str(len(group.chains))]
            for row in group_rows([group], nfes, ("straightness_rel", "transport_cost")):
                table.add_row(*head, escape(row.round), *row.cells)
                head = ["", ""]
        found.append(table)
    return found
