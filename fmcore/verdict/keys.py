"""The keys of metrics that are measured at an NFE, on real data, or by the reverse SDE.

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


def at_churn(metric: str, churn: float, steps: int) -> str:
    """Return the key of a metric of samples by the reverse SDE."""
    return f"{metric}/churn_{churn:g}_steps_{steps}"


def spread(metric: str) -> str:
    """Return the name of a metric's standard deviation over the splits of its samples."""
    return f"{metric}_sd"


def seed_spread(metric: str) -> str:
    """Return the name of a metric's standard deviation over the seeds of the noise."""
    return f"{metric}_seed_sd"


def over_nfe(metric: str) -> str:
    """Return the name of a curve in MLflow: the metric, with the NFE as step."""
    return f"{metric}_by_nfe"


def column(metric: str, nfe: int) -> str:
    """Return the column of rounds.csv for a metric at an NFE."""
    return f"{metric}@{nfe}"


def by_nfe(values: Mapping[str, float], metric: str) -> dict[int, float]:
    """Return a metric's values by NFE, in the order of `values`.

    >>> by_nfe({"fd/nfe_1": 9.0, "fd/floor": 0.5, "fd_sd/nfe_1": 0.1}, "fd")
    {1: 9.0}
    """
    found = ((NFE.fullmatch(key), value) for key, value in values.items())
    return {int(m["nfe"]): value for m, value in found if m and m["metric"] == metric}


def nfes(keys: Iterable[str], metric: str) -> list[int]:
    """Return the NFE at which a metric is among the keys, in order."""
    return sorted(by_nfe(dict.fromkeys(keys, 0.0), metric))


def plain(values: Mapping[str, float]) -> dict[str, float]:
    """Return the metrics that belong to no NFE, floor or churn: their keys have no slash."""
    return {key: value for key, value in values.items() if "/" not in key}
