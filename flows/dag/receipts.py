"""Receipts: the small outputs of stages, checked against dvc.lock; and what a round cost.

A receipt is a metrics file (json) or a curve (csv). It holds nothing that changes from run to run,
so it can be published at any time, anywhere, any number of times. The seconds that a stage took do
change, so they are in no receipt: this machine keeps them in .reflow/timings.json.
"""

import csv
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

from flows.dag.chain import Round
from flows.dag.lineage import lock_entries
from flows.dag.lock import Entry
from fmcore.checked import read_json, sealed
from fmcore.settings import ReflowError
from fmcore.verdict.comparison import FILE, Comparison

TIMINGS = "timings.json"


def receipt(root: Path, entry: Entry, path: str) -> Path:
    """Return the file of a receipt, after checking its hash against dvc.lock."""
    file = root / path
    if not file.is_file():
        raise ReflowError(f"{path}: missing; `reflow run` or `dvc pull` brings it back")
    if hashlib.md5(file.read_bytes(), usedforsecurity=False).hexdigest() != entry.md5(path):
        raise ReflowError(
            f"{path}: not the file that dvc.lock records; `reflow run`, or `reflow verify --heal`,"
            " brings it back"
        )
    return file


def metrics(root: Path, entry: Entry) -> dict[str, float]:
    """Read the metrics receipt of a stage."""
    found = json.loads(receipt(root, entry, entry.path("metrics")).read_text())
    return {k: float(v) for k, v in found.items()}


def curve(root: Path, entry: Entry, name: str) -> list[dict[str, float]]:
    """Read a curve receipt, by its name in the stage's command; empty cells are left out."""
    with receipt(root, entry, entry.path(name)).open() as file:
        return [{k: float(v) for k, v in row.items() if v} for row in csv.DictReader(file)]


def read_comparison(root: Path, entry: Entry) -> Comparison:
    """Read the comparison of a chain's rounds."""
    path = f"{entry.path('out')}/{FILE}"
    try:
        return Comparison.read((root / path).read_bytes(), path)
    except OSError:
        raise ReflowError(f"{path}: missing; `reflow run` or `dvc pull` brings it back") from None


def spent(root: Path, round_: Round) -> dict[str, float]:
    """Return what a round cost: network evaluations, and seconds if this machine ran it.

    A training step takes one evaluation for each row of its batch; a coupling takes its NFE for
    each pair, and twice its NFE more for each audited pair.
    """
    from fmcore.training.fit import Train

    found: dict[str, float] = {}
    stages = {f"train@{round_.name}": round_.train, f"evaluate@{round_.name}": round_.evaluate}
    stages |= {f"couple@{name}": entry for name, entry in round_.couples.items()}
    clock = timings(root)
    for stage, entry in stages.items():
        if entry is None:
            continue
        kind = stage.split("@")[0]
        if seconds := clock.get((stage, entry.digest)):
            found[f"spent/{kind}_seconds"] = found.get(f"spent/{kind}_seconds", 0) + seconds
        if kind == "train":
            batch = entry.setting(f"rounds.{round_.name}", "train", "batch")
            rows = batch if isinstance(batch, int) else Train.model_fields["batch"].default
            found["spent/train_evaluations"] = metrics(root, entry)["steps"] * rows
        if kind == "couple":
            values = metrics(root, entry)
            pairs = values["pairs"] + 2 * values["audited"]
            name = "spent/couple_evaluations"
            found[name] = found.get(name, 0) + pairs * values.get("nfe", 0)  # 0: made elsewhere
    return found


def timings(root: Path) -> dict[tuple[str, str], float]:
    """Return the seconds that stages took on this machine, by stage and digest of its entry."""
    try:
        found = read_json(root / ".reflow" / TIMINGS)
        return {(stage, row["entry"]): float(row["seconds"]) for stage, row in found.items()}
    except (OSError, ReflowError, TypeError, KeyError):
        return {}  # only how long something took is lost


def note_timings(root: Path, seconds: Mapping[str, float]) -> None:
    """Save how long stages took; not in a DVC output, because times change from run to run.

    Each time is saved with the digest of the stage's entry in dvc.lock, so that it is not used for
    another run.
    """
    if not seconds:
        return
    known = {s: {"entry": e, "seconds": t} for (s, e), t in timings(root).items()}
    try:
        entries = lock_entries(root)
    except ReflowError:
        return  # an interrupted run may leave dvc.lock half-written; other code reports that
    new = {
        s: {"entry": entries[s].digest, "seconds": t} for s, t in seconds.items() if s in entries
    }
    path = root / ".reflow" / TIMINGS
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(sealed({**known, **new}), indent=2) + "\n")
