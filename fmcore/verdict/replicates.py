"""Replicates of rounds: mean and spread over them, and a paired test against a baseline round.

Replicates share the data, the yardstick and the noise of the evaluation, so the spread over them is
that of the training. Two rounds are compared replicate by replicate: those of one number share what
came before, the draws of a common teacher and its pairs.
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean, stdev
from typing import TYPE_CHECKING

from fmcore.settings import ReflowError
from fmcore.verdict.errors import paired

if TYPE_CHECKING:
    from fmcore.verdict.comparison import RoundResult

Number = int | float


@dataclass(frozen=True)
class Spread:
    """A number over replicates: its mean, its standard deviation with n - 1, None for one.

    `gap` is the mean difference from the baseline over replicates of equal number, `gap_se` its
    standard error, `p` the chance of so large a difference on either side if the true one is 0.
    """

    mean: Number
    sd: Number | None = None
    gap: Number | None = None
    gap_se: Number | None = None
    p: Number | None = None


@dataclass(frozen=True)
class Replicates:
    """A round over its `count` replicates: the distance by NFE, the other metrics by name.

    `pairs` counts the replicates that the baseline has as well, by number.
    """

    round: str
    count: int
    baseline: str | None
    pairs: int
    distances: dict[int, Spread]
    metrics: dict[str, Spread]

    def as_dict(self) -> dict[str, object]:
        """Return it as JSON holds it."""
        distances = {str(nfe): asdict(found) for nfe, found in self.distances.items()}
        return {**asdict(self), "distances": distances}

    def points(self, metric: str) -> Iterator[tuple[str, float, int]]:
        """Yield (name, value, NFE) of its distances, for curves over NFE."""
        for nfe, found in self.distances.items():
            for what in ("mean", "sd", "gap", "gap_se"):
                if (value := getattr(found, what)) is not None:
                    yield f"replicates/{self.round}/{metric}_{what}", float(value), nfe


def replicates(rounds: Sequence["RoundResult"], baseline: str | None = None) -> list[Replicates]:
    """Return every round that has replicates, compared with the round `baseline`.

    Without one a round is compared with the first that trained on the same coupling; that one, with
    the round that made the coupling. Raises ReflowError for a baseline that is no round.
    """
    first = {r.name: r for r in rounds if not r.replicate}
    if baseline is not None and baseline not in first:
        raise ReflowError(f"--baseline {baseline}: no such round; there are: {', '.join(first)}")
    numbered: dict[str, dict[int, RoundResult]] = {name: {1: r} for name, r in first.items()}
    for r in rounds:
        if r.replicate and r.replicate_of in numbered:
            numbered[r.replicate_of][r.replicate] = r
    found = []
    for name, mine in numbered.items():
        if len(mine) > 1:
            against = baseline or _baseline(first[name], list(first.values()))
            beside = numbered.get(against, {}) if against and against != name else {}
            found.append(_compared(name, mine, against if beside else None, beside))
    return found


def _baseline(own: "RoundResult", rounds: Sequence["RoundResult"]) -> str | None:
    siblings = [r.name for r in rounds if r.coupling == own.coupling and not r.student]
    return siblings[0] if siblings and siblings[0] != own.name else own.parent


def _compared(
    name: str,
    mine: dict[int, "RoundResult"],
    baseline: str | None,
    beside: dict[int, "RoundResult"],
) -> Replicates:
    both = sorted({*mine} & {*beside})
    everyone = list(mine.values())

    def spread(values: dict[int, Number | None], others: dict[int, Number | None]) -> Spread | None:
        own = [v for v in values.values() if v is not None]
        if len(own) < len(everyone):
            return None
        mean, sd = fmean(own), stdev(own)
        pairs = [(values[k], others.get(k)) for k in both]
        known = [(a, b) for a, b in pairs if a is not None and b is not None]
        if not known:
            return Spread(mean, sd)
        test = paired([a for a, _ in known], [b for _, b in known])
        p = None if test.p is None else min(1.0, 2 * min(test.p, 1 - test.p))
        return Spread(mean, sd, test.mean, test.se, p)

    nfes = sorted({nfe for r in everyone for nfe in r.distances})
    metrics = list(dict.fromkeys(m for r in everyone for m in r.metrics if not m.endswith("_se")))
    distances = {
        nfe: spread(
            {k: r.at(nfe) for k, r in mine.items()}, {k: r.at(nfe) for k, r in beside.items()}
        )
        for nfe in nfes
    }
    other = {
        m: spread(
            {k: r.metrics.get(m) for k, r in mine.items()},
            {k: r.metrics.get(m) for k, r in beside.items()},
        )
        for m in metrics
    }
    return Replicates(
        round=name,
        count=len(everyone),
        baseline=baseline,
        pairs=len(both),
        distances={nfe: found for nfe, found in distances.items() if found},
        metrics={m: found for m, found in other.items() if found},
    )


def lines(groups: Sequence[Replicates], metric: str) -> list[str]:
    """Return the replicates as a Markdown table: mean ± sd, and the difference ± its error (p)."""
    nfes = sorted({nfe for g in groups for nfe in g.distances})
    head = ["round", "n", *(f"{metric}@{nfe}" for nfe in nfes), "against"]
    head += [f"difference@{nfe}" for nfe in nfes]
    rows = [head, ["---"] * len(head)]
    for g in groups:
        cells = [g.distances.get(nfe) for nfe in nfes]
        against = f"{g.baseline} ({g.pairs} pairs)" if g.baseline else ""
        rows.append(
            [g.round, str(g.count), *(spread_text(c) for c in cells), against]
            + [gap_text(c) for c in cells]
        )
    return ["| " + " | ".join(row) + " |" for row in rows]


def spread_text(found: Spread | None) -> str:
    """Write a mean over replicates with its standard deviation: `12.7 ± 0.4`."""
    return "" if found is None or found.sd is None else f"{found.mean:.4g} ± {found.sd:.2g}"


def gap_text(found: Spread | None) -> str:
    """Write a difference with its standard error and p: `-0.35 ± 0.12 (p 0.04)`."""
    if found is None or found.gap is None:
        return ""
    if found.gap_se is None or found.p is None:
        return f"{found.gap:+.3g} (one pair: not decided)"
    return f"{found.gap:+.3g} ± {found.gap_se:.2g} (p {found.p:.2g})"
