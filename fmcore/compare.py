"""Verb: compare the rounds of a chain."""

import json
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
from pydantic import TypeAdapter

from fmcore.checked import MEND, read_json, sha256
from fmcore.settings import ReflowError, Settings
from fmcore.verdict import cuts, figures, headline, keys, spent
from fmcore.verdict.advice import guidance, next_round, ship
from fmcore.verdict.comparison import FILE, Comparison, Judged, RoundResult
from fmcore.verdict.errors import with_error
from fmcore.verdict.gates import Gates, absent, judge
from fmcore.verdict.replicates import lines as replicate_lines
from fmcore.verdict.replicates import replicates

PLAIN = (
    "straightness", "straightness_rel", "transport_cost", "held_out_loss", "held_out_ratio",
    "budget_defect", "raw_minus_ema", spent.TRAINING, spent.PAIRS,
)  # fmt: skip

YARDSTICK = "yardstick.json"
"""The file of a yardstick that compare reads (`measure.yardstick.FILE`)."""

NUMBER: TypeAdapter[int | float] = TypeAdapter(int | float)


class RoundName(Settings):
    """A round, the coupling it trained on, and the round that made this coupling, if any.

    A student learns a number of steps, not a velocity: the straightness of its paths has no
    meaning. Replicates of a round are averaged; what to ship is said of the rounds themselves.
    `needs` are the rounds that it was made from, by their pairs or their weights.
    """

    name: str
    coupling: str
    parent: str | None = None
    student: bool = False
    replicate_of: str | None = None
    replicate: int | None = None
    needs: tuple[str, ...] = ()


def compare(
    rounds: list[RoundName],
    gates: Gates,
    *,
    metrics: Path,
    fd: Path,
    curves: Path,
    yardstick: Path,
    out: Path,
    data: str = "",
) -> None:
    """Write rounds.json, .csv, .md, curves, figures and the few numbers of each round to `out`.

    `metrics` is the folder of the stages' metrics, `fd` that of the distances by cut, `curves` that
    of the straightness curves; the yardstick has the floor to which every distance is compared. The
    stage depends on whole folders, so the names inside are fixed:
    metrics/<verb>/<round or coupling>.json, fd/<round>.csv and curves/<round>.csv, as in dvc.yaml.
    `data` is what titles call the data set.
    """
    found = compared(rounds, gates, metrics=metrics, fd=fd, yardstick=yardstick)
    about, own = _about(yardstick / YARDSTICK), [r for r in found.rounds if not r.replicate]
    out.mkdir(parents=True, exist_ok=True)
    (out / FILE).write_text(found.text())
    headline.write(found, out / headline.FOLDER)
    _frame(found).to_csv(out / "rounds.csv", index=False, lineterminator="\n")
    (out / "rounds.md").write_text(_markdown(found))
    figures.fd_over_nfe(out / "fd_over_nfe.png", replace(found, rounds=own), data)
    _over_compute(out, found, int(about["n"]) * int(about["splits"]), data)
    gaps = {r.name: _gap(curves / f"{r.name}.csv") for r in rounds}
    shown = {r.name: gaps[r.name] for r in own}
    figures.straightness_over_t(out / "straightness.png", shown, data)
    _curves(out, found, gaps)


def compared(
    rounds: list[RoundName], gates: Gates, *, metrics: Path, fd: Path, yardstick: Path
) -> Comparison:
    """Compare rounds by the files of their stages, as in `compare`; nothing is written."""
    about = _about(yardstick / YARDSTICK)
    metric, floor = about["metric"], about["floor"][about["metric"]]
    scored = metrics / "evaluate"
    results = [_result(r, scored / f"{r.name}.json", fd / f"{r.name}.csv", metric) for r in rounds]
    own = [r for r in results if not r.replicate]
    _cost(results, rounds, metrics)
    return Comparison(
        metric=metric,
        fingerprint=about["fingerprint"],
        floor=floor,
        rounds=results,
        ship=ship(own, floor + (about["resolves"] or 0.0)),
        next=next_round(own),
        gates=_judged(gates, rounds, metrics),
        floor_se=about["floor"].get(keys.error(metric)),
        resolves=about["resolves"],
        yardstick=sha256(yardstick / YARDSTICK)[:16],
        replicates=replicates(results),
    )


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
    every = cuts.read(fd)
    return RoundResult(
        name=which.name,
        coupling=which.coupling,
        parent=which.parent,
        student=which.student,
        distances=distances,
        metrics=keys.plain(values),
        replicate_of=which.replicate_of,
        replicate=which.replicate,
        cuts=cuts.by_nfe(every, metric),
        samplers=spent.by_sampler(every, metric, values),
    )


def _cost(results: list[RoundResult], rounds: list[RoundName], metrics: Path) -> None:
    """Add to the metrics of each round what it cost, its ancestors included."""

    def read(stage: str, names: Iterable[str], key: str) -> dict[str, float]:
        files = {name: metrics / stage / f"{name}.json" for name in names}
        values = {name: _numbers(file) for name, file in files.items() if file.exists()}
        return {name: own[key] for name, own in values.items() if key in own}

    made = {r.name: spent.Made(r.coupling, r.needs) for r in rounds}
    training = read("train", made, spent.TRAINING)
    pairs = read("couple", {r.coupling for r in rounds}, spent.PAIRS)
    cost = spent.cumulated(made, training, pairs)
    for result in results:
        own = cost.get(result.name, {})
        result.metrics.update({key: float(value) for key, value in own.items()})


def _samplers(found: Comparison, samples: int) -> pd.DataFrame:
    """Return the table of samplers.csv: a row for each round and sampler, with its compute.

    `flops_sampling` is that of `samples` samples, as many as the distance was measured on.
    """
    rows: list[dict[str, Any]] = []
    for r in found.rounds:
        for sampler, values in r.samplers.items():
            row: dict[str, Any] = {"round": r.name, "sampler": sampler, **values}
            made = [r.metrics.get(key) for key in (spent.TRAINING, spent.PAIRS)]
            each = r.metrics.get(spent.EVALUATION)
            if each is not None:
                row["flops_per_sample"] = values["nfe"] * each
            if each is not None and None not in made:
                row |= dict(zip((spent.TRAINING, spent.PAIRS), made, strict=True))
                row["flops_sampling"] = row["flops_per_sample"] * samples
                row["flops_total"] = sum(filter(None, made)) + row["flops_sampling"]
            rows.append(row)
    return pd.DataFrame(rows)


def _over_compute(out: Path, found: Comparison, samples: int, data: str) -> None:
    """Write samplers.csv and, where the compute is known, the figure of the rounds themselves."""
    samplers = _samplers(found, samples)
    samplers.to_csv(out / "samplers.csv", index=False, lineterminator="\n")
    if "flops_total" in samplers:
        shown = samplers[samplers["round"].isin([r.name for r in found.rounds if not r.replicate])]
        figures.quality_over_compute(out / "quality_over_compute.png", shown, found, data)


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
        notes.append(f"near the floor a paired test sees differences above {found.resolves:.2g}")
    notes += [
        f"ship for {use}: {c.round} at NFE {c.nfe} ({found.metric} {with_error(c.distance, c.se)})"
        for use, c in found.ship.items()
    ]
    notes += found.next + guidance(found.rounds)
    notes += [judged.text for judged in found.unhappy]
    if others := spent.sampler_table(found):
        cells = [others[0], ["---"] * len(others[0]), *others[1:]]
        body += "\n\n" + "\n".join(f"| {' | '.join(row)} |" for row in cells)
    text = body + "\n\n" + "\n".join(f"- {note}" for note in notes) + "\n"
    if not found.replicates:
        return text
    title = "Over replicates: mean ± standard deviation; difference ± standard error, paired"
    return (
        f"{text}\n{title}\n\n" + "\n".join(replicate_lines(found.replicates, found.metric)) + "\n"
    )


def _curves(out: Path, found: Comparison, gaps: dict[str, pd.DataFrame]) -> None:
    """Write the curves of all rounds as CSV, a line per point, for `dvc plots` and other tools."""
    ordered = sorted(found.rounds, key=lambda r: bool(r.replicate))  # as their colours are given
    rows = [(r.name, nfe, d, r.error(nfe)) for r in ordered for nfe, d in r.distances.items()]
    rows += [("floor", nfe, found.floor, found.floor_se) for nfe in found.nfes]
    over_nfe = pd.DataFrame(rows, columns=["round", "nfe", "distance", "se"])
    by_order = [(r.name, gaps[r.name]) for r in ordered]
    over_t = pd.concat([f[["t", "gap"]].assign(round=name) for name, f in by_order])
    for name, frame in (("distance", over_nfe), ("straightness", over_t)):
        frame.to_csv(out / f"{name}.csv", index=False, lineterminator="\n")
