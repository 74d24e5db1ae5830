"""Which round to ship for which NFE, and whether another round pays: paired tests, cut by cut.

Where there is a single cut there is no error, and means are compared as they are.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from fmcore.verdict.comparison import Choice, RoundResult, nearest
from fmcore.verdict.errors import Difference, paired, with_error

STRAIGHT = 0.01
"""Below this relative straightness one Euler step is the flow: another round gains nothing."""

Rounds = Sequence[RoundResult]


@dataclass(frozen=True)
class _Option:
    """A round at an NFE."""

    round: RoundResult
    nfe: int

    @property
    def distance(self) -> float:
        return self.round.distances[self.nfe]

    def above(self, other: "_Option") -> Difference:
        """Compare its distance with another's, cut by cut."""
        own, its = (o.round.cuts.get(o.nfe, []) for o in (self, other))
        if not own or len(own) != len(its):
            return Difference(self.distance - other.distance, None, None)
        return paired(own, its)

    def chosen(self) -> Choice:
        return Choice(self.round.name, self.nfe, self.distance, self.round.error(self.nfe))


def ship(rounds: Rounds, enough: float = -math.inf) -> dict[str, Choice]:
    """Return the round to ship: one_step (NFE 1), few_step (nearest to NFE 4), best (any NFE).

    `best` is the least NFE that is not worse than the least distance by a paired t test over the
    cuts (one-sided, 5 %), or that is at most `enough`: the floor and what a test resolves near it,
    below which nobody tells samples from data, however small a difference of two rounds a test on
    one noise may see. Of several rounds at one NFE it is the earliest, unless a later one is better
    by the same test.

    >>> rf1 = RoundResult("rf1", "independent", None, False, {1: 9.0, 4: 1.0}, {})
    >>> rf2 = RoundResult("rf2", "rf1", "rf1", False, {1: 2.0, 4: 1.5}, {})
    >>> {use: choice.round for use, choice in ship([rf1, rf2]).items()}
    {'one_step': 'rf2', 'few_step': 'rf1', 'best': 'rf1'}
    """
    every = [_Option(r, nfe) for r in rounds for nfe in r.distances]
    if not every:
        return {}
    found = {}
    for use, nfe in (("one_step", 1), ("few_step", nearest(c.nfe for c in every))):
        if there := [option for option in every if option.nfe == nfe]:
            found[use] = _first(there).chosen()
    least = min(every, key=lambda option: option.distance)
    good = [o for o in every if o.distance <= enough or not o.above(least).seen]
    fewest = min(option.nfe for option in good)
    found["best"] = _first(option for option in good if option.nfe == fewest).chosen()
    return found


def _first(options: Iterable[_Option]) -> _Option:
    """Return the earliest of some options, or a later one that is better by the test."""
    best, *others = options
    for other in others:
        if best.above(other).seen:
            best = other
    return best


def next_round(rounds: Rounds) -> list[str]:
    """Say for every last round of a branch whether another rectification pays, and why."""
    parents = {r.parent for r in rounds if not r.student}
    return [
        f"after {r.name}: {_verdict(r, rounds)}"
        for r in rounds
        if r.name not in parents and not r.student
    ]


def _verdict(own: RoundResult, rounds: Rounds) -> str:
    parent = next((r for r in rounds if r.name == own.parent), None)
    many = _Option(own, own.most)
    if parent is not None and own.most in parent.distances:
        worse = many.above(_Option(parent, own.most))
        if worse.seen:
            return (
                f"stop; at NFE {own.most} the distance rose from {_at(parent, own.most)} to"
                f" {_at(own, own.most)} ({_tested(worse)}): the rounds drift from the data (more"
                " pairs, or inverted real pairs in the mix)"
            )
    rel = own.metrics["straightness_rel"]
    if rel < STRAIGHT:
        return (
            f"stop; the paths are straight (relative straightness {rel:.2g} < {STRAIGHT:g});"
            " what is left at NFE 1 is training error: train longer, or a one-step student"
        )
    return _evidence(own, parent, rounds)


def _evidence(own: RoundResult, parent: RoundResult | None, rounds: Rounds) -> str:
    """Say what another round could gain at the least NFE: it pays only if every test says so."""
    few = min(own.distances)
    here = _Option(own, few)
    left = here.above(_Option(own, own.most))
    said = [f"NFE {few} scores {_at(own, few)} where NFE {own.most} scores {_at(own, own.most)}"]
    if not left.seen:
        return f"another round may pay little; {said[0]} ({_tested(left)})"
    gained = None
    if parent is None or few not in parent.distances:
        said.append("no round before says what one gains")
    else:
        gained = _Option(parent, few).above(here)
        word = "gained" if gained.seen else "gained nothing that is seen"
        said.append(f"the last round {word} at NFE {few} ({_tested(gained)})")
    students = [
        _Option(r, few)
        for r in rounds
        if r.student and few in r.distances and (r.coupling == own.coupling or r.parent == own.name)
    ]
    rival = _first(students) if students else None
    beaten = rival is not None and here.above(rival).seen
    if rival is not None and beaten:
        said.append(
            f"the student {rival.round.name} scores {_at(rival.round, few)} at NFE {few}, which"
            " another round has to beat"
        )
    pays = gained is not None and gained.seen and not beaten
    return f"another round {'pays' if pays else 'may pay'}; {'; '.join(said)}"


def _at(r: RoundResult, nfe: int) -> str:
    return with_error(r.distances[nfe], r.error(nfe))


def _tested(found: Difference) -> str:
    """Write a difference with its error and p."""
    if found.p is None:
        return f"difference {found.mean:.3g}, its error is not known: a single cut"
    return f"difference {with_error(found.mean, found.se)}, p = {found.p:.2g}"


def guidance(rounds: Iterable[RoundResult]) -> list[str]:
    """Return a line for each round that is guided, in measuring or by its pairs."""
    said = {
        "guidance": "is measured with guidance {:g}: two evaluations where it acts",
        "guided": "has guidance {:g} in its pairs: measured and sampled without more",
    }
    return [
        f"{r.name} {words.format(r.metrics[key])}; the data, to which it is compared, has none"
        for r in rounds
        for key, words in said.items()
        if key in r.metrics and not r.replicate
    ]
