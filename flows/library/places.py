"""Find where each version is stored, and show all versions as a table."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.markup import escape
from rich.table import Table

from flows.dag.outputs import store
from flows.library.history import Version
from fmcore.settings import ReflowError


@dataclass(frozen=True)
class Place:
    """A place that stores couplings: the hashes that it has, or why it did not answer."""

    name: str
    md5s: frozenset[str]
    error: str = ""


def places(root: Path, found: Sequence[Version], *, ask_remotes: bool = True) -> list[Place]:
    """Ask workspace, cache and every remote which of the versions they have completely."""
    md5s = [v.md5 for v in found]
    here = store.in_workspace(root, {v.coupling for v in found})
    remotes = list(store.remotes(root)) if ask_remotes else []
    with ThreadPoolExecutor() as pool:  # a remote that does not answer delays no other
        asked = list(pool.map(lambda name: _ask(root, name, md5s), [store.CACHE, *remotes]))
    return [Place(store.WORKSPACE, frozenset(here.values())), *asked]


def _ask(root: Path, name: str, md5s: Sequence[str]) -> Place:
    try:
        return Place(name, frozenset(store.held(root, name, md5s)))
    except ReflowError as error:
        return Place(name, frozenset(), str(error))


def stored(version: Version, asked: Sequence[Place]) -> list[str]:
    """Return the names of the places that have a version."""
    return [place.name for place in asked if version.md5 in place.md5s]


def rows(found: Sequence[Version], asked: Sequence[Place]) -> list[dict[str, object]]:
    """Return the versions as JSON holds them."""
    return [{**asdict(v), "stored": stored(v, asked)} for v in found]


def versions_table(found: Sequence[Version], asked: Sequence[Place]) -> Table:
    """Lay out the versions: a row each."""
    table = Table(box=None, pad_edge=False)
    for column in ("coupling", "commit", "date", "hash", "solver"):
        table.add_column(column)
    for column in ("gap", "pairs", "bytes"):
        table.add_column(column, justify="right")
    table.add_column("stored in")
    for v in found:
        table.add_row(
            escape(v.coupling),
            escape(f"{v.commit} ({v.experiment})" if v.experiment else v.commit),
            v.date,
            escape(v.md5[:12]),
            escape(_solver(v)),
            "" if v.solver_gap_rms is None else f"{v.solver_gap_rms:.2g}",
            "" if v.pairs is None else f"{v.pairs:,}",
            "" if v.bytes is None else f"{v.bytes:,}",
            ", ".join(stored(v, asked)) or "nowhere",
        )
    return table


def _solver(version: Version) -> str:
    solver = version.solver or {}
    return " ".join(str(solver[key]) for key in ("name", "steps", "rtol") if key in solver)
