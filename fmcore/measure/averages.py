"""Other weights of a round beside its average: the optimiser's own, power averages of any length.

They are measured on the noise and the cuts of the average, so differences are taken cut by cut.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from fmcore.network.store import Weights
from fmcore.verdict.cuts import SamplerCuts
from fmcore.verdict.errors import summary

BESIDE = "raw_minus_ema"
"""The metric by which rounds are judged, of the raw weights less that of the average."""


def named(weights: Weights) -> str:
    """Return the name of weights in metrics.

    >>> named(0.05)
    'power_0.05'
    """
    return f"power_{weights:g}" if isinstance(weights, float) else weights


def there(wanted: Iterable[Weights], config: dict[str, Any]) -> list[Weights]:
    """Return those of the wanted weights that a model has and that are not its average."""
    kept = bool(config.get("power_ema"))
    if "teacher" in config and "taken_from" not in config:
        return []  # one set of weights, whatever it is called
    return [w for w in dict.fromkeys(wanted) if w == "raw" or (isinstance(w, float) and kept)]


def beside(
    weights: Weights, rows: Sequence[SamplerCuts], average: Sequence[SamplerCuts], metric: str
) -> tuple[list[SamplerCuts], dict[str, float]]:
    """Return the rows of other weights under their own names, and their metrics with errors.

    `average` has what the average scored with the same samplers, `metric` is the one that judges.
    Keys are `fd_clf_raw/nfe_8` and, for the paired difference, `fd_clf_raw_minus_ema/nfe_8`; for
    the raw weights the last difference is also without an NFE, `raw_minus_ema`.
    """
    name, own = named(weights), {row.sampler: row for row in average}
    found: dict[str, float] = {}
    for row in rows:
        pairs = zip(row.cuts, own[row.sampler].cuts, strict=True)
        gaps = [cut[metric] - other[metric] for cut, other in pairs]
        cuts = [{f"{key}_{name}": value for key, value in cut.items()} for cut in row.cuts]
        for cut, gap in zip(cuts, gaps, strict=True):
            cut[f"{metric}_{name}_minus_ema"] = gap
        found |= replace(row, cuts=cuts).flat()
    if rows and weights == "raw":
        found |= summary({BESIDE: gap} for gap in gaps)
    return [replace(row, sampler=f"{name}_{row.sampler}") for row in rows], found
