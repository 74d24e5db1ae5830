"""Verb: learn a velocity from a coupling. The same code trains round 1 and round k.

Loss: E ||v(x_t, t) - u_t||^2 with x_t = alpha target + sigma source, u_t = alpha' target +
sigma' source (Das 2024; Liu et al. 2022, equation 1).
"""

import csv
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR

from fmcore.checkpoint import History, State, finite, load_state, save_state
from fmcore.coupling import batches, open_coupling
from fmcore.flow_matching import flow_matching_loss, held_out_losses, spread_times
from fmcore.interpolant import Interpolant, Linear
from fmcore.network import Model, averaged, load, save
from fmcore.settings import Log, ReflowError, Settings, derive_seed


class Train(Settings):
    """How a round is trained."""

    steps: int = Field(gt=0)
    batch: int = Field(default=256, gt=0)
    lr: float = Field(default=1e-3, gt=0)
    warmup: int = Field(default=100, ge=0)
    clip: float = Field(default=1.0, gt=0)
    weight_decay: float = Field(default=0.0, ge=0)
    ema: float = Field(default=0.999, ge=0, lt=1)
    interpolant: Interpolant = Linear()
    time: Literal["uniform", "u_shaped"] = "uniform"
    start_from: Literal["ema", "raw"] = "ema"
    log_every: int = Field(default=50, gt=0)
    checkpoint_every: int = Field(default=500, gt=0)
    diverged: float = Field(default=20.0, gt=1)
    memory_mb: int = Field(default=2048, gt=0)


@dataclass(frozen=True)
class Step:
    """One optimiser step: its number (from 1), the loss [] and the gradient norm [] as tensors."""

    step: int
    loss: Tensor
    grad_norm: Tensor


def new_state(network: nn.Module, settings: Train) -> State:
    """Return the state before the first step: AdamW, warm-up and cosine to zero, EMA."""

    def factor(step: int) -> float:
        rise = min(1.0, (step + 1) / (settings.warmup + 1))
        return rise * 0.5 * (1 + math.cos(math.pi * min(1.0, step / settings.steps)))

    network.train().requires_grad_(True)
    optimizer = AdamW(
        network.parameters(), lr=settings.lr, weight_decay=settings.weight_decay, foreach=True
    )
    return State(network, averaged(network, settings.ema), optimizer, LambdaLR(optimizer, factor))


def fit(state: State, coupling: Path, settings: Train, *, seed: int) -> Iterator[Step]:
    """Train `state` on `coupling` from where it stands; a generator, so the caller drives.

    Every draw (rows, source, t) is a function of (seed, step): stopping and going on changes
    nothing. Times are stratified: u_i = (i + r_i) / B covers [0, 1] evenly in each batch.
    """
    device = next(state.network.parameters()).device
    stream = batches(
        open_coupling(coupling),
        batch=settings.batch,
        seed=seed,
        start=state.step,
        memory=settings.memory_mb << 20,
    )
    for pairs in stream:
        if state.step >= settings.steps:
            return
        draw = torch.Generator().manual_seed(derive_seed(seed, "time", state.step))
        rows = len(pairs)
        u = (torch.arange(rows) + torch.rand(rows, generator=draw)) / rows
        t = spread_times(u, settings.time)
        target, source, t = (a.to(device) for a in (pairs.target, pairs.source, t))
        state.optimizer.zero_grad(set_to_none=True)
        loss = flow_matching_loss(state.network, settings.interpolant, target, source, t)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(state.network.parameters(), settings.clip)
        state.optimizer.step()
        state.schedule.step()
        state.ema.update_parameters(state.network)
        state.step += 1
        yield Step(state.step, loss.detach(), norm.detach())


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
) -> None:
    """Train the model `init` on `coupling`; write the model, its curve (csv) and metrics (json).

    `scratch` keeps checkpoints: a killed training goes on from there to the same bytes.
    """
    start = load(init, weights=settings.start_from)
    about = open_coupling(coupling).about
    if tuple(about.shape) != start.shape:
        raise ReflowError(
            f"{init}: samples of shape {list(start.shape)}, those of {coupling} {about.shape};"
            " start the round from a model of the same shape, or from scratch"
        )
    state = new_state(start.network.to(device), settings)
    if load_state(scratch, state):
        log({"resumed": 1.0}, state.step)
    _run(state, coupling, settings, seed=seed, scratch=scratch, log=log)
    final = held_out_losses(
        state.ema, settings.interpolant, coupling, seed=seed, device=device, limit=4096
    )
    save(
        out,
        state.ema,
        raw=state.network,
        about={
            "round": name,
            "seed": seed,
            "interpolant": settings.interpolant.model_dump(),
            "coupling": about.kind,
            "init": start.digest,
            "steps": settings.steps,
        },
    )
    _write(curve, metrics, state, final, start)


def _run(
    state: State, coupling: Path, settings: Train, *, seed: int, scratch: Path, log: Log
) -> None:
    """Drive `fit`: average the loss between logs, watch it, checkpoint."""
    losses: list[Tensor] = []
    device = next(state.network.parameters()).device
    for done in fit(state, coupling, settings, seed=seed):
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
            held = held_out_losses(
                state.ema, settings.interpolant, coupling, seed=seed, device=device, limit=1024
            )
            if "held_out_loss" in held:
                row["held_out_loss"] = held["held_out_loss"]
        state.history.append(row)
        if kept:
            save_state(scratch, state)
        log({k: v for k, v in row.items() if k != "step"}, done.step)


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
