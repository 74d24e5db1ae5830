"""What real data scores once a codec has encoded and decoded it: the least that a flow can reach.

A flow on latents learns what the codec lets through, so the distance of its samples does not fall
below that of the reconstructions, whatever its training.
"""

import math
from collections.abc import Iterator
from statistics import fmean

import torch
from torch import Tensor

from fmcore.codec.latents import CPU, Units
from fmcore.coupling.read import Coupling, parts
from fmcore.features.extractor import Features
from fmcore.measure.distances import Group, Summary, disjoint
from fmcore.measure.frechet import frechet_distance
from fmcore.measure.real import features_of
from fmcore.measure.yardstick import Yardstick
from fmcore.settings import derive_seed
from fmcore.verdict import keys
from fmcore.verdict.errors import standard_error

NAME = "reconstruction"
"""The metric, and its gate: the distance of reconstructions over the floor."""


def reconstruction(
    data: Coupling, measure: Yardstick, *, seed: int, device: torch.device = CPU
) -> dict[str, float]:
    """Return the distance of reconstructed to real data over the floor; empty without a codec.

    Each cut compares the reconstructions of one half with the other half as it is: the floor's
    protocol, with its Frechet distance. `<distance>/reconstruction` is that distance itself. `seed`
    is that of the cuts of the yardstick.
    """
    if data.about.codec is None:
        return {}
    features = torch.cat([*_decoded(data, measure.extractor, device)])
    n, name, found = int(measure.about["n"]), str(measure.about["frechet"]), []
    for i, real in enumerate(measure.cuts):
        other = disjoint(len(features), n, derive_seed(seed, "halves", i))[1]
        fake = Summary.of(Group(features).parts(other), 0)
        found.append(frechet_distance(fake.stats, real.stats))
    mean, error, floor = fmean(found), standard_error(found), measure.floor[name]
    least = max(floor, 1e-12)
    key = f"{name}/{NAME}"
    result = {key: mean, NAME: mean / least}
    if error is not None:
        own = math.hypot(error / least, mean * measure.floor.get(keys.error(name), 0) / least**2)
        result |= {keys.error(key): error, keys.error(NAME): own, f"{NAME}_cuts": len(found)}
    return result


def _decoded(data: Coupling, extractor: Features | None, device: torch.device) -> Iterator[Tensor]:
    units = Units.of(data.about.units, data.about.codec, device)
    for part in parts(data, data.groups, "all", sources=False):
        yield features_of(extractor, units.inverse(part.target))
