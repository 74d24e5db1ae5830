"""The few numbers of a round that come first: in `reflow compare`, and in what DVC calls metrics.

`compare` writes them to short/<round>.json, and dvc.yaml names that folder as all of its metrics:
`dvc metrics show` is then a table with a row for each round. All other numbers are in rounds.json
and in the receipts.
"""

import json
from pathlib import Path

from fmcore.verdict import keys
from fmcore.verdict.comparison import Choice, Comparison, Number, RoundResult

FOLDER = "short"
"""The folder of these files in the one that `compare` writes."""

METRICS = ("straightness_rel", "transport_cost")
"""The metrics among them that belong to no NFE."""


def best(r: RoundResult) -> Choice:
    """Return the least distance of a round over all NFE; of equal ones that of the smallest NFE.

    >>> best(RoundResult("rf1", "independent", None, False, {1: 9.0, 4: 2.5, 8: 2.5}, {}))
    Choice(round='rf1', nfe=4, distance=2.5, se=None)
    """
    nfe = min(r.distances, key=lambda nfe: (r.distances[nfe], nfe))
    return Choice(r.name, nfe, r.distances[nfe], r.error(nfe))


def headline(found: Comparison, r: RoundResult) -> dict[str, Number]:
    """Return the few numbers of a round by their keys, the distance at the least NFE first.

    A number that was not measured has no key.
    """
    least, least_of_all = min(found.nfes), best(r)
    at = keys.at_nfe(found.metric, least)
    numbers = {
        at: r.at(least),
        keys.error(at): r.error(least),
        "best": least_of_all.distance,
        "best_nfe": least_of_all.nfe,
        **{name: r.metrics.get(name) for name in METRICS},
    }
    return {key: number for key, number in numbers.items() if number is not None}


def write(found: Comparison, folder: Path) -> None:
    """Write a file for each round; replicates have none, their mean is in rounds.json."""
    folder.mkdir(parents=True, exist_ok=True)
    for r in found.rounds:
        if not r.replicate:
            text = json.dumps(headline(found, r), indent=2)
            (folder / f"{r.name}.json").write_text(text + "\n")
