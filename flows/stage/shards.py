"""Sample a coupling by many jobs: each writes some shards into the scratch folder of the stage.

The stage then finds them there. DVC sees one stage that ran once, whichever job made a shard.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path

from flows.dag.graph import paths
from flows.params.load import FILE, load
from flows.params.seeds import seed_of
from flows.stage import taken
from flows.stage.guard import shared
from flows.stage.imports import pairs_of
from flows.stage.progress import Reporter
from flows.stage.work import work_of
from fmcore.couple import Couple, Imported, couple_shards, missing_shards, shard_count
from fmcore.settings import ReflowError
from fmcore.work.work import Work


@dataclass(frozen=True)
class Progress:
    """How far a coupling is: its number of shards, and the missing ones."""

    shards: int
    missing: list[int]

    def __str__(self) -> str:
        if not self.missing:
            return f"{self.shards} of {self.shards} shards are there and whole"
        there = self.shards - len(self.missing)
        return f"{there} of {self.shards} shards are there; missing {ranges(self.missing)}"


def sample(root: Path, key: str, shards: str) -> range:
    """Sample the shards `a:b` of the coupling `key` into its scratch folder; return the range.

    Jobs with other shards, or the same, may run at the same time on a shared file system.
    """
    with _inputs(root, key) as (files, settings, work):
        wanted = parse(shards, shard_count(settings))
        total = sum(len(settings.ids(index)) for index in wanted)
        earlier = taken.shards(root, f"couple@{key}")
        with Reporter(f"couple@{key}", total) as log:
            couple_shards(*files, settings, wanted, replace(work, log=log), earlier)
    return wanted


def state(root: Path, key: str) -> Progress:
    """Read every shard of the scratch folder and say which are missing, damaged or foreign."""
    with _inputs(root, key) as (files, settings, work):
        return Progress(shard_count(settings), missing_shards(*files, settings, work))


@contextmanager
def _inputs(root: Path, key: str) -> Iterator[tuple[tuple[Path, Path], Couple | Imported, Work]]:
    """Yield (model, data), settings and work of a coupling, while its lock is held, shared."""
    params = load(root / FILE)
    if key not in params.couplings:
        known = ", ".join(params.couplings) or "none"
        raise ReflowError(f"no coupling {key!r}; params.yaml has: {known}")
    files = paths(root, f"couple@{key}")
    with shared(root, f"couple@{key}") as scratch:
        work = work_of(params, scratch, seed=seed_of(params, "couple", key))
        yield (files["model"], files["data"]), pairs_of(root, params, key), work


def parse(text: str, count: int) -> range:
    """Return the shards that `a:b` names, as Python slices do: b is not among them.

    >>> parse("8:16", 10), parse("3", 10), parse(":2", 10)
    (range(8, 10), range(3, 4), range(0, 2))
    """
    first, colon, last = text.partition(":")
    given = [part for part in (first, last) if part]
    if not given or not all(part.isdecimal() for part in given) or (not colon and last):
        raise ReflowError(f"--shards: expected a:b, or a for one, got {text!r}")
    start = int(first or 0)
    stop = min(int(last or count) if colon else start + 1, count)
    if start >= stop:
        raise ReflowError(
            f"--shards {text}: no shard; this coupling has the shards 0 to {count - 1}"
        )
    return range(start, stop)


def ranges(numbers: list[int]) -> str:
    """Return numbers as `a:b`, the form that --shards takes.

    >>> ranges([0, 1, 2, 7])
    '0:3 7'
    """
    found = []
    for _, group in groupby(enumerate(numbers), lambda pair: pair[1] - pair[0]):
        run = [number for _, number in group]
        found.append(str(run[0]) if len(run) == 1 else f"{run[0]}:{run[-1] + 1}")
    return " ".join(found)
