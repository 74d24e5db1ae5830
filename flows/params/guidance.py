"""Guidance, and what it needs: a network that takes labels or conditions, and learned without."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from flows.params.adopted import teacher_of
from fmcore.network.build import Network
from fmcore.settings import GuidanceWithin, strength

if TYPE_CHECKING:
    from flows.params.load import Params


def takes_conditions(network: Network) -> bool:
    """Say whether a network takes the conditions of the data."""
    return network.conditions is not None


def impossible_guidance(params: "Params") -> Iterator[tuple[tuple[str, ...], str]]:
    """Guidance of a network that has no labels, that never learned to go without, or twice."""
    plain = [name for name in params.rounds if guided(params, name) is None]
    used: list[tuple[tuple[str, ...], float | GuidanceWithin, list[str]]] = [
        (("couplings", name, "guidance"), coupling.guidance, [coupling.round])
        for name, coupling in params.couplings.items()
        if coupling.import_ is None
    ]
    used.append((("evaluate", "guidance"), params.evaluate.guidance, plain))
    for place, guidance, rounds in used:
        if guidance == 1:
            continue
        known = [r for r in rounds if not teacher_of(params, r)]  # not the network of a teacher
        labelled = params.network.classes or takes_conditions(params.network)
        if not labelled and (known or not rounds):
            what = (
                "guidance needs classes; set network.classes or network.conditions, or guidance 1"
            )
            yield place, what
            continue
        for name in rounds:
            if made := guided(params, name):
                had = strength(params.couplings[made].guidance)
                what = (
                    f"round {name!r} has guidance {had:g} in its velocity, by"
                    f" couplings.{made}.guidance, and would be guided twice; leave it out"
                )
                yield place, what
            elif (train := params.rounds[name].train) and not train.label_dropout:
                what = f"guidance needs rounds.{name}.train.label_dropout above 0, got 0"
                yield place, what


def guided(params: "Params", round_: str) -> str | None:
    """Return the coupling whose guidance a round has in its pairs: its own, or one before it."""
    name = params.rounds[round_].coupling
    coupling = params.couplings.get(name)
    if coupling is None:
        return None
    if coupling.guidance != 1 or coupling.round not in params.rounds:
        return name if coupling.guidance != 1 else None
    return guided(params, coupling.round)
