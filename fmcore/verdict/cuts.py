"""The metrics of a round on every cut: curves/fd/<round>.csv, a row for each sampler and cut."""

import csv
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fmcore.checked import MEND
from fmcore.settings import ReflowError
from fmcore.verdict import keys
from fmcore.verdict.errors import summary

FIXED = ("sampler", "nfe", "cut")
"""The columns before those of the metrics."""


@dataclass(frozen=True)
class SamplerCuts:
    """What one sampler scores: its name (euler_4, heun_18), its NFE, the metrics of every cut.

    The NFE is that of one sample as it was counted: guidance counts twice, and for a solver that
    adapts its steps it is the mean. `published` are metrics of all samples together, by the
    protocols of papers; they are not in the csv.
    """

    sampler: str
    nfe: float
    cuts: Sequence[dict[str, float]]
    published: dict[str, float] = field(default_factory=dict)

    @property
    def euler(self) -> bool:
        """Whether it is Euler with even steps: those make the curve over NFE."""
        return self.sampler.startswith("euler_")

    def flat(self) -> dict[str, float]:
        """Return every metric and its standard error by the key that metrics/evaluate has."""
        found = {**summary(self.cuts), **self.published}
        if self.euler:
            return {keys.at_nfe(name, round(self.nfe)): value for name, value in found.items()}
        flat = {keys.at_sampler(name, self.sampler): value for name, value in found.items()}
        return {**flat, keys.at_sampler("nfe", self.sampler): self.nfe}


def write(path: Path, rows: Sequence[SamplerCuts]) -> None:
    """Write the csv; a metric that a cut lacks is an empty cell."""
    path.parent.mkdir(parents=True, exist_ok=True)
    names = list(dict.fromkeys(name for row in rows for cut in row.cuts for name in cut))
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, [*FIXED, *names], lineterminator="\n")
        writer.writeheader()
        for row in rows:
            for i, cut in enumerate(row.cuts):
                writer.writerow({"sampler": row.sampler, "nfe": row.nfe, "cut": i, **cut})


def read(path: Path) -> list[SamplerCuts]:
    """Read the csv; the stage's guard has checked that it is as written."""
    found: dict[tuple[str, float], list[dict[str, float]]] = {}
    try:
        with path.open(newline="") as file:
            for row in csv.DictReader(file):
                sampler, nfe, cut = (row.pop(name) for name in FIXED)
                cuts = found.setdefault((sampler, float(nfe)), [])
                if int(cut) != len(cuts):
                    raise ValueError(f"{sampler}: cut {len(cuts)} expected, got {cut}")
                cuts.append({name: float(value) for name, value in row.items() if value})
    except OSError as error:
        raise ReflowError(f"{path}: no values by cut ({error.strerror}); run evaluate") from error
    except (ValueError, KeyError, TypeError, AttributeError, csv.Error) as error:
        reason = str(error).splitlines()[0]
        raise ReflowError(f"{path}: damaged, no values by cut ({reason}); {MEND}") from error
    return [SamplerCuts(sampler, nfe, cuts) for (sampler, nfe), cuts in found.items()]


def by_nfe(rows: Sequence[SamplerCuts], metric: str) -> dict[int, list[float]]:
    """Return the values of a metric, one a cut, by the NFE of Euler steps."""
    return {
        round(row.nfe): [cut.get(metric, math.nan) for cut in row.cuts]
        for row in rows
        if row.euler and any(metric in cut for cut in row.cuts)
    }
