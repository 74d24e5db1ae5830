"""Compare the advice that each replicate of a chain gets alone with that of all of them together.

    reflow run --seeds 10
    python -m benchmarks.advice comparison/rounds.json

A replicate is judged by the paired tests over its cuts, as `compare` judges a chain. All together
are judged by the same rules with replicates in place of cuts: mean distances, and tests paired by
number, so that the spread of training counts too. `lost` is how much farther from the data an
advised round and NFE are than those that all replicates together ship, both in the mean over all
replicates, with the standard error of this difference.
"""

import argparse
from collections import Counter
from dataclasses import replace
from pathlib import Path
from statistics import fmean

from fmcore.verdict.advice import next_round, ship
from fmcore.verdict.comparison import Comparison, RoundResult
from fmcore.verdict.errors import paired, with_error

Numbered = dict[int, list[RoundResult]]
"""The rounds of every replicate, by its number, under the names that they repeat."""


def numbered(found: Comparison) -> Numbered:
    """Return the rounds of each number that every round was trained under."""
    plain = {r.name for r in found.rounds if not r.replicate}
    chains: Numbered = {}
    for r in found.rounds:
        name = r.replicate_of or r.name
        parent = next((o.replicate_of or o.name for o in found.rounds if o.name == r.parent), None)
        own = replace(r, name=name, parent=parent, replicate_of=None, replicate=None)
        chains.setdefault(r.replicate or 1, []).append(own)
    return {k: rounds for k, rounds in chains.items() if {r.name for r in rounds} == plain}


def together(chains: Numbered) -> list[RoundResult]:
    """Return each round with the means over replicates, and replicates in place of cuts."""
    rounds = []
    for same in zip(*chains.values(), strict=True):
        values = {nfe: [r.distances[nfe] for r in same] for nfe in same[0].distances}
        means = {nfe: fmean(v) for nfe, v in values.items()}
        metrics = {m: fmean(r.metrics[m] for r in same) for m in same[0].metrics}
        rounds.append(replace(same[0], distances=means, cuts=values, metrics=metrics))
    return rounds


def table(chains: Numbered, enough: float) -> list[str]:
    """Return the advice of every replicate and of all together as a Markdown table."""
    every = together(chains)
    right = ship(every, enough)
    by_name = {r.name: r for r in every}
    lines = [f"| | {' | '.join(right)} | another round |", "|" + " --- |" * (len(right) + 2)]
    for number, rounds in chains.items():
        cells = []
        for use, choice in ship(rounds, enough).items():
            best = by_name[right[use].round].cuts[right[use].nfe]
            lost = paired(by_name[choice.round].cuts[choice.nfe], best)
            same = (choice.round, choice.nfe) == (right[use].round, right[use].nfe)
            text = "" if same else f", lost {with_error(lost.mean, lost.se)}"
            cells.append(f"{choice.round} at {choice.nfe}{text}")
        lines.append(f"| {number} | {' | '.join(cells)} | {'; '.join(next_round(rounds))} |")
    cells = [f"{c.round} at {c.nfe}: {with_error(c.distance, c.se)}" for c in right.values()]
    lines.append(f"| together | {' | '.join(cells)} | {'; '.join(next_round(every))} |")
    said = []
    for use in right:
        every_one = (ship(rounds, enough)[use] for rounds in chains.values())
        counts = Counter(f"{choice.round} at {choice.nfe}" for choice in every_one)
        said.append(", ".join(f"{c} x {what}" for what, c in counts.most_common()))
    return [*lines, f"| counts | {' | '.join(said)} | |"]


def main() -> None:
    parser = argparse.ArgumentParser(description="The advice under several seeds.")
    parser.add_argument("comparison", type=Path, help="rounds.json of a chain with replicates")
    args = parser.parse_args()
    found = Comparison.read(args.comparison.read_bytes(), str(args.comparison))
    print("\n".join(table(numbered(found), found.floor + (found.resolves or 0.0))))


if __name__ == "__main__":
    main()
