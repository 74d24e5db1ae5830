"""`publish`: bring MLflow up to date with dvc.lock and the receipts, exactly once."""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from flows.dag.chain import Chain, Round, trained
from flows.dag.identity import whole_chain
from flows.dag.lineage import lock_entries
from flows.dag.lock import Entry, digest
from flows.dag.receipts import curve, spent
from flows.project import links
from flows.project.locks import locked
from flows.tracking import marker, pages, parts, shown
from flows.tracking.client import LOGGED, OLD_LOGGED, Tracker, answers
from flows.tracking.registry import Moved, offer, register
from fmcore.settings import ReflowError

Say = Callable[[str], object]
Origin = Entry | Mapping[str, object]
"""What a part is logged from: an entry of dvc.lock, or numbers and hashes."""


@dataclass
class Published:
    """What `publish` did: parts logged, parts that were logged before, parts not logged.

    `notes` are lines about records that it mended, `moved` the aliases that it moved.
    """

    logged: list[str] = field(default_factory=list)
    unchanged: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    parent: str = ""
    notes: list[str] = field(default_factory=list)
    moved: list[Moved] = field(default_factory=list)


def publish(root: Path, say: Say = lambda _: None, *, models: bool = True) -> Published:
    """Build or complete the MLflow runs of the chain in dvc.lock. A second call does nothing.

    Works for stages that came from the cache, after a server was down, and on a new server: it
    reads from MLflow the tags that say which parts are logged, and the points of the other parts.
    """
    held = "another `reflow publish`, or the end of a run, is writing to MLflow"
    mend = "wait for it to end, then `reflow publish`"
    with locked(root, "publish", held, mend, patience=10), answers():
        lock = marker.lock_hash(root)
        entries = lock_entries(root)
        if not trained(entries):
            raise ReflowError(
                "dvc.lock records no round yet; run `reflow run` or `dvc repro` first"
            )
        tracker = Tracker(root)
        for line in tracker.notes:
            say(line)
        whole = whole_chain(root, entries, entries)
        done = Published(parent=tracker.parent(whole), notes=tracker.notes)
        for round_ in whole.rounds:
            run, tags = _run_of(tracker, whole, done.parent, round_, say)
            for part, entry, log in _parts(tracker, run, done.parent, round_, whole, models):
                _once(tracker, run, tags, part, entry, log, done, say)
            _spent(tracker, done, run, round_, say)
            if round_.evaluate:
                tracker.client.set_terminated(run, "FINISHED")
        _parent(tracker, whole, done, say, models)
        if models and not done.skipped:
            marker.note(root, lock, done.parent)
        server = os.environ["MLFLOW_TRACKING_URI"]
        if server.startswith("http") and whole.compare:
            chart = links.rounds(tracker.experiment, pages.view_of(whole))
            say(f"the rounds in one chart: {server.rstrip('/')}/{chart}")
    return done


def _run_of(
    tracker: Tracker, whole: Chain, parent: str, round_: Round, say: Say
) -> tuple[str, dict[str, str]]:
    """Return the run of a round and its tags.

    Live curves may hold points that are in no receipt: a killed training went past its checkpoint,
    and on a GPU the resumed one measured other values there. MLflow cannot remove single points, so
    such a run is deleted, and a new one is created from what dvc.lock records.
    """
    run = tracker.child(whole, parent, round_, round_.train)
    tags = tracker.client.get_run(run).data.tags
    entry = round_.train
    logged = {tags.get(_tag(f"train@{round_.name}", kind)) for kind in (LOGGED, OLD_LOGGED)}
    if entry is None or digest(entry) in logged:
        return run, tags
    try:
        measured = set(shown.trained(curve(tracker.root, entry, "curve")))
    except ReflowError:
        return run, tags  # the part whose receipt is missing reports it
    if set(tracker.points(run, "train/")) <= measured:
        return run, tags
    say(f"train@{round_.name}: its live curves are not what dvc.lock records; they are replaced")
    tracker.replace(run)
    run = tracker.child(whole, parent, round_, round_.train)
    return run, tracker.client.get_run(run).data.tags


def _parts(
    tracker: Tracker, run: str, parent: str, round_: Round, whole: Chain, models: bool
) -> list[tuple[str, Origin, Callable[[], None]]]:
    found: list[tuple[str, Origin, Callable[[], None]]] = []
    name = round_.name
    if entry := round_.train:
        found.append((f"train@{name}", entry, partial(parts.train, tracker, run, entry)))
        if models:
            found.append((f"model@{name}", entry, partial(parts.model, tracker, run, entry)))
    for made, by in round_.couples.items():
        found.append((f"couple@{made}", by, partial(parts.couple, tracker, run, made, by)))
    if (entry := round_.evaluate) is not None:
        found.append((f"evaluate@{name}", entry, partial(parts.evaluate, tracker, run, entry)))
        if compare := whole.compare:
            both = {"evaluate": entry.digest, "compare": compare.digest}
            log = partial(parts.score, tracker, run, parent, round_, compare)
            found.append((f"score@{name}", both, log))
    return found


def _once(
    tracker: Tracker,
    run: str,
    tags: dict[str, str],
    part: str,
    entry: Origin,
    log: Callable[[], None],
    done: Published,
    say: Say,
) -> None:
    """Log a part unless the run's tag says that the same entry of dvc.lock is logged already.

    What an earlier version logged is completed: `complete` and MLflow keep points, files and data
    sets from being there twice. A second model would be, so its old tag counts.
    """
    value = digest(entry)
    old = tags.get(_tag(part, OLD_LOGGED))
    if tags.get(_tag(part)) == value or (part.startswith("model@") and old == value):
        done.unchanged.append(part)
        return
    try:
        log()
    except ReflowError as error:
        done.skipped.append(f"{part}: {error}")
        say(f"{part}: not published: {error}")
        return
    tracker.client.set_tag(run, _tag(part), value)
    if old is not None:
        tracker.client.delete_tag(run, _tag(part, OLD_LOGGED))
    done.logged.append(part)
    say(f"{part}: published")


def _spent(tracker: Tracker, done: Published, run: str, round_: Round, say: Say) -> None:
    """Log what a round cost, on its run and, over the rounds, on the chain's."""
    try:
        values = spent(tracker.root, round_)
    except ReflowError:
        return  # the stage whose receipt is missing has reported it

    def log() -> None:
        tracker.complete(run, [(k, v, 0) for k, v in values.items()])
        own = {} if round_.replicate_of else values
        tracker.complete(done.parent, shown.over_rounds(own, round_.index))

    tags = tracker.client.get_run(run).data.tags
    _once(tracker, run, tags, f"spent@{round_.name}", values, log, done, say)


def _parent(tracker: Tracker, whole: Chain, done: Published, say: Say, models: bool) -> None:
    """Log what is of the chain: its data, its comparison, the aliases of the registered model."""
    tags = tracker.client.get_run(done.parent).data.tags
    for read in whole.entries.values():
        if read.runs("prepare", "out", "metrics"):
            log = partial(parts.data, tracker, done.parent, whole, read)
            _once(tracker, done.parent, tags, "prepare", read, log, done, say)
    if compare := whole.compare:
        log = partial(parts.comparison, tracker, done.parent, whole, compare)
        _once(tracker, done.parent, tags, "compare", compare, log, done, say)
        tracker.client.set_terminated(done.parent, "FINISHED")
        if models:
            _ship(tracker, whole, done, say)


def _tag(part: str, kind: str = LOGGED) -> str:
    """Return the tag that says which entry of dvc.lock a part was logged from."""
    return f"{kind}{part.replace('@', '.')}"


def _ship(tracker: Tracker, whole: Chain, done: Published, say: Say) -> None:
    """Register the rounds to ship, each time: other chains may have registered theirs."""
    try:
        done.moved, kept = register(tracker, whole, offer(tracker.root, whole))
    except ReflowError as error:
        done.skipped.append(f"ship: {error}")
        say(f"ship: not published: {error}")
        return
    for line in (*done.moved, *kept):
        say(str(line))
    (done.logged if done.moved else done.unchanged).append("ship")
