"""What a training leaves: the model, its curve and its metrics."""

import csv
import json
from pathlib import Path
from typing import Any

import torch

from fmcore.matching.maps import Batch
from fmcore.network.adapter import merged, write_adapter
from fmcore.network.ema import trained
from fmcore.network.flops import TRAINING, flops_of, flops_per_evaluation
from fmcore.network.store import Model, save
from fmcore.training.checkpoint import History, State
from fmcore.training.fit import Train


def write_model(
    out: Path, state: State, settings: Train, about: dict[str, Any], snapshots: list[Path]
) -> None:
    """Write the average and the weights of a state to the model `out`; `about` joins its config.

    An adapter lies beside the network that has it in its weights.
    """
    if settings.adapter is None:
        save(out, state.ema, raw=state.network, about=about, snapshots=snapshots)
        return
    write_adapter(out, state.ema.module)
    save(out, merged(state.ema.module), raw=merged(state.network), about=about)


def write(
    curve: Path, metrics: Path, state: State, final: dict[str, float], start: Model, settings: Train
) -> None:
    """Write the curve (csv) and the metrics (json, with `final`) of a training from `start`."""
    curve.parent.mkdir(parents=True, exist_ok=True)
    metrics.parent.mkdir(parents=True, exist_ok=True)
    columns = ["step", "loss", "lr", "grad_norm", "held_out_loss"]
    history: History = [{**row, "step": int(row["step"])} for row in state.history]
    with curve.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(history)
    size = sum(p.numel() for p in start.network.parameters())
    rest = {"steps": state.step, "parameters": size}
    result = {"loss": history[-1]["loss"], **final, **_known(state, settings), **rest}
    flops = flops_per_sample(state, start, settings) * state.step * settings.batch
    result["flops_training"] = flops
    metrics.write_text(json.dumps(result, indent=2) + "\n")


def flops_per_sample(state: State, start: Model, settings: Train) -> int:
    """Return the operations of the network for one sample of a training step from `start`.

    Those of a plain step are three evaluations. The rule of a flow map calls the network more than
    once and differentiates it, and beside an adapter most weights have no gradient: there the
    operations of one gradient are counted. The loss is left out.
    """
    if settings.objective != "mean_flow" and settings.adapter is None:
        return TRAINING * flops_per_evaluation(start)
    network, weights = state.network, trained(state.network)
    t = torch.full((1,), 0.5, device=weights[0].device)
    x = torch.zeros(1, *network.shape, device=t.device)
    label = torch.zeros_like(t, dtype=torch.int64) if network.settings.classes else None
    batch = Batch(x, x, t, label, t / 2)

    def gradient() -> None:
        if settings.objective == "mean_flow":
            gap = settings.map.gap(network, batch, x, x, settings.interpolant)
        else:
            gap = network(x, t) if label is None else network(x, t, label)
        torch.autograd.grad(gap.square().mean(), weights, allow_unused=True)

    return flops_of(gradient)


def _known(state: State, settings: Train) -> dict[str, float]:
    """Return what the metrics say beside the losses: the average at the end, what was trained."""
    ends = settings.average()
    found = {"ema_decay": ends["last_decay"], "ema_half_life": ends["last_half_life"]}
    found["learns_mean"] = int(settings.loss.learns_mean)
    if settings.adapter:
        found["trained_parameters"] = sum(p.numel() for p in trained(state.network))
    return found
