"""Chains side by side: the workspace's, those of git revisions, those that MLflow holds.

Chains that differ in the seed alone (one `recipe`) are a group: mean and spread over its seeds.
"""

import json
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
from rich.table import Table

from flows.dag import lineage, store
from flows.dag.about import Read, describe, read_file
from flows.dag.chain import chain, flat
from flows.library.history import resolve
from flows.project.git import git
from fmcore.settings import ReflowError

WORKSPACE = "workspace"


@dataclass(frozen=True)
class ComparedChain:
    """A chain: what it is called here, what identifies it, its comparison, its files."""

    name: str
    about: dict[str, Any]
    found: dict[str, Any]
    read: Read

    @property
    def values(self) -> dict[str, dict[str, float]]:
        """The metrics of each round by name; distances as `<metric>/nfe_N`."""
        metric = self.found["metric"]
        return {
            row["round"]: {
                **{f"{metric}/nfe_{n}": float(v) for n, v in row[metric].items()},
                **{k: float(v) for k, v in row.items() if type(v) in (int, float)},
            }
            for row in self.found["rounds"]
        }


@dataclass(frozen=True)
class Group:
    """Chains of one recipe: over their seeds, mean and standard deviation of every metric."""

    name: str
    records: list[ComparedChain]
    mean: dict[str, dict[str, float]]
    sd: dict[str, dict[str, float]]
    differs: list[str] = field(default_factory=list)

    @property
    def metric(self) -> str:
        """The distance that its chains are compared by."""
        return str(self.records[0].found["metric"])


def workspace(root: Path) -> ComparedChain:
    """Return the chain of the workspace, as dvc.lock has it."""
    commit = git(root, "rev-parse", "HEAD").strip()
    dirty = bool(git(root, "status", "--porcelain", "--untracked-files=no").strip())
    read = partial(read_file, root)
    return _record(root, None, WORKSPACE, commit + ("+edits" if dirty else ""), read)


def revision(root: Path, rev: str) -> ComparedChain:
    """Return the chain of a git revision or an experiment; its files come from DVC."""
    try:
        commit = resolve(root, rev).ref
    except ReflowError:
        raise ReflowError(
            f"--rev {rev}: no such commit, branch, tag or experiment here; `git branch -a` and"
            " `dvc exp list -A` list them"
        ) from None
    return _record(root, commit, rev, commit, store.files_at(root, commit))


def _record(root: Path, rev: str | None, name: str, commit: str, read: Read) -> ComparedChain:
    entries = lineage.lock_entries(root, rev)
    if not any(stage.startswith("train@") for stage in entries):
        raise ReflowError(f"{name}: dvc.lock records no round; run the chain there first")
    about = describe(chain(entries, entries), read, commit)
    path = about["files"]["comparison"]
    if path is None:
        raise ReflowError(f"{name}: dvc.lock has no comparison; run the whole chain there first")
    if (text := read(path)) is None:
        raise ReflowError(
            f"{name}: {path}: neither DVC's cache nor a remote has it; `dvc pull`,"
            " `dvc fetch --all-commits`, or run the chain there again"
        )
    return ComparedChain(name, about, json.loads(text), read)


def gather(root: Path, revs: Sequence[str], *, published: bool) -> list[ComparedChain]:
    """Return the chains asked for, each once; the workspace's if none is asked for."""
    found = [workspace(root) if rev == WORKSPACE else revision(root, rev) for rev in revs]
    if published:
        from flows.tracking.published import published as held

        for name, about, read in held(root):
            if text := read(about["files"]["comparison"]):
                found.append(ComparedChain(name, about, json.loads(text), read))
        if not found:
            raise ReflowError("MLflow holds no finished chain yet; `reflow publish` records one")
    if not revs and not published:
        found = [workspace(root)]
    once: dict[str, ComparedChain] = {}
    for record in found:
        once.setdefault(record.about["key"], record)
    return list(once.values())


def grouped(records: Iterable[ComparedChain]) -> list[Group]:
    """Put chains that differ in the seed alone together; say how each group differs from the first.

    The spread of a single seed is unknown, so it is absent, not 0.
    """
    by_recipe: dict[str, list[ComparedChain]] = {}
    for record in records:
        by_recipe.setdefault(record.about["recipe"], []).append(record)
    groups: list[Group] = []
    for members in by_recipe.values():
        columns: dict[str, dict[str, list[float]]] = {}
        for member in members:
            for round_, values in member.values.items():
                for name, value in values.items():
                    columns.setdefault(round_, {}).setdefault(name, []).append(value)
        mean = {r: {k: statistics.fmean(v) for k, v in c.items()} for r, c in columns.items()}
        sd = {
            r: {k: statistics.stdev(v) for k, v in c.items() if len(v) > 1}
            for r, c in columns.items()
        }
        differs = _differences(groups[0].records[0], members[0]) if groups else []
        groups.append(Group(members[0].name, members, mean, sd, differs))
    return groups


def _differences(first: ComparedChain, other: ComparedChain) -> list[str]:
    """Return in words which settings of two chains differ, or that only their code does."""
    one, two = flat(first.about["settings"]), flat(other.about["settings"])
    found = [
        f"{key}: {two.get(key, 'absent')} ({first.name}: {one.get(key, 'absent')})"
        for key in sorted({*one, *two})
        if one.get(key) != two.get(key)
    ]
    return found or ["settings are equal; the code or the data differs"]


def notes(groups: Sequence[Group]) -> list[str]:
    """Say what the numbers do not: how chains differ, and where distances do not compare."""
    found = [f"{g.name}: {line}" for g in groups for line in g.differs]
    prints = {r.found["fingerprint"] for g in groups for r in g.records}
    if len(prints) > 1:
        found.append(
            "the chains have yardsticks of their own (other fingerprints): compare distances with"
            " the floor of their chain, not with each other to the last digit"
        )
    return found


def as_json(groups: Sequence[Group]) -> dict[str, Any]:
    """Return groups and chains for programs."""
    return {
        "groups": [
            {
                "name": g.name, "chains": [r.name for r in g.records],
                "seeds": [r.about["seed"] for r in g.records], "metric": g.metric,
                "mean": g.mean, "sd": g.sd, "differs": g.differs,
            }
            for g in groups
        ],
        "chains": [{"name": r.name, **r.about, **r.found} for g in groups for r in g.records],
        "notes": notes(groups),
    }  # fmt: skip


def frame(groups: Sequence[Group]) -> pd.DataFrame:
    """Return a row per group and round; a metric's spread over the seeds is in `<metric>_sd`."""
    rows = []
    for group in groups:
        for round_, mean in group.mean.items():
            row: dict[str, Any] = {"chain": group.name, "round": round_}
            row["seeds"] = len(group.records)
            row["floor"] = statistics.fmean(r.found["floor"] for r in group.records)
            for name, value in mean.items():
                row[name] = value
                if name in group.sd[round_]:
                    row[f"{name}_sd"] = group.sd[round_][name]
            rows.append(row)
    return pd.DataFrame(rows)


def spread(mean: float, sd: float | None) -> str:
    """Write a mean with its spread: `1.73±0.05`."""
    return f"{mean:.3g}" if sd is None else f"{mean:.3g}±{sd:.1g}"


def tables(groups: Sequence[Group]) -> list[Table]:
    """Lay out the groups, a table for each distance: a row per chain and round.

    Of the NFE it shows one step, the nearest to four, and the most; `frame` has them all.
    """
    found = []
    for metric in dict.fromkeys(g.metric for g in groups):
        mine = [g for g in groups if g.metric == metric]
        keys = {k for g in mine for values in g.mean.values() for k in values}
        nfes = sorted(int(k.split("/nfe_")[1]) for k in keys if k.startswith(f"{metric}/nfe_"))
        nfes = sorted({nfes[0], min(nfes, key=lambda n: abs(n - 4)), nfes[-1]})
        table = Table(
            title=f"{metric} by NFE, mean ± standard deviation over seeds",
            title_justify="left", box=None, pad_edge=False, padding=(0, 1, 0, 0),
        )  # fmt: skip
        table.add_column("chain")
        table.add_column("seeds", justify="right")
        table.add_column("round")
        names = [f"{metric}/nfe_{n}" for n in nfes] + ["straightness_rel", "transport_cost"]
        for column in [f"NFE {n}" for n in nfes] + ["rel", "cost"]:
            table.add_column(column, justify="right", no_wrap=True)
        for group in mine:
            for i, (round_, mean) in enumerate(group.mean.items()):
                sd = group.sd[round_]
                cells = [spread(mean[n], sd.get(n)) if n in mean else "" for n in names]
                head = [group.name, str(len(group.records))] if i == 0 else ["", ""]
                table.add_row(*head, round_, *cells)
        found.append(table)
    return found
