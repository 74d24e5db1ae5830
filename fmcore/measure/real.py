"""The real data that a yardstick is made of: samples, their features, what trains and what not."""

from collections.abc import Iterator
from dataclasses import replace

import pyarrow as pa
import torch
from torch import Tensor

from fmcore.coupling.pairs import Pairs, joined
from fmcore.coupling.read import Coupling, parts, readable
from fmcore.features.extractor import (
    Extractor,
    Features,
    FeatureSettings,
    FeaturesOf,
    extract,
    fit_classifier,
    levels,
    of_levels,
    pretrained,
    quantise,
    rows_at_once,
)
from fmcore.settings import Log, ReflowError, derive_seed

IMAGES = 500
"""Images that are classified at once."""

TRAIN = 50_000
"""Training samples, at most, among which the nearest one to a generated sample is searched."""


def real_samples(coupling: Coupling, *, coded: bool) -> Pairs:
    """Read the real samples in their own units; of images that are `coded`, their levels."""

    def each() -> Iterator[Pairs]:
        for part in parts(coupling, coupling.groups, "all", sources=False):
            x = coupling.about.units.inverse(part.target)
            x = levels(x) if coded else x
            yield replace(part, target=x, source=x)

    with readable(coupling.path):
        found = joined(each(), sum(group[2] for group in coupling.groups))
    pa.default_memory_pool().release_unused()
    return found


def features_of(extractor: Features | None, x: Tensor) -> Tensor:
    """Return the features of samples [N, *D], of images as a file would hold them."""
    if extractor is None:
        return extract(None, x)
    found: Tensor | None = None
    at_once = rows_at_once(extractor, x)
    for i, part in enumerate(x.split(at_once)):
        own = extract(extractor, _as_read(part))
        found = own.new_empty(len(x), *own.shape[1:]) if found is None else found
        found[i * at_once :][: len(own)] = own
    assert found is not None
    return found


def _as_read(x: Tensor) -> Tensor:
    if x.dtype == torch.uint8:
        return of_levels(x)
    return quantise(x) if x.ndim == 4 else x


def extractor_for(
    coupling: Coupling, pairs: Pairs, settings: FeaturesOf, *, seed: int, log: Log
) -> Features | None:
    """Return the network of the features, trained on the real samples or read; None for identity.

    Raises ReflowError where the data does not have what it needs.
    """
    if settings.kind == "identity":
        return None
    if not isinstance(settings, FeatureSettings) or settings.kind != "classifier":
        return pretrained(settings)
    if pairs.label is None or not coupling.about.image:
        raise ReflowError(
            f"{coupling.path}: yardstick.features.kind classifier needs images with labels, this"
            " data has none; set it to lite0 or identity, or put the images into one folder per"
            " class"
        )
    seen = ~pairs.held_out
    own = derive_seed(seed, "classifier")
    return fit_classifier(pairs.target[seen], pairs.label[seen], settings, own, log)


def accuracy(classifier: Extractor, pairs: Pairs) -> float | None:
    """Return the share of held-out samples that the classifier, which never saw them, names right.

    None where no sample is held out.
    """
    held = pairs.held_out
    if pairs.label is None or not bool(held.any()):
        return None
    rows = zip(pairs.target[held].split(IMAGES), pairs.label[held].split(IMAGES), strict=True)
    right = [classifier(_as_read(x)).argmax(1) == label for x, label in rows]
    return float(torch.cat(right).double().mean())


def apart(pairs: Pairs, features: Tensor) -> tuple[Tensor, Tensor]:
    """Return the features of what rounds train on, and of what is held out from them."""
    held = pairs.held_out
    trains = (~held).nonzero()[:TRAIN, 0]
    return features[trains], features[held]
