"""Means over cuts with their standard errors, intervals by Student's t, and paired tests.

A metric is measured once on each of K cuts (independent noise, independent random halves of the
data), so its K values are independent draws given the data, the features and the model. Two rounds
share noise and halves cut by cut, so their difference is taken per cut: what both have in common
cancels.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

from fmcore.verdict import keys

LEVEL = 0.05
"""Chance of a false alarm of a one-sided test: a difference is seen below this p."""
POWER = 0.8
"""Chance with which a difference of the size `resolvable` is seen."""


def standard_error(values: Sequence[float]) -> float | None:
    """Return sd / sqrt(K) of K independent values, sd with K - 1; None for fewer than two.

    >>> standard_error([1.0, 3.0])
    1.0
    """
    return stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None


def quantile(share: float, cuts: int) -> float:
    """Return the quantile of Student's t with `cuts` - 1 degrees of freedom.

    >>> round(quantile(0.975, 5), 3)
    2.776
    """
    from scipy.special import stdtrit  # its import takes a third of a second

    return float(stdtrit(cuts - 1, share))


def interval(values: Sequence[float], share: float = 0.95) -> tuple[float, float]:
    """Return the interval that covers the expected value with probability `share`.

    It is the whole line for fewer than two values.
    """
    error = standard_error(values)
    if error is None:
        return -math.inf, math.inf
    half = quantile((1 + share) / 2, len(values)) * error
    return fmean(values) - half, fmean(values) + half


@dataclass(frozen=True)
class Difference:
    """The mean difference of two rounds over K cuts, its standard error, and a one-sided p.

    `p` is the chance of so large a difference, or a larger one, if the true one is 0 or less; `se`
    and `p` are None where there are fewer than two cuts.
    """

    mean: float
    se: float | None
    p: float | None

    @property
    def seen(self) -> bool:
        """Whether the first is larger than the second beyond chance.

        Without an error (a single cut) any larger mean counts.
        """
        return self.mean > 0 and (self.p is None or self.p < LEVEL)


def paired(first: Sequence[float], second: Sequence[float]) -> Difference:
    """Compare two rounds cut by cut: is the first larger? The paired t test of Student (1908).

    >>> paired([8.99, 8.40, 9.00, 5.71], [8.38, 6.50, 7.95, 4.08]).seen
    True
    """
    if len(first) != len(second):
        raise ValueError(f"{len(first)} and {len(second)} cuts cannot be paired")
    gaps = [a - b for a, b in zip(first, second, strict=True)]
    mean, error = fmean(gaps), standard_error(gaps)
    if error is None:
        return Difference(mean, None, None)
    if error == 0:
        return Difference(mean, 0.0, 0.5 if mean == 0 else float(mean < 0))
    from scipy.special import stdtr  # its import takes a third of a second

    return Difference(mean, error, float(stdtr(len(gaps) - 1, -mean / error)))


def resolvable(floor: Sequence[float], cuts: int) -> float | None:
    """Return the smallest difference of two rounds near the floor that a paired test sees.

    (t_0.95 + t_0.8) sqrt(2) sd / sqrt(K) with K = `cuts`, quantiles of Student's t with K - 1
    degrees of freedom: seen with probability 0.8 at a false alarm in 20. sd is that of the values
    of `floor`, one a cut; sqrt(2) is for two rounds whose errors have nothing in common. Rounds
    that err alike are told apart more finely; far from the floor, where sd is larger, rounds that
    err in different ways are told apart less. None where there is one cut.
    """
    if cuts < 2 or len(floor) < 2:
        return None
    both = quantile(1 - LEVEL, cuts) + quantile(POWER, cuts)
    return both * math.sqrt(2 / cuts) * stdev(floor)


def summary(cuts: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """Return the mean of every metric over the cuts that have it, and its error as `<metric>_se`.

    A metric of a single cut has no error.

    >>> summary([{"fd": 1.0, "fd_inf": 0.5}, {"fd": 3.0}])
    {'fd': 2.0, 'fd_se': 1.0, 'fd_inf': 0.5}
    """
    values: dict[str, list[float]] = {}
    for cut in cuts:
        for name, value in cut.items():
            values.setdefault(name, []).append(value)
    found: dict[str, float] = {}
    for name, own in values.items():
        found[name] = fmean(own)
        if (error := standard_error(own)) is not None:
            found[keys.error(name)] = error
    return found


def short(value: float | None, digits: int = 3) -> str:
    """Format a number for display; an empty string for None."""
    return "" if value is None else f"{value:.{digits}g}"


def with_error(value: float | None, error: float | None) -> str:
    """Write a number with its standard error, to one digit of the error, two if that is a 1.

    >>> with_error(12.6912, 0.3821), with_error(-0.0004, 0.002), with_error(686.2, 14.2)
    ('12.7 ± 0.4', '0.000 ± 0.002', '686 ± 14')
    """
    if value is None or error is None or not (0 < error < math.inf) or not math.isfinite(value):
        return short(value)
    tens = math.floor(math.log10(error))
    places = -tens + (1 if error < 2 * 10.0**tens else 0)
    if not -3 < places < 7:
        return f"{value:.3g} ± {error:.1g}"
    shown = round(value, places) + 0.0  # of -0.0 this makes 0.0
    return f"{shown:.{max(places, 0)}f} ± {round(error, places):.{max(places, 0)}f}"
