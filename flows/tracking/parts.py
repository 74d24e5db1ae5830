"""What each part of a chain logs into its run: points, artifacts, data sets, tags, descriptions."""

import json
import warnings
from collections.abc import Mapping
from pathlib import Path

from flows.dag.chain import Chain, Round
from flows.dag.description import describe
from flows.dag.identity import data_key
from flows.dag.lock import Entry
from flows.dag.outputs.content import reader
from flows.dag.receipts import curve, metrics, read_comparison, receipt
from flows.project import links
from flows.tracking import pages, shown
from flows.tracking.client import Tracker
from fmcore.settings import ReflowError
from fmcore.verdict.shown import FILE as SAMPLES


def train(tracker: Tracker, run: str, entry: Entry) -> None:
    """Log the curve of a training, its receipt, its coupling as a data set."""
    values = _receipt(tracker, run, entry, "train")
    tracker.complete(run, shown.trained(curve(tracker.root, entry, "curve")))
    path = entry.path("coupling")
    _dataset(tracker, run, path, entry.md5(path), "training")
    tracker.client.set_tag(run, "dvc.model.md5", entry.md5(entry.path("out")))
    tracker.client.set_tag(run, "reflow.parameters", str(int(values.get("parameters", 0))))


def couple(tracker: Tracker, run: str, name: str, entry: Entry) -> None:
    """Log the receipt of a coupling, and the coupling as a data set that the round generated."""
    values = _receipt(tracker, run, entry, f"couple_{name}")
    path = entry.path("out")
    _dataset(tracker, run, path, entry.md5(path), "generated", values=values)
    tracker.client.set_tag(run, f"dvc.coupling.{name}.pairs", str(int(values["pairs"])))


def evaluate(tracker: Tracker, run: str, entry: Entry) -> None:
    """Log the curves of an evaluation, its receipt, its pictures and the samples it shows."""
    values = _receipt(tracker, run, entry, "evaluate")
    tracker.complete(run, shown.measured(values, curve(tracker.root, entry, "straightness")))
    for pattern in ("*.png", SAMPLES):
        _files(tracker, run, entry.path("out"), pattern, "pictures")


def score(tracker: Tracker, run: str, parent: str, round_: Round, compare: Entry) -> None:
    """Log a round's distance over NFE and its scores, on its run and over the rounds."""
    found = read_comparison(tracker.root, compare)
    own = next((r for r in found.rounds if r.name == round_.name), None)
    if own is None or not own.distances:
        raise ReflowError("the comparison does not have this round; `reflow run` first")
    tracker.complete(run, shown.scored(found, own))
    if not round_.replicate_of:
        tracker.complete(parent, shown.over_rounds(shown.scores(own), round_.index))


def model(tracker: Tracker, run: str, entry: Entry) -> None:
    """Log the model of a round."""
    from flows.tracking.model import log_model

    folder = tracker.root / entry.path("out")
    if not folder.is_dir():
        raise ReflowError(f"{folder.name}: the model is missing; `reflow run` brings it back")
    log_model(tracker.mlflow, run, folder)


def data(tracker: Tracker, run: str, whole: Chain, entry: Entry) -> None:
    """Log the data set of a chain, with what `prepare` saw in it, and the receipt."""
    values, path = _receipt(tracker, run, entry, "prepare"), entry.path("out")
    _dataset(tracker, run, path, data_key(tracker.root, whole), "data", whole.name, values)


def comparison(tracker: Tracker, run: str, whole: Chain, entry: Entry) -> None:
    """Log the comparison: files, curves, rounds to ship, gates, the description, the view."""
    client = tracker.client
    commit = client.get_run(run).data.tags.get("mlflow.source.git.commit", "")
    about = describe(whole, reader(tracker.root), commit)
    found = read_comparison(tracker.root, entry)
    folder = tracker.root / entry.path("out")
    _files(tracker, run, entry.path("out"), "*", "comparison")
    client.log_dict(run, about.as_json(), "chain.json")
    tracker.complete(run, shown.compared(found))
    unhappy = [f"{j.verdict.state}: {j.stage} {j.verdict.gate}" for j in found.unhappy]
    tags = {f"reflow.{use}": choice.round for use, choice in found.ship.items()}
    tags |= {
        "reflow.gates": "; ".join(unhappy) or "ok",
        "reflow.metric": found.metric,
        "mlflow.reflow.fingerprint": found.fingerprint,
        "mlflow.note.content": pages.chain_note(
            tracker.experiment, whole, run, (folder / "rounds.md").read_text()
        ),
    }
    for name, value in tags.items():
        client.set_tag(run, name, value)
    state = pages.view(whole, found)
    for name in (pages.view_of(whole), links.LATEST):
        tracker.show(name, state)


def _receipt(tracker: Tracker, run: str, entry: Entry, name: str) -> dict[str, float]:
    """Log a metrics receipt as an artifact, and return what it holds."""
    values = metrics(tracker.root, entry)
    text = receipt(tracker.root, entry, entry.path("metrics")).read_text()
    tracker.client.log_text(run, text, f"receipts/{name}.json")
    return values


def _files(tracker: Tracker, run: str, folder: str, pattern: str, name: str) -> None:
    """Log the files of a folder as `name`, after checking them against dvc.lock."""
    read, files = reader(tracker.root), sorted((tracker.root / folder).glob(pattern))
    for file in files:
        read(f"{folder}/{file.name}")
    for file in files:
        tracker.client.log_artifact(run, str(file), name)


def _dataset(
    tracker: Tracker,
    run: str,
    path: str,
    digest: str,
    context: str,
    name: str = "",
    values: Mapping[str, float] | None = None,
) -> None:
    """Log a coupling as a data set by its DVC hash, or the data called `name` by their own hash.

    No row is read; `values` are shown as its profile.
    """
    from mlflow.data.dataset_source_registry import resolve_dataset_source
    from mlflow.data.meta_dataset import MetaDataset
    from mlflow.entities import Dataset, DatasetInput, InputTag

    with warnings.catch_warnings(action="ignore"):  # it warns that one class fits twice
        source = resolve_dataset_source(str(Path(tracker.root) / path))
    called = name or path.replace("/", "-")
    made = MetaDataset(source, name=called, digest=digest[:8])._to_mlflow_entity()  # type: ignore[abstract]
    rows = (values or {}).get("samples", (values or {}).get("pairs"))
    profile = {**({"num_rows": int(rows)} if rows else {}), **(values or {})}
    entity = Dataset(
        made.name, made.digest, made.source_type, made.source, made.schema,
        json.dumps(profile) if profile else None,
    )  # fmt: skip
    hashed = "reflow.data.key" if name else "dvc.md5"
    tags = [InputTag("mlflow.data.context", context), InputTag(hashed, digest)]
    tracker.client.log_inputs(run, [DatasetInput(entity, tags)])
    if not name:
        tracker.client.set_tag(run, f"dvc.{path}.md5", digest)
