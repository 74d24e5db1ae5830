"""Verb: measure one round on the noise that every round is measured on.

Distances to real data by NFE, straightness, transport cost for three convex costs, and the budget
identity cost(k-1) - cost(k) = S + V of Liu et al. 2022 (S straightness, V least training loss).
"""

import csv
import json
import math
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from fmcore import pictures
from fmcore.compute import in_tiles
from fmcore.coupling import gaussian_noise, open_coupling, read
from fmcore.flow_matching import held_out_losses
from fmcore.interpolant import Linear
from fmcore.metrics import straightness as bend
from fmcore.metrics.transport import transport_cost, transport_cost_l1, transport_cost_l4
from fmcore.network import Model, load
from fmcore.settings import Log, Settings, derive_seed
from fmcore.solver import Solver, solve
from fmcore.yardstick import Yardstick
from fmcore.yardstick import load as load_yardstick

SHOWN = 16
"""How many samples a picture shows for each NFE."""


class Evaluate(Settings):
    """What is measured: Euler at each NFE, and trajectories by a fine solver."""

    nfe: Annotated[tuple[Annotated[int, Field(gt=0)], ...], Field(min_length=1, strict=False)] = (
        1, 2, 4, 8, 16, 32, 64,
    )  # fmt: skip
    solver: Solver = Solver(name="heun", steps=32)
    trajectories: int = Field(default=2048, gt=1)
    batch: int = Field(default=1024, gt=0)


def evaluate(
    model: Path,
    data: Path,
    coupling: Path,
    yardstick: Path,
    metrics: Path,
    curves: tuple[Path, Path],
    out: Path,
    settings: Evaluate,
    *,
    seed: int,
    device: torch.device,
    log: Log,
) -> dict[str, float]:
    """Measure the model that was trained on `coupling` against the real `data`.

    Writes `metrics` (json), `curves` (csv: distances over NFE, gap over t) and pictures into the
    folder `out`. The noise depends on `seed` alone: rounds and NFE are compared on the same draws.
    """
    velocity = load(model, device=str(device))
    measure = load_yardstick(yardstick)
    image = open_coupling(data).about.image
    noise = _noise(seed, measure.samples, velocity.shape)
    rows, shown = _by_nfe(velocity, measure, noise, settings, log)
    path = _trajectory(velocity, noise[: settings.trajectories], settings)
    result = {
        **_flat(rows, measure),
        **_paths(path),
        **_known(velocity, data, path),
        **_budget(velocity, coupling, path, seed=seed, device=device),
    }
    t, gap = bend.straightness_curve(path)
    _csv(curves[0], rows)
    _csv(curves[1], [{"t": a, "gap": b} for a, b in zip(t.tolist(), gap.tolist(), strict=True)])
    out.mkdir(parents=True, exist_ok=True)
    real = read(open_coupling(data)).target[: SHOWN if image else 2000]
    pictures.samples_by_nfe(out / "samples.png", shown, image=image, reference=real)
    pictures.trajectories(out / "trajectories.png", path)
    metrics.parent.mkdir(parents=True, exist_ok=True)
    metrics.write_text(json.dumps(result, indent=2) + "\n")
    return result


def _noise(seed: int, count: int, shape: tuple[int, ...]) -> Tensor:
    return gaussian_noise(derive_seed(seed, "evaluate"), np.arange(count), shape)


def _by_nfe(
    model: Model, measure: Yardstick, noise: Tensor, settings: Evaluate, log: Log
) -> tuple[list[dict[str, float]], dict[int, Tensor]]:
    """Return a row of distances for each NFE, and some samples of each to look at."""
    velocity = in_tiles(model.network)
    device = next(model.network.parameters()).device
    rows: list[dict[str, float]] = []
    shown: dict[int, Tensor] = {}
    for done, steps in enumerate(sorted(set(settings.nfe)), start=1):
        solver = Solver(name="euler", steps=steps)
        x = torch.cat(
            [solve(velocity, z.to(device), solver).x.cpu() for z in noise.split(settings.batch)]
        )
        rows.append({"nfe": steps, **measure.measure(x)})
        shown[steps] = x[: SHOWN if x.ndim > 2 else 2000]
        log({measure.name: rows[-1][measure.name]}, done)
    return rows, shown


def _trajectory(model: Model, noise: Tensor, settings: Evaluate) -> Tensor:
    velocity = in_tiles(model.network)
    device = next(model.network.parameters()).device
    parts = []
    for z in noise.split(settings.batch):
        solution = solve(velocity, z.to(device), settings.solver, keep_trajectory=True)
        assert solution.trajectory is not None
        parts.append(solution.trajectory.cpu())
    return torch.cat(parts, dim=1)


def _flat(rows: list[dict[str, float]], measure: Yardstick) -> dict[str, float]:
    flat = {
        f"{name}/nfe_{int(row['nfe'])}": value
        for row in rows
        for name, value in row.items()
        if name != "nfe"
    }
    floors = {f"{name}/floor": value for name, value in measure.about["floor"].items()}
    return {**flat, **floors}


def _paths(path: Tensor) -> dict[str, float]:
    """Straightness in its three definitions and the cost for three convex functions."""
    source, target = path[0], path[-1]
    return {
        "straightness": bend.straightness(path),
        "straightness_per_dim": bend.straightness_per_dim(path),
        "straightness_rel": bend.straightness_rel(path),
        "curvature_angle": bend.curvature_angle(path),
        "transport_cost": transport_cost(source, target),
        "transport_cost_l1": transport_cost_l1(source, target),
        "transport_cost_l4": transport_cost_l4(source, target),
    }


def _known(model: Model, data: Path, path: Tensor) -> dict[str, float]:
    """Measure the start of the path, and the path's energy where W2 is known (Gaussian data)."""
    source = path[0].to(next(model.network.parameters()).device)
    start = in_tiles(model.network)(source, torch.ones(len(source), device=source.device)).cpu()
    found = {"ivd": bend.initial_velocity_delta(start, path)}
    settings = open_coupling(data).about.data or {}
    if settings.get("name") == "gaussian":
        mean, std = torch.tensor(settings["mean"]), torch.tensor(settings["std"])
        w2_squared = float(mean.square().sum() + (1 - std).square().sum())
        if w2_squared > 0:
            found["npe"] = bend.normalised_path_energy(path, w2_squared)
    return found


def _budget(
    model: Model, coupling: Path, path: Tensor, *, seed: int, device: torch.device
) -> dict[str, float]:
    """Check cost(k-1) - cost(k) = S + V: a defect far from 0 says under-fitted or over-fitted.

    Holds for the straight interpolant only; V is the held-out loss summed over dimensions.
    """
    interpolant = Linear()
    if model.config["interpolant"]["name"] != interpolant.name:
        return {}
    losses = held_out_losses(
        model.network, interpolant, coupling, seed=seed, device=device, limit=4096
    )
    pairs = read(open_coupling(coupling), limit=20000)
    before = transport_cost(pairs.source, pairs.target)
    after = transport_cost(path[0], path[-1])
    if not losses:
        return {"transport_cost_before": before}
    loss = losses["held_out_loss"] * math.prod(model.shape)
    defect = (before - after - bend.straightness(path) - loss) / before
    return {"transport_cost_before": before, "budget_defect": defect, **losses}


def _csv(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
