"""The chains that MLflow holds, read back from the runs that `publish` made."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from flows.dag.about import Read
from flows.tracking.client import Tracker
from fmcore.settings import ReflowError


def published(root: Path) -> Iterator[tuple[str, dict[str, Any], Read]]:
    """Yield (name, description, reader of its files) of every chain in MLflow, newest first.

    The reader knows the files of the comparison, the pictures and the curves of straightness.
    """
    try:
        tracker = Tracker(root)
        runs = tracker.find(reflow__kind="chain")
    except Exception as error:  # whatever MLflow raises
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ReflowError(f"MLflow: {reason[:200]}; is the server of this project up?") from error
    for run in runs:
        text = _artifact(tracker, run.info.run_id, "chain.json")
        if text is not None:  # a chain that has not come to its comparison has none
            about = json.loads(text)
            yield str(run.info.run_name), about, _reader(tracker, run, about["files"])


def _reader(tracker: Tracker, chain: Any, files: dict[str, Any]) -> Read:
    """Return a reader by the paths that the chain's own dvc.yaml gave its files."""
    found = tracker.find(reflow__kind="round", reflow__chain=chain.data.tags["reflow.chain"])
    runs = {r.data.tags["reflow.round"]: r.info.run_id for r in found}

    def read(path: str) -> bytes | None:
        if path == files["comparison"]:
            return _artifact(tracker, chain.info.run_id, "comparison/rounds.json")
        for round_, own in files["rounds"].items():
            if path == own["straightness"]:
                return _curve(tracker, runs[round_])
            if path.startswith(f"{own['pictures']}/"):
                return _artifact(tracker, runs[round_], f"pictures/{Path(path).name}")
        return None

    return read


def _curve(tracker: Tracker, run: str) -> bytes:
    """Return the curve of straightness as csv, from the metric whose step is t in thousandths."""
    history = tracker.client.get_metric_history(run, "gap_over_t")
    points = sorted({(m.step / 1000, m.value) for m in history})
    return "\n".join(["t,gap", *(f"{t},{gap}" for t, gap in points)]).encode()


def _artifact(tracker: Tracker, run: str, path: str) -> bytes | None:
    try:
        return Path(tracker.client.download_artifacts(run, path)).read_bytes()
    except Exception:  # MLflow says "not there" in a different way for each kind of store
        return None
