"""Verb: put the rounds of a chain side by side."""

import json
from pathlib import Path
from typing import Any

import pandas as pd

from fmcore import pictures
from fmcore.settings import ReflowError, Settings

PLAIN = (
    "straightness", "straightness_rel", "transport_cost", "held_out_loss", "held_out_ratio",
    "budget_defect",
)  # fmt: skip


class RoundName(Settings):
    """A round and the coupling it trained on, as the comparison names them."""

    name: str
    coupling: str


def compare(
    rounds: list[RoundName], metrics: Path, curves: Path, yardstick: Path, out: Path
) -> None:
    """Write rounds.json, rounds.csv, rounds.md and the figures of all rounds to the folder `out`.

    `metrics` holds the <round>.json of evaluation, `curves` the straightness/<round>.csv, and
    `yardstick` the floor that every distance is read against.
    """
    about = json.loads((yardstick / "yardstick.json").read_text())
    name, floor = about["metric"], about["floor"][about["metric"]]
    table = [_round(r, metrics / f"{r.name}.json", name) for r in rounds]
    out.mkdir(parents=True, exist_ok=True)
    whole = {"metric": name, "fingerprint": about["fingerprint"], "floor": floor, "rounds": table}
    (out / "rounds.json").write_text(json.dumps(whole, indent=2) + "\n")
    frame = pd.DataFrame([_line(row, name) for row in table])
    frame.to_csv(out / "rounds.csv", index=False, lineterminator="\n")
    (out / "rounds.md").write_text(_markdown(frame, name, floor))
    distances = {r["round"]: {int(k): v for k, v in r[name].items()} for r in table}
    pictures.fd_over_nfe(out / "fd_over_nfe.png", distances, floor, name)
    gaps = {r.name: _gap(curves / f"{r.name}.csv") for r in rounds}
    pictures.straightness_over_t(out / "straightness.png", gaps)


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
    return {
        "round": which.name,
        "coupling": which.coupling,
        name: by_nfe,
        **{key: value for key, value in values.items() if "/" not in key},
    }


def _line(row: dict[str, Any], name: str) -> dict[str, Any]:
    distances = {f"{name}@{nfe}": value for nfe, value in row[name].items()}
    plain = {key: row[key] for key in PLAIN if key in row}
    return {"round": row["round"], "coupling": row["coupling"], **distances, **plain}


def _markdown(frame: pd.DataFrame, name: str, floor: float) -> str:
    def cell(value: object) -> str:
        return f"{value:.4g}" if isinstance(value, float) else str(value)

    lines = [" | ".join(frame.columns), " | ".join("---" for _ in frame.columns)]
    lines += [" | ".join(cell(v) for v in row) for row in frame.itertuples(index=False)]
    body = "\n".join(f"| {line} |" for line in lines)
    return f"{body}\n\n{name} of real against real data (the floor): {floor:.4g}\n"


def _gap(file: Path) -> tuple[Any, Any]:
    frame = pd.read_csv(file)
    import torch

    return torch.tensor(frame["t"].to_numpy()), torch.tensor(frame["gap"].to_numpy())
