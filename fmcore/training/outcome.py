"""What a training leaves: the model, its curve and its metrics."""

import csv
import json
from pathlib import Path
from typing import Any

from fmcore.network.adapter import merged, write_adapter
from fmcore.network.ema import trained
from fmcore.network.flops import TRAINING, flops_per_evaluation
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
    flops = TRAINING * flops_per_evaluation(start) * state.step * settings.batch
    result["flops_training"] = flops
    metrics.write_text(json.dumps(result, indent=2) + "\n")


def _known(state: State, settings: Train) -> dict[str, float]:
    """Return what the metrics say beside the losses: the average at the end, what was trained."""
    ends = settings.average()
    found = {"ema_decay": ends["last_decay"], "ema_half_life": ends["last_half_life"]}
    found["learns_mean"] = int(settings.loss.learns_mean)
    if settings.adapter:
        found["trained_parameters"] = sum(p.numel() for p in trained(state.network))
    return found
