"""The chains that MLflow holds, read back from the runs that `publish` made."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from flows.dag.description import Description, Files, Read
from flows.tracking.client import Tracker, answers
from flows.tracking.shown import GAP, OLD_GAP
from fmcore.settings import ReflowError
from fmcore.verdict.comparison import FILE


def published(
    root: Path, skipped: Callable[[str], object]
) -> Iterator[tuple[str, Description, Read]]:
    """Yield (name, description, reader of its files) of every chain in MLflow, newest first.

    A chain whose description is damaged is left out, and told to `skipped` in one line.
    The reader knows the files of the comparison, the pictures and the curves of straightness.
    Raises ReflowError if MLflow does not answer, rather than leave out a chain.
    """
    with answers():
        tracker = Tracker(root)
        runs = tracker.find(reflow__kind="chain")
    for run in runs:
        content = _artifact(tracker, run.info.run_id, "chain.json")
        if content is not None:  # a chain without a comparison yet has none
            name = str(run.info.run_name)
            try:
                about = Description.read(content, f"MLflow's chain {name}: chain.json")
            except ReflowError as error:
                skipped(f"left out: {error}")
                continue
            yield name, about, _reader(tracker, run, about.files)


def _reader(tracker: Tracker, chain: Any, files: Files) -> Read:
    """Return a function that reads files by the paths in the dvc.yaml of that chain."""
    key = chain.data.tags["reflow.chain"]
    with answers():
        found = tracker.find(reflow__kind="round", reflow__chain=key)
    runs = {r.data.tags["reflow.round"]: str(r.info.run_id) for r in found}

    def read(path: str) -> bytes | None:
        if path == files.comparison:
            return _artifact(tracker, chain.info.run_id, f"comparison/{FILE}")
        for round_, own in files.rounds.items():
            if round_ not in runs:
                continue
            if path == own.straightness:
                return _curve(tracker, runs[round_])
            if path.startswith(f"{own.pictures}/"):
                return _artifact(tracker, runs[round_], f"pictures/{Path(path).name}")
        return None

    return read


def _curve(tracker: Tracker, run: str) -> bytes:
    """Return the curve of straightness as csv, from the metric whose step is t in thousandths."""
    with answers():
        history = tracker.points(run, names=(GAP,)) or tracker.points(run, names=(OLD_GAP,))
    points = sorted({(step / 1000, value) for _, value, step in history})
    return "\n".join(["t,gap", *(f"{t},{gap}" for t, gap in points)]).encode()


def _artifact(tracker: Tracker, run: str, path: str) -> bytes | None:
    """Return an artifact of a run; None if the run has none of that name.

    Each kind of store reports a missing file in its own way, so the folder is listed first: an
    error after that is a real error.
    """
    folder = path.rpartition("/")[0] or None
    with answers():
        if path not in {item.path for item in tracker.client.list_artifacts(run, folder)}:
            return None
        return Path(tracker.client.download_artifacts(run, path)).read_bytes()
