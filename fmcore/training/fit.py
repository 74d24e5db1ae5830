"""The optimisation of a velocity by `matching.loss`: settings, state, one step after another."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.optim import AdamW

from fmcore.choices.interpolants import Interpolant
from fmcore.choices.laws import LawOfTime
from fmcore.coupling.pairs import Pairs
from fmcore.matching.interpolant import Linear, Objective
from fmcore.matching.loss import Loss
from fmcore.matching.maps import MEAN_FLOW
from fmcore.matching.times import Grid, Point, Uniform
from fmcore.network.adapter import Lora
from fmcore.network.build import VelocityNetwork
from fmcore.network.ema import Ema, averaged, decay_of, half_life_of, ramped, trained
from fmcore.network.power import PowerEma, power_averaged
from fmcore.network.store import Weights
from fmcore.settings import (
    BatchSize,
    LearningRate,
    Settings,
    StepCount,
    WorkerCount,
    derive_seed,
)
from fmcore.training.batch import BatchRules, Independent, Pairing, draw_batches
from fmcore.training.checkpoint import State
from fmcore.training.gradient import draws, network_of
from fmcore.training.losses import LossOfRound, RuleOfMap
from fmcore.training.processes import ALONE, Group
from fmcore.work.compute import Compute


class Train(Settings):
    """How a round is trained.

    `processes` share each batch, on as many GPUs or cores. Their number changes rounding, hence the
    result; so it is a setting, and so are `accumulate` and `recompute`.
    `time` is the law of t; `point` or `grid` makes the round a student of its coupling for one or k
    steps. `objective` is what the network predicts. `pairing` re-pairs each batch of an independent
    coupling; `flip` mirrors pairs of images; `drop_longest` leaves out that share of the pairs.
    """

    steps: StepCount
    """Optimiser steps; the learning rate falls to 0 over them. More steps fit better, and remember
    a small set of pairs sooner."""
    batch: BatchSize = 256
    """Pairs in each step. Raise it to smooth the gradient, lower it when memory runs out."""
    lr: LearningRate = 1e-3
    """Peak learning rate of AdamW, reached after `warmup` steps, then falling to 0 along a cosine.
    Lower it when the loss rises or the run is stopped as diverged."""
    warmup: int = Field(default=100, ge=0, le=10**9)
    """Steps over which the learning rate rises to its peak. Raise it when the first steps
    diverge."""
    clip: float = Field(default=1.0, gt=0, le=1e12)
    """Largest norm of the gradient; a longer one is scaled down to it. Lower it when the loss has
    spikes."""
    weight_decay: float = Field(default=0.0, ge=0, le=1e3)
    """Weight decay of AdamW. Raise it when the network remembers its pairs."""
    ema: Ema = 0.999
    """Length of the average of the weights, the model that is sampled: the decay of a step, or
    `{half_life: 500000}` in samples. It starts shorter, at 8 % of the steps done, and rises to
    this. Raise it with `steps`: 0.9999 for hundreds of thousands."""
    power_ema: PowerEma | None = None
    """Averages that are kept beside it, so that one of any length is made after training
    (`weights: 0.1`, `evaluate.weights`); `{}` takes the usual two. null keeps none."""
    interpolant: Interpolant = Linear()
    """How a point on the path is mixed from target and source. Keep linear for rectification; the
    budget is checked for it alone."""
    objective: Objective = "velocity"
    """What the network predicts: `velocity`, `noise` (the source), `target`, or `mean_flow` (the
    velocity averaged over a span, for long steps)."""
    time: LawOfTime = Uniform()
    """The law by which training times t are drawn. `beta` with a 1.5 and b 0.5, mostly near the
    source, suits round 2; `point` and `grid` make a student for one or k steps."""
    map: RuleOfMap = Field(default=MEAN_FLOW, exclude_if=lambda rule: rule == MEAN_FLOW)
    """The rule by which objective mean_flow learns the average over a span: `mean_flow`,
    `improved`, `shortcut`, `consistency` (all spans reach t = 0) or `lagrangian`."""
    spans: float = Field(default=0.25, ge=0, le=1)
    """Share of a batch that trains on a span above 0, with objective mean_flow; other objectives
    ignore it."""
    loss: LossOfRound = Loss()
    """What is minimised: the error of the prediction, as a function of its size and of t."""
    pieces: Annotated[int, Field(ge=1, le=256, exclude_if=lambda pieces: pieces == 1)] = 1
    """Into how many pieces of one length in t a path is cut, each learned as straight (PeRFlow),
    from states of its coupling (`store.pieces`, a multiple). With `time: {name: grid}` it learns
    where they begin alone. 1 is one straight path."""
    pairing: Pairing = Independent()
    """How the sources and targets of each batch are paired again, for straighter paths in round 1.
    Only for the independent coupling; with network.classes, within each class."""
    flip: bool = False
    """Whether images are mirrored left to right at random, source and target together. Not for
    digits or text."""
    drop_longest: float = Field(default=0.0, ge=0, lt=1)
    """Share of the pairs that is left out: those with the largest |target - source|. Only for
    generated couplings; set it when far pairs dominate the loss."""
    label_dropout: float = Field(default=0.1, ge=0, le=1)
    """Share of labels that is replaced by no label in training; guidance needs some. Without
    network.classes it has no effect."""
    start_from: Weights = "ema"
    """Which weights of the model `init` the round starts from: the average (`ema`), the
    optimiser's own (`raw`), or the power average of a relative length (0.1), if `init` has
    `power_ema`."""
    adapter: Lora | None = Field(default=None, exclude_if=lambda adapter: adapter is None)
    """Weights beside those of the network of `init`, which are trained in their place:
    `{kind: lora, rank: 16}`. null trains all weights."""
    log_every: StepCount = 50
    """Steps between two points of the training curve; each is the mean loss since the
    previous point."""
    checkpoint_every: StepCount = 500
    """Steps between two checkpoints, from which a stopped training continues; the held-out loss
    is measured at each."""
    diverged: float = Field(default=20.0, gt=1, le=1e12)
    """Factor above its best at which the logged loss stops the run as diverged. Raise it when the
    loss is noisy."""
    memory_mb: int = Field(default=2048, gt=0, le=2**24)
    """Memory for pairs, in MiB, of all processes together: source, target, ids and order. A larger
    coupling is read and shuffled in windows of this size. One row group (4 MiB) is read beside a
    window; network, optimiser and libraries come on top."""
    processes: WorkerCount = 1
    """Processes that share each batch and the reading of the coupling, on a GPU each or on cores.
    It changes the order of sums, hence rounding."""
    shard: Literal["replicate", "full"] = "replicate"
    """What each of several processes holds: `replicate` is all weights, `full` a share of weights,
    moments and averages (FSDP2), for a network whose training does not fit one GPU."""
    accumulate: int = Field(default=1, ge=1, le=10**6)
    """Pieces of its part of a batch whose gradients a process adds up, one piece after the other.
    Raise it when memory runs out; the loss of a step stays that of the whole batch."""
    recompute: bool = False
    """Whether the backward pass computes the inside of each block again in place of keeping it:
    less memory, for a third more time. Not for objective mean_flow."""

    @property
    def student(self) -> bool:
        """Whether the round learns single times only: a student for one or k steps."""
        return isinstance(self.time, Point | Grid)

    @property
    def decay(self) -> float:
        """The decay of the average at its full length, for a step."""
        return decay_of(self.ema, self.batch)

    @property
    def last_decay(self) -> float:
        """The decay at the last step: lower than `decay` if the training is too short for it."""
        return ramped(self.decay, self.steps - 1)

    def average(self) -> dict[str, float]:
        """Return the decay of the average and its half-life in samples, asked for and reached."""
        return {
            "decay": self.decay,
            "half_life": half_life_of(self.decay, self.batch),
            "last_decay": self.last_decay,
            "last_half_life": half_life_of(self.last_decay, self.batch),
        }

    def short_average(self) -> str | None:
        """Return a line if the training ends with an average below half the length asked for."""
        found = self.average()
        asked, reached = found["half_life"], found["last_half_life"]
        if not asked > 2 * reached:
            return None
        return (
            f"train.ema: a half-life of {asked:.0f} samples is asked for, the average ends at"
            f" {reached:.0f}: in each round it rises anew to 8 % of the steps, whatever `init` is;"
            f" train {4.5 / (1 - self.decay):.0f} steps, or ask for less"
        )


FUSED = ("cpu", "cuda")
"""Devices on which AdamW is one pass over the weights; on others it is one of each operation."""


@dataclass(frozen=True)
class Step:
    """One optimiser step: its number (from 1), the loss [] and the gradient norm [] as tensors."""

    step: int
    loss: Tensor
    grad_norm: Tensor


def _whole(_: nn.Module) -> None: ...


def new_state(
    network: VelocityNetwork, settings: Train, divide: Callable[[nn.Module], object] = _whole
) -> State:
    """Return the state before the first step: AdamW, warm-up and cosine to zero, averages.

    `divide` is called with the network and each average before the optimiser gets the weights.
    """

    def rate(step: int) -> float:
        rise = min(1.0, (step + 1) / (settings.warmup + 1))
        fall = 0.5 * (1 + math.cos(math.pi * min(1.0, step / settings.steps)))
        return settings.lr * (rise * fall)

    network.train()
    if settings.adapter is None:  # only its weights ask for a gradient
        network.requires_grad_(True)
    kept = settings.power_ema.sigma_rel if settings.power_ema else ()
    averages = [averaged(network, settings.decay), *(power_averaged(network, s) for s in kept)]
    divide(network)
    for average in averages:
        divide(average.module)
        average.list_weights()
    fused = next(network.parameters()).device.type in FUSED
    optimizer = AdamW(
        trained(network),
        lr=rate(0),
        weight_decay=settings.weight_decay,
        fused=fused,
        foreach=not fused,
    )
    return State(
        network,
        averages[0],
        optimizer,
        rate,
        settings=settings.model_dump(mode="json"),
        powers={f"{s:g}": average for s, average in zip(kept, averages[1:], strict=True)},
    )


def fit(
    state: State,
    stream: Iterator[Pairs],
    settings: Train,
    *,
    seed: int,
    compute: Compute | None = None,
    group: Group = ALONE,
) -> Iterator[Step]:
    """Train `state` on a stream of pairs from its current step on; yield after each step.

    The stream gives the pairs of step `state.step`, then of the next ones. Every draw (source, t,
    labels, dropout) is a function of (seed, step): stopping and resuming changes nothing. The loss
    of a step is the mean square error, whichever loss is minimised.
    """
    shared = network_of(state.network, settings, compute or Compute(), group)
    device = shared.weights[0].device
    rules = batch_rules(settings, state.network.settings.classes)
    random = draws(state.network)
    left = islice(stream, max(0, settings.steps - state.step))
    for batch in draw_batches(left, rules, seed=seed, step=state.step, device=device):
        if random:  # torch has no other generator for dropout
            torch.manual_seed(derive_seed(seed, "dropout", state.step, group.rank))
        error, gradients = shared.gradients(batch)
        norm = clip(gradients, settings.clip, group)
        del gradients  # else those of the next step need memory beside them
        state.optimizer.step()
        for average in (state.ema, *state.powers.values()):
            average.update_parameters(state.network)
        state.to_step(state.step + 1)
        yield Step(state.step, error, norm)


@torch.no_grad()
def clip(gradients: list[Tensor], longest: float, group: Group = ALONE) -> Tensor:
    """Scale gradients down to the norm `longest`; return their norm [] before.

    As torch's `clip_grad_norm_`, which groups them twice by device and type. No device is waited
    for. It is the norm over the group where gradients are divided among its processes.
    """
    norm: Tensor = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
    if group.divided:
        norm = group.added(norm.square()).sqrt()
    torch._foreach_mul_(gradients, (longest / (norm + 1e-6)).clamp(max=1.0))
    return norm


def batch_rules(settings: Train, classes: int) -> BatchRules:
    """Return how the batches of a round are drawn, for a network with `classes` classes."""
    return BatchRules(
        law=settings.time,
        spans=settings.spans if settings.objective == "mean_flow" else 0.0,
        pairing=settings.pairing,
        flip=settings.flip,
        pieces=settings.pieces,
        classes=classes,
        label_dropout=settings.label_dropout,
    )


def map_of(settings: Train) -> dict[str, Any]:
    """Return what a model's config says of the rule of its flow map; nothing of MeanFlow's."""
    if settings.map == MEAN_FLOW:
        return {}
    return {"map": settings.map.model_dump(mode="json")}
