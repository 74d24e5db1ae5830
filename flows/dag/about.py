"""A chain described as data: its settings, its commit, and where its couplings come from."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from flows.dag.chain import Chain, arguments, md5_of, settings_of

Read = Callable[[str], bytes | None]
"""Reads a file of the project by its path; None where there is none."""


def read_file(root: Path, path: str) -> bytes | None:
    """Read a file of the workspace."""
    file = root / path
    return file.read_bytes() if file.is_file() else None


def describe(whole: Chain, read: Read, commit: str) -> dict[str, Any]:
    """Return what identifies a chain and its couplings, as JSON can hold it."""
    settings = dict(whole.settings)
    seed = settings.pop("seed", None)
    return {
        "key": whole.key,
        "recipe": whole.recipe,
        "data": whole.name,
        "seed": seed,
        "commit": commit,
        "settings": settings,
        "couplings": provenance(whole, read),
        "files": _files(whole),
    }


def _files(whole: Chain) -> dict[str, Any]:
    """Return where dvc.yaml keeps the comparison, and the pictures and curve of each round."""
    rounds = {}
    for round_ in whole.rounds:
        if round_.evaluate:
            words = arguments(round_.evaluate["cmd"])
            rounds[round_.name] = {"pictures": words["out"], "straightness": words["straightness"]}
    folder = arguments(whole.compare["cmd"])["out"] if whole.compare else None
    return {"comparison": f"{folder}/rounds.json" if folder else None, "rounds": rounds}


def provenance(whole: Chain, read: Read) -> list[dict[str, Any]]:
    """Return for each coupling who made it, how, who trains on it, and DVC's hash of it."""
    rows = []
    for name, entry in whole.entries.items():
        if name != "prepare" and not name.startswith("couple@"):
            continue
        words = arguments(entry["cmd"])
        path = words["out"]
        settings = settings_of(entry).get(f"couplings.{name.removeprefix('couple@')}", {})
        measured = json.loads(read(words["metrics"]) or b"{}") if "metrics" in words else {}
        out = next(o for o in entry["outs"] if o["path"] == path)
        rows.append(
            {
                "coupling": path.rsplit("/", 1)[-1],
                "path": path,
                "round": settings.get("round"),
                "trains": [
                    r.name for r in whole.rounds
                    if r.train and arguments(r.train["cmd"])["coupling"] == path
                ],
                "md5": md5_of(entry, path),
                "bytes": out.get("size"),
                "files": out.get("nfiles"),
                "solver": settings.get("solver"),
                "pairs": measured.get("pairs"),
                "nfe": measured.get("nfe"),
                "solver_gap_rms": measured.get("solver_gap_rms"),
                "transport_cost": measured.get("transport_cost"),
            }
        )  # fmt: skip
    return rows
