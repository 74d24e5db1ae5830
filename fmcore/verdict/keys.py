"""The keys of metrics that are measured at an NFE, on real data, or by another sampler.

A metric measured at several NFE has a key for each, `fd_clf/nfe_4`; its value on real data is
`fd_clf/floor`. Keys with an NFE are built and parsed here and nowhere else.
"""

import re
from collections.abc import Iterable, Mapping

NFE = re.compile(r"(?P<metric>[^/]+)/nfe_(?P<nfe>\d+)")


def at_nfe(metric: str, nfe: int) -> str:
    """Return the key of a metric at an NFE.

    >>> at_nfe("fd_clf", 4)
    'fd_clf/nfe_4'
    """
    return f"{metric}/nfe_{nfe}"


def at_floor(metric: str) -> str:
    """Return the key of a metric of real against real data."""
    return f"{metric}/floor"


def at_sampler(metric: str, sampler: str) -> str:
    """Return the key of a metric of samples by another sampler than Euler.

    >>> at_sampler("fd_clf", "heun_18")
    'fd_clf/heun_18'
    """
    return f"{metric}/{sampler}"


def churned(churn: float, steps: int) -> str:
    """Return the name of the reverse SDE as a sampler."""
    return f"churn_{churn:g}_steps_{steps}"


def error(metric: str) -> str:
    """Return the key of a metric's standard error: it stands before what follows a slash.

    >>> error("fd_clf/nfe_4")
    'fd_clf_se/nfe_4'
    """
    name, slash, rest = metric.partition("/")
    return f"{name}_se{slash}{rest}"


def over_nfe(metric: str) -> str:
    """Return the name of a curve in MLflow: the metric, with the NFE as step."""
    return f"{metric}_by_nfe"


def column(metric: str, nfe: int) -> str:
    """Return the column of rounds.csv for a metric at an NFE."""
    return f"{metric}@{nfe}"


def measured(values: Mapping[str, float]) -> list[tuple[str, int, float]]:
    """Return (metric, NFE, value) of every value with an NFE, in the order of `values`.

    >>> measured({"fd/nfe_1": 9.0, "fd/floor": 0.5, "fd_se/nfe_1": 0.1})
    [('fd', 1, 9.0), ('fd_se', 1, 0.1)]
    """
    found = ((NFE.fullmatch(key), value) for key, value in values.items())
    return [(m["metric"], int(m["nfe"]), value) for m, value in found if m]


def by_nfe(values: Mapping[str, float], metric: str) -> dict[int, float]:
    """Return a metric's values by NFE, in the order of `values`.

    >>> by_nfe({"fd/nfe_1": 9.0, "fd/floor": 0.5, "fd_se/nfe_1": 0.1}, "fd")
    {1: 9.0}
    """
    return {nfe: value for name, nfe, value in measured(values) if name == metric}


def nfes(keys: Iterable[str], metric: str) -> list[int]:
    """Return the NFE at which a metric is among the keys, in order."""
    return sorted(by_nfe(dict.fromkeys(keys, 0.0), metric))


def plain(values: Mapping[str, float]) -> dict[str, float]:
    """Return the metrics that belong to no NFE, floor or sampler: their keys have no slash."""
    return {key: value for key, value in values.items() if "/" not in key}
