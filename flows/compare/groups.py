"""Group the chains that differ only in the seed (same `recipe`): mean and spread over seeds.

Only chains with one yardstick are averaged: distances to other references do not compare.
"""

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from flows.compare.chains import ComparedChain
from flows.dag.chain import flat
from fmcore.verdict import keys
from fmcore.verdict.errors import short

if TYPE_CHECKING:
    import pandas as pd

Values = dict[str, dict[str, float]]
"""For each round, numbers by their keys; the distance at each NFE is among them."""


@dataclass(frozen=True)
class Group:
    """Chains of one recipe: mean and standard deviation of every metric over their seeds."""

    name: str
    chains: list[ComparedChain]
    mean: Values
    sd: Values
    differs: list[str] = field(default_factory=list)

    @property
    def metric(self) -> str:
        """The distance that its chains are compared by."""
        return self.chains[0].found.metric

    def nfes(self, round_: str) -> list[int]:
        """Return the NFE at which a round was measured, in order."""
        return keys.nfes(self.mean[round_], self.metric)

    def distance(self, round_: str, nfe: int) -> tuple[float, float | None]:
        """Return a round's distance at an NFE and its standard deviation over the seeds."""
        key = keys.at_nfe(self.metric, nfe)
        return self.mean[round_][key], self.sd[round_].get(key)


@dataclass(frozen=True)
class GroupRow:
    """A table row: a round of a group, each number with its spread, empty if there is none."""

    chain: str
    seeds: int
    round: str
    cells: list[str]


def grouped(chains: Iterable[ComparedChain]) -> list[Group]:
    """Group chains of one yardstick that differ only in the seed; say how groups differ.

    The spread of a single seed is unknown, so it is absent, not 0.
    """
    by_recipe: dict[tuple[str, str], list[ComparedChain]] = {}
    for one in chains:  # comparisons of earlier versions do not name their yardstick
        measured = one.found.yardstick or one.about.key
        by_recipe.setdefault((one.about.recipe, measured), []).append(one)
    groups: list[Group] = []
    for members in by_recipe.values():
        columns: dict[str, dict[str, list[float]]] = {}
        for member in members:
            for result in member.found.rounds:
                for name, value in result.keyed(member.found.metric).items():
                    columns.setdefault(result.name, {}).setdefault(name, []).append(value)
        mean = {r: {k: statistics.fmean(v) for k, v in c.items()} for r, c in columns.items()}
        sd = {
            r: {k: statistics.stdev(v) for k, v in c.items() if len(v) > 1}
            for r, c in columns.items()
        }
        differs = _differences(groups[0].chains[0], members[0]) if groups else []
        groups.append(Group(members[0].name, members, mean, sd, differs))
    return groups


def _differences(first: ComparedChain, other: ComparedChain) -> list[str]:
    """Return in words which settings of two chains differ, or that only their code does."""
    one, two = flat(first.about.settings), flat(other.about.settings)
    found = [
        f"{key}: {two.get(key, 'absent')} ({first.name}: {one.get(key, 'absent')})"
        for key in sorted({*one, *two})
        if one.get(key) != two.get(key)
    ]
    if first.about.recipe == other.about.recipe:
        found.insert(0, "another seed, and a yardstick of its own: not averaged")
    return found or ["settings are equal; the code or the data differs"]


def by_metric(groups: Sequence[Group]) -> dict[str, list[Group]]:
    """Return the groups by their distance, because different distances cannot be compared."""
    found: dict[str, list[Group]] = {}
    for group in groups:
        found.setdefault(group.metric, []).append(group)
    return found


def group_rows(
    groups: Sequence[Group], nfes: Sequence[int], metrics: Sequence[str]
) -> list[GroupRow]:
    """Lay out groups of one distance: a row per group and round, a cell per NFE and metric.

    Of several seeds a number stands with its standard deviation over them, of one with its standard
    error (`SPREAD`).
    """
    rows = []
    for g in groups:
        names = [*(keys.at_nfe(g.metric, nfe) for nfe in nfes), *metrics]
        for round_, mean in g.mean.items():
            off = {n: g.sd[round_].get(n, mean.get(keys.error(n))) for n in names}
            cells = [with_spread(mean[n], off[n]) if n in mean else "" for n in names]
            rows.append(GroupRow(g.name, len(g.chains), round_, cells))
    return rows


SPREAD = "± sd over seeds; its error for one"
"""What stands behind the numbers of `group_rows`."""


def with_spread(mean: float, off: float | None) -> str:
    """Write a mean with its spread or error: `1.73±0.05`."""
    return short(mean) if off is None else f"{short(mean)}±{short(off, 1)}"


def notes(groups: Sequence[Group]) -> list[str]:
    """Say in words how the chains differ, and which distances cannot be compared."""
    found = [f"{g.name}: {line}" for g in groups for line in g.differs]
    chains = [one for g in groups for one in g.chains]
    prints = {(c.found.fingerprint, c.found.yardstick or c.about.key) for c in chains}
    if len(prints) > 1:
        found.append(
            "the chains have yardsticks of their own (other features or references): compare"
            " distances with the floor of their chain, not exactly with each other"
        )
    return found


def as_json(groups: Sequence[Group]) -> dict[str, object]:
    """Return groups and chains as JSON holds them."""
    return {
        "groups": [
            {
                "name": g.name, "chains": [one.name for one in g.chains],
                "seeds": [one.about.seed for one in g.chains], "metric": g.metric,
                "mean": g.mean, "sd": g.sd, "differs": g.differs,
            }
            for g in groups
        ],
        "chains": [
            {"name": one.name, **one.about.as_dict(), **one.found.as_dict()}
            for g in groups
            for one in g.chains
        ],
        "notes": notes(groups),
    }  # fmt: skip


def frame(groups: Sequence[Group]) -> "pd.DataFrame":
    """Return a row per group and round; a metric's spread over the seeds is in `<metric>_sd`."""
    rows = []
    for group in groups:
        for round_, mean in group.mean.items():
            row: dict[str, object] = {"chain": group.name, "round": round_}
            row["seeds"] = len(group.chains)
            row["floor"] = statistics.fmean(one.found.floor for one in group.chains)
            for name, value in mean.items():
                row[name] = value
                if name in group.sd[round_]:
                    row[f"{name}_sd"] = group.sd[round_][name]
            rows.append(row)
    import pandas as pd  # slow, and most commands need none

    return pd.DataFrame(rows)
