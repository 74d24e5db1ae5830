"""Seeds of the stages: their own, else from the chain's seed and their place in the chain."""

from flows.params.load import Params, parents
from fmcore.settings import derive_seed


def seed_of(params: Params, verb: str, key: str = "") -> int:
    """Return the seed of a verb: of training the round, or of sampling the coupling `key`.

    It is the one in the settings of its part, else that of the chain: as it is for the data, the
    yardstick and the evaluation, so that all rounds are measured alike.

    Training and sampling derive theirs from the chain's seed and the depth of the round: that of
    the first is spelled rf1, so that rounds of that name draw what they always drew. Two rounds of
    equal depth have equal draws, so they differ by their settings alone, unless they are replicates
    of each other: those differ by their number alone.
    """
    shared = {"prepare": params.data, "calibrate": params.yardstick, "evaluate": params.evaluate}
    if verb in shared:
        own = shared[verb].seed
        return params.seed if own is None else own
    chosen = params.couplings[key] if verb == "couple" else params.rounds[key]
    if chosen.seed is not None:
        return chosen.seed
    round_ = params.couplings[key].round if verb == "couple" else key
    if round_ not in params.rounds:
        return params.seed  # pairs from outside, which draw nothing
    names: list[str | int] = [verb, f"rf{depth(params, round_)}"]
    if number := params.rounds[round_].replicate:
        names += ["replicate", number]
    return derive_seed(params.seed, *names)


def depth(params: Params, round_: str) -> int:
    """Return the number of rounds up to a round, itself included, on the longest way to it."""
    known: dict[str, int] = {}
    waiting = [round_]
    while waiting:
        before = parents(params, waiting[-1])
        if unknown := [name for name in before if name not in known]:
            waiting += unknown
        else:
            known[waiting.pop()] = 1 + max((known[name] for name in before), default=0)
    return known[round_]
