"""Seeds of rounds and couplings: from their place in the chain, so that a name does not matter."""

from flows.params.load import Params, parents
from fmcore.settings import derive_seed


def seed_of(params: Params, verb: str, key: str) -> int:
    """Return the seed of training the round `key`, or of sampling the coupling `key`.

    It is the one in its settings, else derived from the chain's seed and the depth of the round:
    that of the first is spelled rf1, so that rounds of that name draw what they always drew. Two
    rounds of equal depth have equal draws, so they differ by their settings alone.
    """
    chosen = params.couplings[key] if verb == "couple" else params.rounds[key]
    if chosen.seed is not None:
        return chosen.seed
    round_ = params.couplings[key].round if verb == "couple" else key
    return derive_seed(params.seed, verb, f"rf{depth(params, round_)}")


def depth(params: Params, round_: str) -> int:
    """Return the number of rounds up to a round, itself included, on the longest way to it."""
    return 1 + max((depth(params, before) for before in parents(params, round_)), default=0)
