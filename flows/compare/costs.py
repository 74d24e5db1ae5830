"""What the rounds of a chain cost, as a table for people."""

from collections.abc import Mapping

from fmcore.verdict.comparison import Comparison
from fmcore.verdict.spent import PAIRS, TRAINING

COLUMNS = {
    "training": "spent/train_seconds",
    "its evaluations": "spent/train_evaluations",
    "pairs": "spent/couple_seconds",
    "their evaluations": "spent/couple_evaluations",
    "measuring": "spent/evaluate_seconds",
}
FLOPS = "FLOPs with all before"


def spent_table(found: Comparison, spent: Mapping[str, Mapping[str, float]]) -> list[list[str]]:
    """Return a table of text, its header first: seconds, network evaluations, FLOPs of each round.

    A column that no round has is left out; the last row has the sums. No rows if nothing is known.
    """
    rounds = [r.name for r in found.rounds]
    columns = {c: key for c, key in COLUMNS.items() if any(key in spent.get(r, {}) for r in rounds)}
    flops = {
        r.name: r.metrics[TRAINING] + r.metrics[PAIRS]
        for r in found.rounds
        if TRAINING in r.metrics and PAIRS in r.metrics
    }
    if not columns and not flops:
        return []
    rows = [
        [name, *(_cell(key, spent.get(name, {}).get(key)) for key in columns.values())]
        for name in rounds
    ]
    sums = ["all", *(_cell(key, _sum(spent, key)) for key in columns.values())]
    table = [["round", *columns], *rows, *([sums] if columns else [])]
    if not flops:
        return table
    cells = [FLOPS, *(f"{flops[r]:.2g}" if r in flops else "" for r in rounds), ""]
    return [[*row, cell] for row, cell in zip(table, cells, strict=False)]


def _sum(spent: Mapping[str, Mapping[str, float]], key: str) -> float:
    return sum(own.get(key, 0.0) for own in spent.values())


def _cell(key: str, value: float | None) -> str:
    if value is None:
        return ""
    return duration(value) if key.endswith("_seconds") else counted(value)


def duration(seconds: float) -> str:
    """Write a time: seconds, then minutes, then hours.

    >>> [duration(s) for s in (0.34, 42.4, 125, 3600 * 5.5)]
    ['0.3 s', '42 s', '2 min 05 s', '5 h 30 min']
    """
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def counted(number: float) -> str:
    """Write a large number in thousands, millions or billions.

    >>> [counted(n) for n in (640, 128000, 1280000, 3.2e10)]
    ['640', '128 k', '1.28 M', '32 G']
    """
    for size, name in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if number >= size:
            return f"{number / size:.3g}{name}"
    return f"{number:.0f}"
