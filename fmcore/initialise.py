"""Verb: write the untrained velocity network that a chain starts from."""

from pathlib import Path

from fmcore.coupling.checks import check_labels
from fmcore.coupling.read import labels, open_coupling
from fmcore.network.build import Network, fitting
from fmcore.network.store import save

__all__ = ["Network", "initialise"]


def initialise(data: Path, out: Path, settings: Network, *, seed: int) -> None:
    """Write a random network for samples of the shape found in the coupling `data` to `out`.

    Raises ReflowError for labels that do not suit the network: it is the first that has both.
    With it every round is a warm start: the first from `scratch`, the next from the one before.
    """
    coupling = open_coupling(data)
    network = fitting(settings, coupling.conditions, tuple(coupling.about.shape), seed=seed)
    check_labels(labels(coupling), network.settings.classes, str(data))
    save(out, network, about={"round": "scratch", "seed": seed, **coupling.about.carried()})
