"""Find where each version is stored, and show all versions as a table."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
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


def versions_table(found: Sequence[Version], asked: Sequence[Place], width: int) -> Table:
    """Lay out the versions: a line each if that fits `width` columns, else two lines each.

    Where that is too wide as well, cells are broken; nothing is ever cut, and no name is broken.
    """
    cells = [_cells(v, asked) for v in found]
    line = _laid_out(cells, [[head] for head in HEADS])
    console = Console(width=10_000)
    if console.measure(line).maximum <= width:
        return line
    return _laid_out(cells, [list(heads) for heads in STACKED])


HEADS = ("coupling", "commit", "date", "hash", "solver", "gap", "pairs", "bytes", "stored in")
STACKED = (
    ("coupling",), ("commit", "date"), ("hash",), ("solver", "gap"), ("pairs", "bytes"),
    ("stored in",),
)  # fmt: skip
"""The columns of a narrow table: the second of two is below the first."""


def _laid_out(rows: Sequence[dict[str, str]], columns: Sequence[list[str]]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))
    for heads in columns:
        table.add_column(
            "\n".join(heads),
            justify="right" if heads[0] in ("gap", "pairs", "bytes") else "left",
            no_wrap=heads == ["coupling"],
            overflow="fold",
        )
    for row in rows:
        table.add_row(*(escape("\n".join(row[head] for head in heads)) for heads in columns))
    return table


def _cells(v: Version, asked: Sequence[Place]) -> dict[str, str]:
    """Return what the table says of a version, by the heads of its columns."""
    return {
        "coupling": v.coupling,
        "commit": f"{v.commit} ({v.experiment})" if v.experiment else v.commit,
        "date": v.date,
        "hash": v.md5[:12],
        "solver": _solver(v),
        "gap": "" if v.solver_gap_rms is None else f"{v.solver_gap_rms:.2g}",
        "pairs": "" if v.pairs is None else f"{v.pairs:,}",
        "bytes": "" if v.bytes is None else f"{v.bytes:,}",
        "stored in": ", ".join(stored(v, asked)) or "nowhere",
    }


def _solver(version: Version) -> str:
    solver = version.solver or {}
    return " ".join(str(solver[key]) for key in ("name", "steps", "rtol") if key in solver)
