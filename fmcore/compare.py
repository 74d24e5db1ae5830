"""Verb: put the rounds of a chain side by side."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd

from fmcore.settings import ReflowError, Settings
from fmcore.verdict import pictures
from fmcore.verdict.advice import next_round, ship
from fmcore.verdict.gates import Gates, judge

PLAIN = (
    "straightness", "straightness_rel", "transport_cost", "held_out_loss", "held_out_ratio",
    "budget_defect",
)  # fmt: skip


class RoundName(Settings):
    """A round, the coupling it trained on, and the round that made it, if one did.

    A student is trained for a number of steps, not for a velocity: its paths say nothing.
    """

    name: str
    coupling: str
    parent: str | None = None
    student: bool = False


def compare(
    rounds: list[RoundName],
    gates: Gates,
    *,
    metrics: Path,
    curves: Path,
    yardstick: Path,
    out: Path,
) -> None:
    """Write rounds.json, .csv, .md, the curves and figures of all rounds to the folder `out`.

    `metrics` holds what the stages measured (evaluate/<round>.json, train, couple), `curves` the
    straightness/<round>.csv, and `yardstick` the floor that every distance is read against.
    """
    about = json.loads((yardstick / "yardstick.json").read_text())
    name, floor = about["metric"], about["floor"][about["metric"]]
    table = [_round(r, metrics / "evaluate" / f"{r.name}.json", name) for r in rounds]
    out.mkdir(parents=True, exist_ok=True)
    verdicts = _verdicts(gates, rounds, metrics)
    whole = {
        "metric": name,
        "fingerprint": about["fingerprint"],
        "floor": floor,
        "rounds": table,
        "ship": {k: asdict(v) for k, v in ship(table, name).items()},
        "next": next_round(table, name, floor),
        "gates": verdicts,
    }
    (out / "rounds.json").write_text(json.dumps(whole, indent=2) + "\n")
    frame = pd.DataFrame([_line(row, name) for row in table])
    frame.to_csv(out / "rounds.csv", index=False, lineterminator="\n")
    (out / "rounds.md").write_text(_markdown(frame, whole))
    distances = {r["round"]: {int(k): v for k, v in r[name].items()} for r in table}
    pictures.fd_over_nfe(out / "fd_over_nfe.png", distances, floor, name)
    gaps = {r.name: pd.read_csv(curves / f"{r.name}.csv") for r in rounds}
    pictures.straightness_over_t(out / "straightness.png", gaps)
    _curves(out, distances, floor, gaps)


def _verdicts(gates: Gates, rounds: list[RoundName], metrics: Path) -> list[dict[str, Any]]:
    """Judge what every stage of the chain measured, in the order of the chain."""
    found = []
    couplings = [r.coupling for r in rounds]
    for stage, keys in (
        ("couple", list(dict.fromkeys(couplings))),
        ("train", [r.name for r in rounds]),
        ("evaluate", [r.name for r in rounds]),
    ):
        for key in keys:
            file = metrics / stage / f"{key}.json"
            if file.exists():  # the independent coupling has none
                judged = judge(gates, json.loads(file.read_text()))
                found += [{"stage": f"{stage}@{key}", **asdict(v)} for v in judged]
    return found


def _round(which: RoundName, file: Path, name: str) -> dict[str, Any]:
    try:
        values = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise ReflowError(f"{file}: no metrics of round {which.name}; run evaluate") from error
    by_nfe = {
        key.removeprefix(f"{name}/nfe_"): value
        for key, value in values.items()
        if key.startswith(f"{name}/nfe_")
    }
    most = max(by_nfe, key=int)
    return {
        "round": which.name,
        "coupling": which.coupling,
        "parent": which.parent,
        "student": which.student,
        name: by_nfe,
        "spread": values.get(f"{name}_sd/nfe_{most}", 0.0),
        **{key: value for key, value in values.items() if "/" not in key},
    }


def _line(row: dict[str, Any], name: str) -> dict[str, Any]:
    distances = {f"{name}@{nfe}": value for nfe, value in row[name].items()}
    plain = {key: row[key] for key in PLAIN if key in row}
    return {"round": row["round"], "coupling": row["coupling"], **distances, **plain}


def _markdown(frame: pd.DataFrame, whole: dict[str, Any]) -> str:
    def cell(value: object) -> str:
        return f"{value:.4g}" if isinstance(value, float) else str(value)

    lines = [" | ".join(frame.columns), " | ".join("---" for _ in frame.columns)]
    lines += [" | ".join(cell(v) for v in row) for row in frame.itertuples(index=False)]
    body = "\n".join(f"| {line} |" for line in lines)
    name, floor = whole["metric"], whole["floor"]
    notes = [f"{name} of real against real data (the floor): {floor:.4g}"]
    notes += [
        f"ship for {use}: {c['round']} at NFE {c['nfe']} ({name} {c['distance']:.4g})"
        for use, c in whole["ship"].items()
    ]
    notes += whole["next"]
    notes += [
        f"{g['state']}: {g['stage']}: {g['says']}" for g in whole["gates"] if g["state"] != "ok"
    ]
    return body + "\n\n" + "\n".join(f"- {note}" for note in notes) + "\n"


def _curves(
    out: Path, distances: dict[str, dict[int, float]], floor: float, gaps: dict[str, pd.DataFrame]
) -> None:
    """Write the curves of all rounds, a line for each point, for `dvc plots` and for anyone."""
    rows = [(name, nfe, d) for name, by_nfe in distances.items() for nfe, d in by_nfe.items()]
    rows += [("floor", nfe, floor) for nfe in sorted({nfe for _, nfe, _ in rows})]
    over_nfe = pd.DataFrame(rows, columns=["round", "nfe", "distance"])
    over_t = pd.concat([f[["t", "gap"]].assign(round=name) for name, f in gaps.items()])
    for name, frame in (("distance", over_nfe), ("straightness", over_t)):
        frame.to_csv(out / f"{name}.csv", index=False, lineterminator="\n")
