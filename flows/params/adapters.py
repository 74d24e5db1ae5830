"""Adapters, and what they need: a start that was trained, and a training that allows them."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from fmcore.training.start import without_adapter

if TYPE_CHECKING:
    from flows.params.load import Params


def impossible_adapters(params: "Params") -> Iterator[tuple[tuple[str, ...], str]]:
    """Yield (keys, mistake) for adapters of an untrained network, or of other trainings."""
    for name, round_ in params.rounds.items():
        train, place = round_.train, ("rounds", name, "train")
        if train is None or train.adapter is None:
            continue
        if round_.init not in params.rounds:
            what = (
                f"{round_.init} is untrained, and an adapter changes little of its start; name a"
                " round, or leave train.adapter out"
            )
            yield ("rounds", name, "init"), what
        for key, what in without_adapter(train):
            yield (*place, key), what
