"""One training batch: times, pairing, flips and labels, each a function of (seed, step)."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Annotated, Literal

import torch
from pydantic import BeforeValidator, Field
from torch import Tensor

from fmcore.choices.laws import LawOfTime
from fmcore.coupling.pairs import Pairs
from fmcore.matching.interpolant import expand
from fmcore.matching.maps import Batch
from fmcore.matching.times import Uniform
from fmcore.settings import ReflowError, Settings, by_name, derive_seed


class Independent(Settings):
    """Source and target of a row as they were drawn."""

    name: Literal["independent"] = "independent"


class Optimal(Settings):
    """The exact optimal assignment of a batch's sources to its targets (Tong et al. 2024).

    With network.classes, of the sources and targets of each class.
    """

    name: Literal["optimal"]


class Sinkhorn(Settings):
    """A draw from the entropic plan of a batch; `reg` is relative to the mean squared distance.

    With network.classes, from the plan of each class.
    """

    name: Literal["sinkhorn"]
    reg: float = Field(default=0.05, ge=1e-4, le=1e3)
    """Strength of the entropy, relative to the mean squared distance in the batch. Towards 0 the
    pairing is the optimal one, and slow."""


Pairing = Annotated[
    Independent | Optimal | Sinkhorn, Field(discriminator="name"), BeforeValidator(by_name)
]


AT_ONCE = 2**18
"""Bytes of pairs whose batches are drawn at once."""


@dataclass(frozen=True)
class BatchRules:
    """How the batches of a round are drawn.

    `law` gives the times; `spans` is the share of rows with a span above 0 (MeanFlow); labels are
    replaced by the null class `classes` at the rate `label_dropout`. With `pieces` above 1 a row
    learns the piece of its trajectory that its time is in.
    """

    law: LawOfTime = Uniform()
    spans: float = 0.0
    pairing: Pairing = Independent()
    flip: bool = False
    pieces: int = 1
    classes: int = 0
    label_dropout: float = 0.0


def draw_batch(
    pairs: Pairs, rules: BatchRules, *, seed: int, step: int, device: torch.device
) -> Batch:
    """Make the batch of a step. Times are stratified: u_i = (i + r_i) / B covers [0, 1] evenly.

    With spans, t and t - span are two draws of the law; without, there is no span.
    """
    rows = len(pairs)
    t = rules.law.spread(_stratified(rows, seed, "time", step))
    span = None
    if rules.spans:
        other = rules.law.spread(_stratified(rows, seed, "span", step)[_order(rows, seed, step)])
        chosen = _uniform(rows, seed, "spans", step) < rules.spans
        t, low = torch.maximum(t, other), torch.minimum(t, other)
        span = torch.where(chosen, t - low, 0.0)
    if rules.pieces > 1:
        pairs = pairs.pieced(t, rules.pieces)
    target, source, label = pairs.target, pairs.source, pairs.label if rules.classes else None
    if rules.pairing.name != "independent":
        source = source[_paired(source, target, label, rules.pairing, seed, step)]
    if rules.flip:
        turned = _uniform(rows, seed, "flip", step) < 0.5
        target, source = (_flipped(x, turned) for x in (target, source))
    if label is not None and rules.label_dropout:
        dropped = _uniform(rows, seed, "label", step) < rules.label_dropout
        label = torch.where(dropped, rules.classes, label)
    drawn = (target, source, t, label, span)
    return Batch(*(None if a is None else a.to(device) for a in drawn))  # type: ignore[arg-type]


def draw_batches(
    stream: Iterator[Pairs], rules: BatchRules, *, seed: int, step: int, device: torch.device
) -> Iterator[Batch]:
    """Yield the batch of each step from `step` on, for the pairs of a stream, until it ends.

    Small ones are drawn several at a time: between steps, drawing finds the cache full of the
    network, and takes twice as long.
    """
    at_once = 1
    while some := list(islice(stream, at_once)):
        yield from [
            draw_batch(pairs, rules, seed=seed, step=step + i, device=device)
            for i, pairs in enumerate(some)
        ]
        step += len(some)
        bytes_of_one = sum(value.nbytes for value in some[0].tensors().values())
        at_once = max(1, AT_ONCE // bytes_of_one)


def _uniform(rows: int, seed: int, name: str, step: int) -> Tensor:
    generator = torch.Generator().manual_seed(derive_seed(seed, name, step))
    return torch.rand(rows, generator=generator)


def _stratified(rows: int, seed: int, name: str, step: int) -> Tensor:
    rising = torch.arange(rows, dtype=torch.float32)
    return (rising + _uniform(rows, seed, name, step)) / rows


def _order(rows: int, seed: int, step: int) -> Tensor:
    generator = torch.Generator().manual_seed(derive_seed(seed, "span_order", step))
    return torch.randperm(rows, generator=generator)


def _flipped(x: Tensor, turned: Tensor) -> Tensor:
    """Mirror the chosen images left to right; mirrored noise is noise, so a pair stays a pair."""
    return torch.where(expand(turned, x), x.flip(-1), x)


def _paired(
    source: Tensor, target: Tensor, label: Tensor | None, pairing: Pairing, seed: int, step: int
) -> Tensor:
    """Return for each target [B] the row of its source, a row of the same label.

    A class keeps its own sources, so its source stays N(0, I); across classes the sources of a
    class would be those near to it, and the flow of that class would start from another law than
    the one it is sampled from.
    """
    if label is None:
        return _assignment(source, target, pairing, derive_seed(seed, "pairing", step))
    paired = torch.arange(len(label))
    for key in label.unique().tolist():
        rows = (label == key).nonzero()[:, 0]
        own = derive_seed(seed, "pairing", step, key)
        paired[rows] = rows[_assignment(source[rows], target[rows], pairing, own)]
    return paired


def _assignment(source: Tensor, target: Tensor, pairing: Pairing, seed: int) -> Tensor:
    """Return for each target [B] the row of its source."""
    distance = torch.cdist(target.flatten(1).double(), source.flatten(1).double()).square().numpy()
    if pairing.name == "optimal":
        from scipy.optimize import linear_sum_assignment  # its import takes a third of a second

        return torch.from_numpy(linear_sum_assignment(distance)[1])
    try:
        import ot
    except ImportError as error:
        raise ReflowError(
            "train.pairing: sinkhorn needs the package POT: `pip install 'pot<0.9.7'`, or use"
            " `pairing: optimal`"
        ) from error
    reg = pairing.reg * float(distance.mean()) if isinstance(pairing, Sinkhorn) else 0.0
    plan = torch.from_numpy(ot.sinkhorn([], [], distance, reg, method="sinkhorn_log"))
    generator = torch.Generator().manual_seed(seed)
    return torch.multinomial(plan.clamp(min=0) + 1e-300, 1, generator=generator)[:, 0]
