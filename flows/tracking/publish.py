"""`publish`: bring MLflow up to date with dvc.lock and the receipts, exactly once."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from flows.dag.chain import Chain, Round, trained
from flows.dag.description import describe
from flows.dag.identity import whole_chain
from flows.dag.lineage import lock_entries
from flows.dag.lock import Entry, digest
from flows.dag.outputs.content import reader
from flows.dag.receipts import curve, metrics, read_comparison, spent
from flows.project.locks import locked
from flows.tracking import marker
from flows.tracking.client import Point, Tracker, answers
from flows.tracking.registry import offer, register
from fmcore.settings import ReflowError
from fmcore.verdict import keys

Say = Callable[[str], object]


@dataclass
class Published:
    """What `publish` did: parts logged, parts that were logged before, parts not logged.

    `notes` are lines about records that it mended.
    """

    logged: list[str] = field(default_factory=list)
    unchanged: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    parent: str = ""
    notes: list[str] = field(default_factory=list)


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
            for part, entry, log in _parts(tracker, run, round_, whole, models):
                _once(tracker, run, tags, part, entry, log, done, say)
            _spent(tracker, done, run, round_, say)
            if round_.evaluate:
                tracker.client.set_terminated(run, "FINISHED")
        _parent(tracker, whole, done, say, models)
        if models and not done.skipped:
            marker.note(root, lock, done.parent)
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
    if entry is None or tags.get(_tag(f"train@{round_.name}")) == digest(entry):
        return run, tags
    try:
        measured = set(_measured(tracker.root, entry))
    except ReflowError:
        return run, tags  # the part whose receipt is missing reports it
    if set(tracker.points(run, "train/")) <= measured:
        return run, tags
    say(f"train@{round_.name}: its live curves are not what dvc.lock records; they are replaced")
    tracker.replace(run)
    run = tracker.child(whole, parent, round_, round_.train)
    return run, tracker.client.get_run(run).data.tags


def _parts(
    tracker: Tracker, run: str, round_: Round, whole: Chain, models: bool
) -> list[tuple[str, Entry, Callable[[], None]]]:
    parts: list[tuple[str, Entry, Callable[[], None]]] = []
    if entry := round_.train:
        parts.append((f"train@{round_.name}", entry, lambda: _train(tracker, run, entry)))
        if models:
            parts.append((f"model@{round_.name}", entry, lambda: _model(tracker, run, entry)))
    for name, made in round_.couples.items():
        parts.append((f"couple@{name}", made, partial(_couple, tracker, run, name, made)))
    if scored := round_.evaluate:
        parts.append((f"evaluate@{round_.name}", scored, lambda: _evaluate(tracker, run, scored)))
    return parts


def _once(
    tracker: Tracker,
    run: str,
    tags: dict[str, str],
    part: str,
    entry: Entry | dict[str, float],
    log: Callable[[], None],
    done: Published,
    say: Say,
) -> None:
    """Log a part unless the run's tag says that the same entry of dvc.lock is logged already."""
    tag, value = _tag(part), digest(entry)
    if tags.get(tag) == value:
        done.unchanged.append(part)
        return
    try:
        log()
    except ReflowError as error:
        done.skipped.append(f"{part}: {error}")
        say(f"{part}: not published: {error}")
        return
    tracker.client.set_tag(run, tag, value)
    done.logged.append(part)
    say(f"{part}: published")


def _train(tracker: Tracker, run: str, entry: Entry) -> None:
    tracker.complete(run, _measured(tracker.root, entry))
    path = entry.path("coupling")
    _dataset(tracker, run, path, entry.md5(path), "training")
    tracker.client.set_tag(run, "dvc.model.md5", entry.md5(entry.path("out")))


def _tag(part: str) -> str:
    """Return the tag that says which entry of dvc.lock a part was logged from."""
    return f"reflow.published.{part.replace('@', '.')}"


def _measured(root: Path, entry: Entry) -> list[Point]:
    """Return what a training measured: its curve, and the metrics at its end."""
    points = [
        (f"train/{name}", value, int(row["step"]))
        for row in curve(root, entry, "curve")
        for name, value in row.items()
        if name != "step"
    ]
    return points + [(f"train/final_{k}", v, 0) for k, v in metrics(root, entry).items()]


def _couple(tracker: Tracker, run: str, name: str, entry: Entry) -> None:
    values = metrics(tracker.root, entry)
    tracker.complete(run, [(f"couple/{name}/{k}", v, 0) for k, v in values.items()])
    path = entry.path("out")
    _dataset(tracker, run, path, entry.md5(path), "generated")
    tracker.client.set_tag(run, f"dvc.coupling.{name}.pairs", str(int(values["pairs"])))


def _dataset(tracker: Tracker, run: str, path: str, md5: str, context: str) -> None:
    """Log a coupling as a data set by its DVC hash; its rows are not read."""
    from mlflow.data.dataset_source_registry import resolve_dataset_source
    from mlflow.data.meta_dataset import MetaDataset
    from mlflow.entities import DatasetInput, InputTag

    with warnings.catch_warnings(action="ignore"):  # it warns that one class fits twice
        source = resolve_dataset_source(str(tracker.root / path))
    name = path.replace("/", "-")
    dataset = MetaDataset(source, name=name, digest=md5[:8])  # type: ignore[abstract]
    tags = [InputTag("mlflow.data.context", context), InputTag("dvc.md5", md5)]
    tracker.client.log_inputs(run, [DatasetInput(dataset._to_mlflow_entity(), tags)])
    tracker.client.set_tag(run, f"dvc.{path}.md5", md5)


def _evaluate(tracker: Tracker, run: str, entry: Entry) -> None:
    values = metrics(tracker.root, entry)
    points = [(name, value, 0) for name, value in values.items()]
    points += [(keys.over_nfe(name), v, nfe) for name, nfe, v in keys.measured(values)]
    for row in curve(tracker.root, entry, "straightness"):
        # Steps are integers: t in thousandths.
        points.append(("gap_over_t", row["gap"], round(1000 * row["t"])))
    tracker.complete(run, points)
    _files(tracker, run, entry.path("out"), "*.png", "pictures")


def _files(tracker: Tracker, run: str, folder: str, pattern: str, name: str) -> None:
    """Log the files of a folder as `name`, after checking them against dvc.lock."""
    read, files = reader(tracker.root), sorted((tracker.root / folder).glob(pattern))
    for file in files:
        read(f"{folder}/{file.name}")
    for file in files:
        tracker.client.log_artifact(run, str(file), name)


def _model(tracker: Tracker, run: str, entry: Entry) -> None:
    from flows.tracking.model import log_model

    folder = tracker.root / entry.path("out")
    if not folder.is_dir():
        raise ReflowError(f"{folder.name}: the model is missing; `reflow run` brings it back")
    log_model(tracker.mlflow, run, folder)


def _spent(tracker: Tracker, done: Published, run: str, round_: Round, say: Say) -> None:
    """Log what a round cost, on its run and, over the rounds, on the chain's."""
    try:
        values = spent(tracker.root, round_)
    except ReflowError:
        return  # the stage whose receipt is missing has reported it

    def log() -> None:
        tracker.complete(run, [(k, v, 0) for k, v in values.items()])
        own = {} if round_.replicate_of else values
        tracker.complete(done.parent, [(f"round/{k}", v, round_.index) for k, v in own.items()])

    tags = tracker.client.get_run(run).data.tags
    _once(tracker, run, tags, f"spent@{round_.name}", values, log, done, say)


def _parent(tracker: Tracker, whole: Chain, done: Published, say: Say, models: bool) -> None:
    """Log `round/<metric>` with step = round, which MLflow's charts show, and `data/<number>`."""
    tags = tracker.client.get_run(done.parent).data.tags
    for read in whole.entries.values():
        if read.runs("prepare", "out", "metrics"):
            known = partial(_data, tracker, done.parent, read)
            _once(tracker, done.parent, tags, "prepare", read, known, done, say)
    for round_ in whole.rounds:
        if (entry := round_.evaluate) is None or round_.replicate_of:
            continue

        def log(entry: Entry = entry, index: int = round_.index) -> None:
            values = metrics(tracker.root, entry)
            tracker.complete(done.parent, [(f"round/{k}", v, index) for k, v in values.items()])

        _once(tracker, done.parent, tags, f"round@{round_.name}", entry, log, done, say)
    if compare := whole.compare:
        log = partial(_compare, tracker, done.parent, compare, whole)
        _once(tracker, done.parent, tags, "compare", compare, log, done, say)
        tracker.client.set_terminated(done.parent, "FINISHED")
        if models:
            _ship(tracker, whole, done, say)


def _data(tracker: Tracker, run: str, entry: Entry) -> None:
    values = metrics(tracker.root, entry)
    tracker.complete(run, [(f"data/{k}", v, 0) for k, v in values.items()])


def _compare(tracker: Tracker, run: str, entry: Entry, whole: Chain) -> None:
    """Log the comparison: its files, rounds to ship, results of the gates, the table as a note."""
    commit = tracker.client.get_run(run).data.tags.get("mlflow.source.git.commit", "")
    about = describe(whole, reader(tracker.root), commit)
    found = read_comparison(tracker.root, entry)
    folder = tracker.root / entry.path("out")
    _files(tracker, run, entry.path("out"), "*", "comparison")
    tracker.client.log_dict(run, about.as_json(), "chain.json")
    floor = keys.at_floor(found.metric)
    points = _with_error(floor, found.floor, found.floor_se)
    for use, choice in found.ship.items():
        points += _with_error(f"{use}/{found.metric}", choice.distance, choice.se)
        points += [(f"{use}/nfe", float(choice.nfe), 0)]
        tracker.client.set_tag(run, f"reflow.{use}", choice.round)
    points += [point for over in found.replicates for point in over.points(found.metric)]
    tracker.complete(run, points)
    unhappy = [f"{j.verdict.state}: {j.stage} {j.verdict.gate}" for j in found.unhappy]
    tracker.client.set_tag(run, "reflow.gates", "; ".join(unhappy) or "ok")
    tracker.client.set_tag(run, "reflow.fingerprint", found.fingerprint)
    tracker.client.set_tag(run, "mlflow.note.content", (folder / "rounds.md").read_text())


def _with_error(name: str, value: float, error: float | None) -> list[Point]:
    """Return the point of a number and that of its standard error, `<name>_se`, if it has one."""
    place, slash, metric = name.rpartition("/")
    own = keys.error(name) if metric == "floor" else f"{place}{slash}{metric}_se"
    found = [(name, float(value), 0)]
    return found if error is None else [*found, (own, float(error), 0)]


def _ship(tracker: Tracker, whole: Chain, done: Published, say: Say) -> None:
    """Register the rounds to ship, each time: other chains may have registered theirs."""
    try:
        changed, kept = register(tracker, whole, offer(tracker.root, whole))
    except ReflowError as error:
        done.skipped.append(f"ship: {error}")
        say(f"ship: not published: {error}")
        return
    for line in changed + kept:
        say(line)
    (done.logged if changed else done.unchanged).append("ship")
