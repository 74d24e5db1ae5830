"""Verb: measure one round on the noise that every round is measured on.

Distances to real data by NFE, straightness, transport cost for three convex costs, and the budget
identity cost(k-1) - cost(k) = S + V of Liu et al. 2022 (S straightness, V least training loss).
"""

import csv
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from fmcore import pictures
from fmcore.carrier import Carrier, carried
from fmcore.compute import Compute
from fmcore.coupling import gaussian_noise, open_coupling, read
from fmcore.coupling.noise import uniform
from fmcore.executor import IN_PROCESS, Executor, crew
from fmcore.flow import Flow
from fmcore.flow_matching import held_out_losses
from fmcore.interpolant import Linear
from fmcore.metrics import straightness as bend
from fmcore.metrics.transport import transport_cost, transport_cost_l1, transport_cost_l4
from fmcore.network import load
from fmcore.sde import Sde, diffuse
from fmcore.settings import Accept, Log, Settings, derive_seed
from fmcore.solver import Solution, Solver
from fmcore.yardstick import Yardstick
from fmcore.yardstick import load as load_yardstick

SHOWN = 16
"""How many samples a picture shows for each NFE."""


class Evaluate(Settings):
    """What is measured: Euler at each NFE, trajectories by a fine solver, the reverse SDE.

    `sde` is measured on rounds whose velocity is a score. `guidance` is for flows with classes.
    """

    nfe: Annotated[tuple[Annotated[int, Field(gt=0)], ...], Field(min_length=1, strict=False)] = (
        1, 2, 4, 8, 16, 32, 64,
    )  # fmt: skip
    solver: Solver = Solver(name="heun", steps=32)
    sde: Annotated[tuple[Sde, ...], Field(strict=False)] = ()
    trajectories: int = Field(default=2048, gt=1)
    reconstructions: int = Field(default=512, ge=0)
    guidance: float = Field(default=1.0, ge=0)
    batch: int = Field(default=1024, gt=0)


@dataclass(frozen=True)
class Bench:
    """A flow on the bench: the noise and labels that every round gets, and how it is carried."""

    flow: Flow
    noise: Tensor
    label: Tensor | None
    settings: Evaluate
    seed: int
    device: torch.device

    def samples(self, solver: Solver, *, count: int | None = None, keep: bool = False) -> Solution:
        """Carry the first `count` noises to t = 0."""
        label = None if self.label is None else self.label[:count]
        return self.flow.sample(
            self.noise[:count],
            solver,
            device=self.device,
            batch=self.settings.batch,
            label=label,
            guidance=self.settings.guidance,
            keep_trajectory=keep,
        )

    def diffused(self, sde: Sde) -> Tensor:
        """Carry all noises to t = 0 by the reverse SDE."""
        return diffuse(
            self.flow,
            self.noise,
            sde,
            np.arange(len(self.noise)),
            seed=derive_seed(self.seed, "evaluate"),
            device=self.device,
            batch=self.settings.batch,
            label=self.label,
            guidance=self.settings.guidance,
        ).x


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
    compute: Compute | None = None,
    accept: Accept = lambda _: None,
    executor: Executor = IN_PROCESS,
) -> dict[str, float]:
    """Measure the model that was trained on `coupling` against the real `data`.

    Writes `metrics` (json), `curves` (csv: distances over NFE, gap over t) and pictures into the
    folder `out`. The noise depends on `seed` alone: rounds and NFE are compared on the same draws.
    """
    loaded = load(model, device=str(device))
    measure = load_yardstick(yardstick)
    real = open_coupling(data)
    bench = _bench(
        Flow.of(loaded, compute), data, measure.samples, settings, seed=seed, device=device
    )
    rows, shown = _by_nfe(bench, measure, log, executor)
    count = min(settings.trajectories, len(bench.noise))
    path = bench.samples(settings.solver, count=count, keep=True).trajectory
    assert path is not None
    result = {
        **_flat(rows, measure),
        **_by_churn(bench, measure),
        **_paths(path),
        **_known(bench, data, path),
        **_reconstruction(bench, data, path[-1]),
        **_budget(bench, loaded.config, coupling, path),
    }
    t, gap = bend.straightness_curve(path)
    _csv(curves[0], rows)
    _csv(curves[1], [{"t": a, "gap": b} for a, b in zip(t.tolist(), gap.tolist(), strict=True)])
    out.mkdir(parents=True, exist_ok=True)
    examples = read(real, limit=2000).target[: SHOWN if real.about.image else 2000]
    pictures.samples_by_nfe(out / "samples.png", shown, image=real.about.image, reference=examples)
    pictures.trajectories(out / "trajectories.png", path)
    metrics.parent.mkdir(parents=True, exist_ok=True)
    metrics.write_text(json.dumps(result, indent=2) + "\n")
    accept(result)
    return result


def _bench(
    flow: Flow, data: Path, count: int, settings: Evaluate, *, seed: int, device: torch.device
) -> Bench:
    real, ids = open_coupling(data), np.arange(count)
    noise = gaussian_noise(derive_seed(seed, "evaluate"), ids, tuple(real.about.shape))
    label = None
    if flow.classes:
        given = read(real).label
        if given is not None:
            draws = uniform(derive_seed(seed, "evaluate"), ids, draw=1)
            label = given[torch.from_numpy((draws * len(given)).astype(np.int64))]
    return Bench(flow, noise, label, settings, seed, device)


def _by_nfe(
    bench: Bench, measure: Yardstick, log: Log, executor: Executor
) -> tuple[list[dict[str, float]], dict[int, Tensor]]:
    """Return a row of distances for each NFE, and some samples of each to look at."""
    rows: list[dict[str, float]] = []
    shown: dict[int, Tensor] = {}
    batch, guidance = bench.settings.batch, bench.settings.guidance
    with crew(executor, Carrier(bench.flow, guidance, bench.device), bench.device) as run:
        for done, steps in enumerate(sorted(set(bench.settings.nfe)), start=1):
            solver = Solver(name="euler", steps=steps)
            x = carried(run, bench.noise, solver, batch=batch, label=bench.label)
            rows.append({"nfe": steps, **measure.measure(x)})
            shown[steps] = x[: SHOWN if x.ndim > 2 else 2000]
            log({measure.name: rows[-1][measure.name]}, done)
    return rows, shown


def _by_churn(bench: Bench, measure: Yardstick) -> dict[str, float]:
    """Return distances of samples by the reverse SDE, for a velocity that is a score."""
    found: dict[str, float] = {}
    for sde in bench.settings.sde if bench.flow.score else ():
        values = measure.measure(bench.diffused(sde))
        found |= {f"{k}/churn_{sde.churn:g}_steps_{sde.steps}": v for k, v in values.items()}
    return found


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


def _known(bench: Bench, data: Path, path: Tensor) -> dict[str, float]:
    """Measure the start of the path, and the path's energy where W2 is known (Gaussian data)."""
    label = None if bench.label is None else bench.label[: path.shape[1]].to(bench.device)
    velocity = bench.flow.velocity(label, guidance=bench.settings.guidance)
    source = path[0].to(bench.device)
    start = velocity(source, torch.ones(len(source), device=bench.device)).cpu()
    found = {"ivd": bend.initial_velocity_delta(start, path)}
    settings = open_coupling(data).about.data or {}
    if settings.get("name") == "gaussian":
        mean, std = torch.tensor(settings["mean"]), torch.tensor(settings["std"])
        w2_squared = float(mean.square().sum() + (1 - std).square().sum())
        if w2_squared > 0:
            found["npe"] = bend.normalised_path_energy(path, w2_squared)
    return found


def _reconstruction(bench: Bench, data: Path, fake: Tensor) -> dict[str, float]:
    """Invert by the fine solver, return in one Euler step: the mean square error per dimension.

    Real samples that come back worse than the flow's own say that the rounds drift away from the
    data (`drift` = recon_real - recon_fake, as in balanced conic reflow); `drift_rel` is relative
    to the variance of the data.
    """
    count = bench.settings.reconstructions
    if not count or bench.flow.classes:  # which label a sample had is not known here
        return {}
    errors = []
    given = read(open_coupling(data), limit=count).target
    for x in (given, fake[:count]):
        source = bench.flow.invert(x, bench.settings.solver, device=bench.device).x
        back = bench.flow.sample(source, Solver(name="euler", steps=1), device=bench.device).x
        errors.append(float((back - x).double().square().mean()))
    real, own = errors
    drift = real - own
    return {
        "recon_real": real,
        "recon_fake": own,
        "drift": drift,
        "drift_rel": drift / max(float(given.var(dim=0).mean()), 1e-12),
    }


def _budget(bench: Bench, about: dict[str, Any], coupling: Path, path: Tensor) -> dict[str, float]:
    """Check cost(k-1) - cost(k) = S + V: a defect far from 0 says under-fitted or over-fitted.

    Holds for a velocity on the straight interpolant at all times; V is the held-out loss summed
    over dimensions.
    """
    student = about.get("time", {}).get("name") in {"point", "grid"}
    if student or not isinstance(bench.flow.interpolant, Linear) or bench.settings.guidance != 1:
        return {}
    losses = held_out_losses(
        bench.flow,
        coupling,
        seed=bench.seed,
        device=bench.device,
        limit=2 * bench.settings.trajectories,
    )
    pairs = read(open_coupling(coupling), limit=20000)
    before = transport_cost(pairs.source, pairs.target)
    after = transport_cost(path[0], path[-1])
    found = {"transport_cost_before": before, "cost_rise": (after - before) / before}
    if not losses:
        return found
    loss = losses["held_out_loss"] * path[0, 0].numel()
    defect = (before - after - bend.straightness(path) - loss) / before
    return {**found, "budget_defect": defect, **losses}


def _csv(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
