"""Rounds that are not trained here: what they may say, and which rounds have their network."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from fmcore.network.teachers import OwnModel, ProjectModel

if TYPE_CHECKING:
    from flows.params.load import Params


def teacher_of(params: "Params", name: str) -> str | None:
    """Return the round with a `model` whose network a round has: itself, or one it starts from."""
    seen: set[str] = set()
    while name in params.rounds and name not in seen:
        if params.rounds[name].model is not None:
            return name
        seen.add(name)
        name = params.rounds[name].init
    return None


def mistakes(params: "Params") -> Iterator[tuple[tuple[str, ...], str]]:
    """Yield (keys, mistake) for rounds that name a model and what only a training has."""
    for name, round_ in params.rounds.items():
        if (round_.train is None) == (round_.model is None):
            both = "both are there" if round_.train else "neither is there"
            what = f"a round has it, or the `model` of one not trained here; {both}"
            yield ("rounds", name, "train"), what
        if round_.model is None:
            continue
        for key, wanted in (("coupling", "independent"), ("init", "scratch")):
            if (got := getattr(round_, key)) != wanted:
                what = f"a round with `model` is not trained; write {key}: {wanted}, got {got!r}"
                yield ("rounds", name, key), what
        if round_.continue_ or round_.replicate_of:
            key = "continue" if round_.continue_ else "replicate_of"
            yield ("rounds", name, key), "a round with `model` is not trained; leave it out"
        inner = ("network",) if isinstance(round_.model, OwnModel) else ()
        asking = round_.model.network if isinstance(round_.model, OwnModel) else round_.model
        if getattr(asking, "conditions", None) is not None and params.data.conditions is None:
            what = "the data has none; set data.conditions, or leave it out"
            yield ("rounds", name, "model", *inner, "conditions"), what
        if isinstance(round_.model, ProjectModel) and round_.model.rev and not round_.model.round:
            what = "rev is a revision of a project; name its `round` too"
            yield ("rounds", name, "model", "rev"), what
