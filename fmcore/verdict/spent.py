"""What rounds cost in floating-point operations (FLOPs), and the rows of samplers.

A step of training counts as three evaluations for each sample of its batch, one forward and two for
the gradients; a pair counts the evaluations of its solver, and three times as many if it was
audited. A round also pays for the rounds and couplings that it was made from, each once.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from fmcore.verdict import keys
from fmcore.verdict.comparison import Comparison
from fmcore.verdict.cuts import SamplerCuts
from fmcore.verdict.errors import short, summary, with_error

TRAINING, PAIRS = "flops_training", "flops_pairs"
"""Keys of what a training and a coupling cost; in the comparison with those of the ancestors."""

EVALUATION = "flops_per_evaluation"
"""Key of what one evaluation of a round's network costs for one sample."""

PUBLISHED = re.compile(
    r"\w*\d+k?_(train|test|file_\w+)(_se|_sd)?|(clean)?(is|score_inception_)\d+k?(_se|_sd)?"
)
"""The names of metrics by published protocols: they say n, and the reference if there is one."""


@dataclass(frozen=True)
class Made:
    """How a round came about: its coupling, and the rounds that it needed (`needs`)."""

    coupling: str
    needs: Sequence[str]


def cumulated(
    rounds: Mapping[str, Made], training: Mapping[str, float], pairs: Mapping[str, float]
) -> dict[str, dict[str, float]]:
    """Return for each round the FLOPs of all trainings and of all couplings that it took.

    `training` is by round, `pairs` by coupling; the independent coupling costs nothing. A round of
    whose ancestors one is not known has no entry.

    >>> rounds = {"a": Made("independent", []), "b": Made("ab", ["a"])}
    >>> cumulated(rounds, {"a": 10, "b": 1}, {"ab": 5})["b"]
    {'flops_training': 11, 'flops_pairs': 5}
    """
    found = {}
    for name in rounds:
        chain = _ancestors(rounds, name)
        if not all(r in rounds and r in training for r in chain):
            continue
        couplings = dict.fromkeys(rounds[r].coupling for r in chain)
        made = [c for c in couplings if c != "independent"]
        if all(c in pairs for c in made):
            found[name] = {
                TRAINING: sum(training[r] for r in chain),
                PAIRS: sum(pairs[c] for c in made),
            }
    return found


def _ancestors(rounds: Mapping[str, Made], name: str) -> list[str]:
    """Return a round and all that it was made from, each once."""
    found, left = [], [name]
    while left:
        current = left.pop()
        if current not in found:
            found.append(current)
            left += rounds[current].needs if current in rounds else []
    return found


def by_sampler(
    rows: Iterable[SamplerCuts], metric: str, values: Mapping[str, float]
) -> dict[str, dict[str, float]]:
    """Return NFE, distance and standard error of every sampler that has the distance.

    Not those of other weights than the average. Then its published metrics, which are among all
    metrics of the round, `values`.
    """
    found = {}
    for row in rows:
        own = summary(row.cuts)
        if metric not in own or row.sampler.startswith(("raw_", "power_")):
            continue
        found[row.sampler] = {"nfe": row.nfe}
        found[row.sampler] |= {k: own[k] for k in (metric, keys.error(metric)) if k in own}
        at = keys.at_nfe("", round(row.nfe)) if row.euler else keys.at_sampler("", row.sampler)
        published = {k.removesuffix(at): v for k, v in values.items() if k.endswith(at)}
        found[row.sampler] |= {k: v for k, v in published.items() if PUBLISHED.fullmatch(k)}
    return found


def sampler_table(found: Comparison) -> list[list[str]]:
    """Return a table of text, its header first: the samplers other than Euler in each round.

    Those of Euler too where they have published metrics; no rows at all without any.
    """
    own = {"nfe", found.metric, keys.error(found.metric)}
    rows = [
        (r.name, sampler, values)
        for r in found.rounds
        for sampler, values in r.samplers.items()
        if not sampler.startswith("euler_") or values.keys() - own
    ]
    names = dict.fromkeys(name for _, _, values in rows for name in values)
    shown = [name for name in names if name != "nfe" and not name.endswith("_se")]
    cells = [
        [round_, sampler, short(v["nfe"], 4)]
        + [with_error(v.get(name), v.get(keys.error(name))) for name in shown]
        for round_, sampler, v in rows
    ]
    return [["round", "sampler", "NFE", *shown], *cells] if rows else []
