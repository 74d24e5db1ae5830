"""Verb: learn a velocity from a coupling. The same code trains round 1 and round k.

Loss: E ||v(x_t, t) - u_t||^2 with x_t = alpha target + sigma source, u_t = alpha' target +
sigma' source (Das 2024; Liu et al. 2022, equation 1).
"""

import csv
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR

from fmcore.batch import Batch, Independent, Pairing, draw
from fmcore.checkpoint import History, State, finite, load_state, save_state
from fmcore.compute import Compute
from fmcore.coupling import Coupling, batches, longest, open_coupling
from fmcore.flow import Flow, Predicts
from fmcore.flow_matching import held_out_losses
from fmcore.interpolant import Interpolant, Linear, interpolate
from fmcore.loss import Loss
from fmcore.mean_flow import mean_flow_gap
from fmcore.network import Model, VelocityNetwork, averaged, load, save, with_spans
from fmcore.settings import Accept, Log, ReflowError, Settings
from fmcore.times import Grid, LawOfTime, Point, Uniform
from fmcore.views import prediction, usable_times


class Train(Settings):
    """How a round is trained.

    `time` is the law of t; `point` or `grid` makes the round a student of its coupling for one or k
    steps. `objective` is what the network predicts. `pairing` re-pairs each batch of an independent
    coupling; `flip` mirrors pairs of images; `drop_longest` leaves out that share of the pairs.
    """

    steps: int = Field(gt=0)
    batch: int = Field(default=256, gt=0)
    lr: float = Field(default=1e-3, gt=0)
    warmup: int = Field(default=100, ge=0)
    clip: float = Field(default=1.0, gt=0)
    weight_decay: float = Field(default=0.0, ge=0)
    ema: float = Field(default=0.999, ge=0, lt=1)
    interpolant: Interpolant = Linear()
    objective: Predicts = "velocity"
    time: LawOfTime = Uniform()
    spans: float = Field(default=0.25, ge=0, le=1)
    loss: Loss = Loss()
    pairing: Pairing = Independent()
    flip: bool = False
    drop_longest: float = Field(default=0.0, ge=0, lt=1)
    label_dropout: float = Field(default=0.1, ge=0, le=1)
    start_from: Literal["ema", "raw"] = "ema"
    log_every: int = Field(default=50, gt=0)
    checkpoint_every: int = Field(default=500, gt=0)
    diverged: float = Field(default=20.0, gt=1)
    memory_mb: int = Field(default=2048, gt=0)

    @property
    def student(self) -> bool:
        """Whether the round learns single times only: a student for one or k steps."""
        return isinstance(self.time, Point | Grid)


@dataclass(frozen=True)
class Step:
    """One optimiser step: its number (from 1), the loss [] and the gradient norm [] as tensors."""

    step: int
    loss: Tensor
    grad_norm: Tensor


def new_state(network: VelocityNetwork, settings: Train) -> State:
    """Return the state before the first step: AdamW, warm-up and cosine to zero, EMA."""

    def factor(step: int) -> float:
        rise = min(1.0, (step + 1) / (settings.warmup + 1))
        return rise * 0.5 * (1 + math.cos(math.pi * min(1.0, step / settings.steps)))

    network.train().requires_grad_(True)
    optimizer = AdamW(
        network.parameters(), lr=settings.lr, weight_decay=settings.weight_decay, foreach=True
    )
    return State(network, averaged(network, settings.ema), optimizer, LambdaLR(optimizer, factor))


def fit(
    state: State, coupling: Path, settings: Train, *, seed: int, compute: Compute | None = None
) -> Iterator[Step]:
    """Train `state` on `coupling` from where it stands; a generator, so the caller drives.

    Every draw (rows, source, t) is a function of (seed, step): stopping and going on changes
    nothing. The loss of a step is the mean square error, whatever it is that is minimised.
    """
    device = next(state.network.parameters()).device
    opened = open_coupling(coupling)
    network = (compute or Compute()).running(state.network)
    stream = batches(
        opened,
        batch=settings.batch,
        seed=seed,
        start=state.step,
        memory=settings.memory_mb << 20,
        shorter_than=longest(opened, settings.drop_longest),
    )
    for pairs in stream:
        if state.step >= settings.steps:
            return
        batch = draw(
            pairs,
            seed=seed,
            step=state.step,
            law=settings.time,
            spans=settings.spans if settings.objective == "mean_flow" else 0.0,
            pairing=settings.pairing,
            flip=settings.flip,
            classes=state.network.settings.classes,
            label_dropout=settings.label_dropout,
            device=device,
        )
        state.optimizer.zero_grad(set_to_none=True)
        loss, error = _losses(network, batch, settings)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(state.network.parameters(), settings.clip)
        state.optimizer.step()
        state.schedule.step()
        state.ema.update_parameters(state.network)
        state.step += 1
        yield Step(state.step, error.detach(), norm.detach())


def _losses(network: Callable[..., Tensor], batch: Batch, settings: Train) -> tuple[Tensor, Tensor]:
    """Return what is minimised [] and the mean square error [] of a batch."""
    objective = "velocity" if settings.objective == "mean_flow" else settings.objective
    low, high = usable_times(settings.interpolant, objective)
    t = batch.t.clamp(low, high)
    x, u = interpolate(settings.interpolant, batch.target, batch.source, t)
    if settings.objective == "mean_flow":
        gap = mean_flow_gap(network, x, u, t, batch.span, batch.label)
    else:
        out = network(x, t) if batch.label is None else network(x, t, batch.label)
        gap = out - prediction(objective, batch.target, batch.source, u)
    value = settings.loss.per_sample(gap, t, settings.interpolant, objective).mean()
    return value, gap.square().mean()


def train(
    coupling: Path,
    init: Path,
    out: Path,
    curve: Path,
    metrics: Path,
    settings: Train,
    *,
    name: str,
    seed: int,
    device: torch.device,
    scratch: Path,
    log: Log,
    compute: Compute | None = None,
    accept: Accept = lambda _: None,
) -> None:
    """Train the model `init` on `coupling`; write the model, its curve (csv) and metrics (json).

    `scratch` keeps checkpoints: a killed training goes on from there to the same bytes.
    """
    start = load(init, weights=settings.start_from)
    opened = open_coupling(coupling)
    _check(opened, start, init, settings)
    network = with_spans(start.network) if settings.objective == "mean_flow" else start.network
    state = new_state(network.to(device), settings)
    if load_state(scratch, state):
        log({"resumed": 1.0}, state.step)
    _run(state, coupling, settings, seed=seed, compute=compute, scratch=scratch, log=log)
    final = _held_out(state, coupling, settings, seed=seed, limit=16 * settings.batch)
    accept(final)
    save(
        out,
        state.ema,
        raw=state.network,
        about={
            "round": name,
            "seed": seed,
            "interpolant": settings.interpolant.model_dump(),
            "objective": settings.objective,
            "time": settings.time.model_dump(),
            "pairing": settings.pairing.name,
            "coupling": opened.about.kind,
            "init": start.digest,
            "steps": settings.steps,
        },
    )
    _write(curve, metrics, state, final, start)


def _run(
    state: State,
    coupling: Path,
    settings: Train,
    *,
    seed: int,
    compute: Compute | None,
    scratch: Path,
    log: Log,
) -> None:
    """Drive `fit`: average the loss between logs, watch it, checkpoint."""
    losses: list[Tensor] = []
    for done in fit(state, coupling, settings, seed=seed, compute=compute):
        losses.append(done.loss)
        last = done.step == settings.steps
        logged = done.step % settings.log_every == 0 or last
        kept = done.step % settings.checkpoint_every == 0 or last
        if not (logged or kept):
            continue
        row = {
            "step": float(done.step),
            "loss": float(torch.stack(losses).mean()),
            "lr": float(state.schedule.get_last_lr()[0]),
            "grad_norm": float(done.grad_norm),
        }
        _watch(row, state, settings, scratch)
        losses.clear()
        if kept:
            held = _held_out(state, coupling, settings, seed=seed, limit=4 * settings.batch)
            if "held_out_loss" in held:
                row["held_out_loss"] = held["held_out_loss"]
        state.history.append(row)
        if kept:
            save_state(scratch, state)
        log({k: v for k, v in row.items() if k != "step"}, done.step)


def _check(coupling: Coupling, start: Model, init: Path, settings: Train) -> None:
    """Refuse what cannot be trained, before the first step."""
    shape = list(start.shape)
    if coupling.about.shape != shape:
        raise ReflowError(
            f"{init}: samples of shape {shape}, those of {coupling.path} {coupling.about.shape};"
            " start the round from a model of the same shape, or from scratch"
        )
    if settings.pairing.name != "independent" and not coupling.independent:
        raise ReflowError(
            f"train.pairing {settings.pairing.name}: {coupling.path} has pairs of its own, which it"
            " would undo; use it with `coupling: independent`"
        )
    if settings.drop_longest and coupling.independent:
        raise ReflowError("train.drop_longest: the independent coupling has no fixed pairs to drop")
    if settings.flip and len(shape) != 3:
        raise ReflowError(f"train.flip: mirrors images [C, H, W], samples here are {shape}")


def _held_out(
    state: State, coupling: Path, settings: Train, *, seed: int, limit: int
) -> dict[str, float]:
    """Losses of the EMA weights; a student is judged at the times that it learns."""
    device = next(state.network.parameters()).device
    classes = state.network.settings.classes
    state.ema.eval()
    flow = Flow(state.ema, settings.interpolant, settings.objective, classes)
    found = held_out_losses(
        flow,
        coupling,
        seed=seed,
        device=device,
        limit=limit,
        law=settings.time if settings.student else None,
    )
    state.ema.train()
    return found


def _watch(row: dict[str, float], state: State, settings: Train, scratch: Path) -> None:
    """Stop on a loss that is not finite or has run away; the last good checkpoint stays."""
    step, loss = int(row["step"]), row["loss"]
    best = min((r["loss"] for r in state.history), default=math.inf)
    kept = f"the last good checkpoint is kept in {scratch.name}" if scratch.exists() else ""
    if not math.isfinite(loss) or not finite(state):
        raise ReflowError(
            f"the loss is {loss} at step {step}: training diverged; lower train.lr"
            f" ({settings.lr:g}) or train.clip ({settings.clip:g}); {kept}".rstrip("; ")
        )
    if loss > settings.diverged * best:
        raise ReflowError(
            f"the loss rose to {loss:.3g} at step {step}, {loss / best:.0f} times its best"
            f" ({best:.3g}); lower train.lr ({settings.lr:g}); {kept}".rstrip("; ")
        )


def _write(curve: Path, metrics: Path, state: State, final: dict[str, float], start: Model) -> None:
    curve.parent.mkdir(parents=True, exist_ok=True)
    metrics.parent.mkdir(parents=True, exist_ok=True)
    columns = ["step", "loss", "lr", "grad_norm", "held_out_loss"]
    history: History = [{**row, "step": int(row["step"])} for row in state.history]
    with curve.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(history)
    size = sum(p.numel() for p in start.network.parameters())
    result = {"loss": history[-1]["loss"], **final, "steps": state.step, "parameters": size}
    metrics.write_text(json.dumps(result, indent=2) + "\n")
