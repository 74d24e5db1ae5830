"""Verb: write the untrained velocity network that a chain starts from."""

from pathlib import Path

from fmcore.coupling.checks import check_labels
from fmcore.coupling.read import labels, open_coupling
from fmcore.network.build import Network, build, take
from fmcore.network.given import Labelled
from fmcore.network.store import save

__all__ = ["Network", "initialise"]


def initialise(data: Path, out: Path, settings: Network, *, seed: int) -> None:
    """Write a random network for samples of the shape found in the coupling `data` to `out`.

    Raises ReflowError for labels that do not suit the network: it is the first that has both.
    With it every round is a warm start: the first from `scratch`, the next from the one before.
    """
    coupling = open_coupling(data)
    if isinstance(settings, Labelled):
        settings = settings.sized(coupling.conditions)
    check_labels(labels(coupling), settings.classes, str(data))
    network = build(settings, tuple(coupling.about.shape), seed=seed)
    take(network, coupling.conditions)
    save(out, network, about={"round": "scratch", "seed": seed, **coupling.about.carried()})
