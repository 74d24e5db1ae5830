"""Retrieval: is a sample's nearest real picture one of the condition that it was made for?

Nearest by Euclidean distance in the features of the yardstick, which saw neither the samples nor
the conditions. `retrieval_top1` is the share of samples whose nearest real sample has their own
condition, `retrieval_top5` the share where one of the five nearest has. Conditions are those of
pairs that trained; `retrieval_unseen_*` takes conditions of which no pair trained, so that nothing
can be remembered. `/chance` is the share for a random order of the real samples, `/floor` that of
real samples: each is looked for among the others or, where most conditions have a single picture,
mirrored left to right.
"""

import math
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from fmcore.coupling.pairs import Pairs
from fmcore.coupling.read import open_coupling
from fmcore.features.extractor import Features
from fmcore.measure.harness import Harness
from fmcore.measure.real import features_of, real_samples
from fmcore.solve.solver import Solver
from fmcore.verdict import keys

GALLERY = 10_000
"""Real samples, at most, among which the nearest one is looked for."""
TOP = (1, 5)
BLOCK = 256


@dataclass(frozen=True)
class Gallery:
    """Real samples to look among: features [M, d] and conditions [M]."""

    features: Tensor
    label: Tensor

    def hits(self, queries: Tensor, label: Tensor, *, itself: Tensor | None = None) -> Tensor:
        """Return for queries [Q, d] of conditions [Q] whether they are found, [Q, len(TOP)].

        `itself` [Q] is the row of a query that is in the gallery, which is left out.
        """
        found = []
        for rows in torch.arange(len(queries)).split(BLOCK):
            far = torch.cdist(queries[rows].double(), self.features.double())
            if itself is not None:
                far[torch.arange(len(rows)), itself[rows]] = math.inf
            near = far.topk(min(max(TOP), far.shape[1]), largest=False).indices
            same = self.label[near] == label[rows, None]
            found.append(torch.stack([same[:, :k].any(1) for k in TOP], 1))
        return torch.cat(found)

    def chance(self, label: Tensor) -> Tensor:
        """Return how often conditions [Q] are found in a random order, [Q, len(TOP)]."""
        own = torch.stack([(self.label == one).sum() for one in label.tolist()]).double()
        total = len(self.label)
        missed = [torch.ones_like(own)]
        for i in range(max(TOP)):
            missed.append(missed[-1] * ((total - own - i) / max(total - i, 1)).clamp(min=0))
        return torch.stack([1 - missed[k] for k in TOP], 1)

    def ceiling(self, real: Pairs, extractor: Features | None, rows: Tensor) -> Tensor | None:
        """Return whether real samples are found, those at `rows` [Q]; None if none can be."""
        label = self.label[rows]
        several = torch.bincount(self.label)[label] > 1
        if 2 * int(several.sum()) >= len(rows):
            kept = rows[several]
            return self.hits(self.features[kept], self.label[kept], itself=kept)
        if real.target.ndim != 4:
            return None
        return self.hits(features_of(extractor, real.target[rows].flip(-1)), label)


def retrieval(harness: Harness, data: Path, extractor: Features | None) -> dict[str, float]:
    """Return the shares of samples that are found by their condition, at each NFE of Euler.

    Empty for a flow without conditions, and where `evaluate.retrieval` is 0.
    """
    coupling, count = open_coupling(data), harness.settings.retrieval
    if coupling.about.conditions is None or not harness.flow.classes or not count:
        return {}
    seen = coupling.originals
    real = real_samples(seen, coded=seen.about.image and extractor is not None)
    groups = asked(real)
    real = real.rows(torch.arange(min(len(real), GALLERY)))
    assert real.label is not None
    gallery = Gallery(features_of(extractor, real.target), real.label)
    found: dict[str, float] = {}
    for name, which in groups.items():
        rows = which.nonzero()[: min(count, len(harness.noise)), 0]
        if len(rows) < 2:
            continue
        label = real.label[rows]
        found |= _shares(name, "chance", gallery.chance(label))
        top = gallery.ceiling(real, extractor, rows)
        found |= {} if top is None else _shares(name, "floor", top)
        for steps in harness.settings.nfe:
            made = harness.made(Solver(name="euler", steps=steps), label)
            x = harness.units.inverse(made.x)
            hits = gallery.hits(features_of(extractor, x), label)
            found |= _shares(name, f"nfe_{made.nfe}", hits)
    return found


def asked(real: Pairs) -> dict[str, Tensor]:
    """Return which samples of the gallery [M] have conditions to ask for: seen, and unseen.

    A condition is unseen if no sample of it trains, in the gallery or beyond.
    """
    assert real.label is not None
    held = real.held_out
    trained = torch.isin(real.label, real.label[~held])
    groups = {"retrieval": ~held, "retrieval_unseen": held & ~trained}
    return {name: which[:GALLERY] for name, which in groups.items()}


def _shares(name: str, of: str, hits: Tensor) -> dict[str, float]:
    """Return the mean of hits [Q, len(TOP)], with standard errors but for chance."""
    found = {}
    for k, column in zip(TOP, hits.double().unbind(1), strict=True):
        key, mean = f"{name}_top{k}/{of}", float(column.mean())
        found[key] = mean
        if of != "chance":
            found[keys.error(key)] = math.sqrt(mean * (1 - mean) / len(column))
    return found
