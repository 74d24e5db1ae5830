"""Verb: compare the rounds of a chain."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
from pydantic import TypeAdapter

from fmcore.checked import MEND, read_json, sha256
from fmcore.settings import ReflowError, Settings
from fmcore.verdict import cuts, keys, pictures
from fmcore.verdict.advice import next_round, ship
from fmcore.verdict.comparison import FILE, Comparison, Judged, RoundResult
from fmcore.verdict.errors import with_error
from fmcore.verdict.gates import Gates, absent, judge
from fmcore.verdict.replicates import lines as replicate_lines
from fmcore.verdict.replicates import replicates

PLAIN = (
    "straightness", "straightness_rel", "transport_cost", "held_out_loss", "held_out_ratio",
    "budget_defect", "raw_minus_ema",
)  # fmt: skip

YARDSTICK = "yardstick.json"
"""The file of a yardstick that compare reads (`measure.yardstick.FILE`)."""

NUMBER: TypeAdapter[int | float] = TypeAdapter(int | float)


class RoundName(Settings):
    """A round, the coupling it trained on, and the round that made this coupling, if any.

    A student learns a number of steps, not a velocity: the straightness of its paths has no
    meaning. Replicates of a round are averaged; what to ship is said of the rounds themselves.
    """

    name: str
    coupling: str
    parent: str | None = None
    student: bool = False
    replicate_of: str | None = None
    replicate: int | None = None


def compare(
    rounds: list[RoundName],
    gates: Gates,
    *,
    metrics: Path,
    fd: Path,
    curves: Path,
    yardstick: Path,
    out: Path,
) -> None:
    """Write rounds.json, .csv, .md, the curves and figures of all rounds to the folder `out`.

    `metrics` is the folder of the stages' metrics, `fd` that of the distances by cut, `curves` that
    of the straightness curves; the yardstick has the floor to which every distance is compared. The
    stage depends on whole folders, so the names inside are fixed:
    metrics/<verb>/<round or coupling>.json, fd/<round>.csv and curves/<round>.csv, as in dvc.yaml.
    """
    about = _about(yardstick / YARDSTICK)
    metric, floor = about["metric"], about["floor"][about["metric"]]
    results = [
        _result(r, metrics / "evaluate" / f"{r.name}.json", fd / f"{r.name}.csv", metric)
        for r in rounds
    ]
    own = [r for r in results if not r.replicate]
    found = Comparison(
        metric=metric,
        fingerprint=about["fingerprint"],
        floor=floor,
        rounds=results,
        ship=ship(own),
        next=next_round(own),
        gates=_judged(gates, rounds, metrics),
        floor_se=about["floor"].get(keys.error(metric)),
        resolves=about["resolves"],
        yardstick=sha256(yardstick / YARDSTICK)[:16],
        replicates=replicates(results),
    )
    out.mkdir(parents=True, exist_ok=True)
    (out / FILE).write_text(found.text())
    _frame(found).to_csv(out / "rounds.csv", index=False, lineterminator="\n")
    (out / "rounds.md").write_text(_markdown(found))
    pictures.fd_over_nfe(out / "fd_over_nfe.png", replace(found, rounds=own))
    gaps = {r.name: _gap(curves / f"{r.name}.csv") for r in rounds}
    pictures.straightness_over_t(out / "straightness.png", {r.name: gaps[r.name] for r in own})
    _curves(out, found, gaps)


def _judged(gates: Gates, rounds: list[RoundName], metrics: Path) -> list[Judged]:
    """Apply the gates to the metrics of every stage, in the order of the chain."""
    found = []
    couplings = [r.coupling for r in rounds]
    for stage, names in (
        ("couple", list(dict.fromkeys(couplings))),
        ("train", [r.name for r in rounds]),
        ("evaluate", [r.name for r in rounds]),
    ):
        for name in names:
            file = metrics / stage / f"{name}.json"
            if file.exists():  # the independent coupling has none
                values = _numbers(file)
                verdicts = [*judge(gates, values), *absent(stage, values)]
                found += [Judged(f"{stage}@{name}", verdict) for verdict in verdicts]
    return found


def _result(which: RoundName, file: Path, fd: Path, metric: str) -> RoundResult:
    values = _numbers(file)
    try:
        distances = keys.by_nfe(values, metric)
    except ValueError as error:
        raise ReflowError(f"{file}: not the metrics of a round ({error}); {MEND}") from error
    if not distances:
        raise ReflowError(
            f"{file}: round {which.name} has no {metric}, the distance of the current yardstick;"
            " run evaluate"
        )
    return RoundResult(
        name=which.name,
        coupling=which.coupling,
        parent=which.parent,
        student=which.student,
        distances=distances,
        metrics=keys.plain(values),
        cuts=cuts.by_nfe(cuts.read(fd), metric),
        replicate_of=which.replicate_of,
        replicate=which.replicate,
    )


def _about(file: Path) -> dict[str, Any]:
    try:
        return read_json(file)
    except OSError as error:
        raise ReflowError(f"{file}: no yardstick ({error.strerror}); run calibrate") from error


def _numbers(file: Path) -> dict[str, float]:
    """Read the metrics of a stage; the stage's guard has checked that they are as written."""
    try:
        found = json.loads(file.read_bytes())
        return {str(key): NUMBER.validate_python(value) for key, value in found.items()}
    except OSError as error:
        raise ReflowError(f"{file}: no metrics ({error.strerror}); run its stage") from error
    except (ValueError, AttributeError, RecursionError) as error:
        reason = str(error).splitlines()[0]
        raise ReflowError(f"{file}: damaged, no metrics ({reason}); {MEND}") from error


def _gap(file: Path) -> pd.DataFrame:
    """Read a curve of straightness; the stage's guard has checked that it is as written."""
    try:
        found = pd.read_csv(file)
        return found[["t", "gap"]].astype(float)
    except OSError as error:
        raise ReflowError(f"{file}: no curve ({error.strerror}); run evaluate") from error
    except (ValueError, KeyError, TypeError) as error:
        reason = str(error).splitlines()[0]
        raise ReflowError(f"{file}: damaged, no curve over t ({reason}); {MEND}") from error


def _frame(found: Comparison) -> pd.DataFrame:
    """Return the table of rounds.csv, a row for each round: every number, then its error."""
    table = found.table(PLAIN)
    names = [*(keys.column(found.metric, nfe) for nfe in table.nfes), *table.metrics]
    errors = [*(keys.column(keys.error(found.metric), nfe) for nfe in table.nfes)]
    errors += [keys.error(name) for name in table.metrics]
    columns = [name for pair in zip(names, errors, strict=True) for name in pair]
    rows = []
    for row in table.rows:
        pairs = zip(row.values, row.errors, strict=True)
        rows.append([row.round, row.coupling, *(number for pair in pairs for number in pair)])
    frame = pd.DataFrame(rows, columns=["round", "coupling", *columns])
    return frame.dropna(axis="columns", how="all")


def _markdown(found: Comparison) -> str:
    table = found.table(PLAIN)
    names = [*(keys.column(found.metric, nfe) for nfe in table.nfes), *table.metrics]
    lines = [" | ".join(["round", "coupling", *names])]
    lines.append(" | ".join("---" for _ in range(len(names) + 2)))
    lines += [" | ".join([row.round, row.coupling, *row.cells]) for row in table.rows]
    body = "\n".join(f"| {line} |" for line in lines)
    floor = with_error(found.floor, found.floor_se)
    notes = [f"{found.metric} of real against real data (the floor): {floor}"]
    if found.resolves is not None:
        notes.append(f"a paired test sees differences above {found.resolves:.2g}")
    notes += [
        f"ship for {use}: {c.round} at NFE {c.nfe} ({found.metric} {with_error(c.distance, c.se)})"
        for use, c in found.ship.items()
    ]
    notes += found.next
    notes += [judged.text for judged in found.unhappy]
    text = body + "\n\n" + "\n".join(f"- {note}" for note in notes) + "\n"
    if not found.replicates:
        return text
    title = "Over replicates: mean ± standard deviation; difference ± standard error, paired"
    return (
        f"{text}\n{title}\n\n" + "\n".join(replicate_lines(found.replicates, found.metric)) + "\n"
    )


def _curves(out: Path, found: Comparison, gaps: dict[str, pd.DataFrame]) -> None:
    """Write the curves of all rounds as CSV, a line per point, for `dvc plots` and other tools."""
    rows = [(r.name, nfe, d, r.error(nfe)) for r in found.rounds for nfe, d in r.distances.items()]
    rows += [("floor", nfe, found.floor, found.floor_se) for nfe in found.nfes]
    over_nfe = pd.DataFrame(rows, columns=["round", "nfe", "distance", "se"])
    over_t = pd.concat([f[["t", "gap"]].assign(round=name) for name, f in gaps.items()])
    for name, frame in (("distance", over_nfe), ("straightness", over_t)):
        frame.to_csv(out / f"{name}.csv", index=False, lineterminator="\n")
