"""Verb: write the untrained velocity network that a chain starts from."""

from pathlib import Path

from fmcore.coupling.read import open_coupling
from fmcore.network.build import Network, build
from fmcore.network.store import save

__all__ = ["Network", "initialise"]


def initialise(data: Path, out: Path, settings: Network, *, seed: int) -> None:
    """Write a random network for samples of the shape found in the coupling `data` to `out`.

    With it every round is a warm start: the first from `scratch`, the next from the one before.
    """
    shape = tuple(open_coupling(data).about.shape)
    save(out, build(settings, shape, seed=seed), about={"round": "scratch", "seed": seed})
