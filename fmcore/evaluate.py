"""Verb: measure one round, with the same noise as every other round.

Distances to real data by NFE, straightness, transport cost for three convex costs, and the budget
identity cost(k-1) - cost(k) = S + V of Liu et al. 2022 (S straightness, V least training loss).
Distances, likelihood and pictures of samples are in the data's own units; paths and losses in model
units, in which the source is N(0, I). Where a flow learns latents, distances and pictures are of
what a codec decodes; all else, the likelihood too, is of latents.
"""

import csv
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fmcore.choices.solvers import GridSolver, euler_at, sampler_name
from fmcore.coupling.read import open_coupling, read
from fmcore.matching.interpolant import Linear
from fmcore.measure import straightness as bend
from fmcore.measure.harness import (
    Evaluate,
    Harness,
    guidance,
    harness_of,
    likelihood,
    reconstruction,
)
from fmcore.measure.retrieval import retrieval
from fmcore.measure.samplers import by_churn, by_solver, other_weights, shown_of
from fmcore.measure.scores import Scores, load_protocol
from fmcore.measure.transport import cost_rise, costs_per_pair, transport_cost
from fmcore.measure.yardstick import Yardstick
from fmcore.measure.yardstick import load as load_yardstick
from fmcore.network.flops import flops_per_evaluation
from fmcore.network.store import condition, load
from fmcore.sampling.flow import Flow
from fmcore.training.held_out import held_out_losses, held_out_sides
from fmcore.verdict import cuts, keys, pictures
from fmcore.verdict.cuts import SamplerCuts
from fmcore.verdict.drawing import data_name, titled
from fmcore.verdict.errors import summary
from fmcore.verdict.plane import ROWS, Plane
from fmcore.verdict.shown import FILE, to_show
from fmcore.work.work import Work

__all__ = ["Evaluate", "EvaluatePaths", "evaluate"]


@dataclass(frozen=True)
class EvaluatePaths:
    """Inputs of `evaluate` (model, data, its training coupling, yardstick) and outputs.

    Outputs are `metrics` (json), `fd` and `straightness` (csv: distances by sampler and cut, gap
    over t), and pictures in the folder `out`.
    """

    model: Path
    data: Path
    coupling: Path
    yardstick: Path
    metrics: Path
    fd: Path
    straightness: Path
    out: Path


def evaluate(paths: EvaluatePaths, settings: Evaluate, work: Work) -> dict[str, float]:
    """Measure the model against the real data; return the metrics.

    The noise depends on the seed alone: rounds and NFE are compared on the same draws.
    """
    loaded = load(paths.model, device=str(work.device))
    real = open_coupling(paths.data)
    condition(loaded, real.about.conditions, real.conditions, str(paths.data))
    measure = load_yardstick(paths.yardstick)
    flow = Flow.of(loaded, work.compute)
    scores = Scores(measure, load_protocol(paths.yardstick, work.device))
    harness = harness_of(flow, paths.data, scores.samples, settings, work)
    solvers = [*euler_at(settings.nfe), *settings.solvers]
    rows, shown = by_solver(harness, solvers, scores, work)
    others, beside = other_weights(harness, loaded.config, paths.model, rows, measure, work)
    rows += by_churn(harness, scores)
    count = min(settings.trajectories, len(harness.noise))
    path = harness.samples(settings.solver, count=count, keep=True).trajectory
    assert path is not None
    result = {
        **_flat(rows, measure),
        **_against_floor(rows, measure),
        **measure.reconstruction,
        **beside,
        "flops_per_evaluation": flops_per_evaluation(loaded),
        **_paths(path, settings.solver),
        **_known(harness, paths.data, path),
        **reconstruction(harness, paths.data, path[-1]),
        **likelihood(harness, paths.data),
        **_budget(harness, loaded.config, paths.coupling, path),
        **guidance(harness),
        **retrieval(harness, paths.data, measure.extractor),
    }
    t, gap = bend.straightness_curve(path, settings.solver.grid(1.0, 0.0))
    cuts.write(paths.fd, [*rows, *others])
    gaps = [{"t": a, "gap": b} for a, b in zip(t.tolist(), gap.tolist(), strict=True)]
    _csv(paths.straightness, gaps)
    of = (data_name(real.about.data), str(loaded.config.get("round", "")))
    _draw(paths, shown, path, settings, of)
    scan = titled("Distance by the length of the average", *of)
    pictures.scan_of_weights(paths.out / "weights.png", result, measure.name, scan)
    paths.metrics.parent.mkdir(parents=True, exist_ok=True)
    paths.metrics.write_text(json.dumps(result, indent=2) + "\n")
    work.accept(result)
    return result


def _flat(rows: list[SamplerCuts], measure: Yardstick) -> dict[str, float]:
    flat = {key: value for row in rows for key, value in row.flat().items()}
    measured = {key.partition("/")[0] for key in flat}
    floors = {
        keys.at_floor(name): value for name, value in measure.floor.items() if name in measured
    }
    return {**flat, **floors}


def _against_floor(rows: list[SamplerCuts], measure: Yardstick) -> dict[str, float]:
    """Return what the recall lacks, and by how much samples are too near to the training data.

    Both are shares of the floor, at the NFE of Euler where the round's distance is least.
    """
    best = min((r for r in rows if r.euler), key=lambda r: summary(r.cuts)[measure.name])
    own, floor, found = summary(best.cuts), measure.floor, {}
    for gate, metric in (("recall_lost", "recall"), ("memorised", "nearest_train")):
        if metric not in own or not floor.get(metric, 0.0) > 0:
            continue
        share, error = own[metric] / floor[metric], keys.error(metric)
        found[gate] = 1 - share
        if error in own and error in floor:
            both = math.hypot(own[error], share * floor[error]) / floor[metric]
            found |= {keys.error(gate): both, f"{gate}_cuts": len(best.cuts)}
    return found


def _paths(path: Tensor, solver: GridSolver) -> dict[str, float]:
    """Straightness in all its definitions and the cost for three convex functions, with errors.

    The key of the number of paths names the grid: `paths/heun_32`.
    """
    return {
        **bend.measured(path, solver.grid(1.0, 0.0)),
        **bend.with_errors(costs_per_pair(path[0], path[-1])),
        keys.at_sampler("paths", sampler_name(solver)): path.shape[1],
    }


def _known(harness: Harness, data: Path, path: Tensor) -> dict[str, float]:
    """Measure the velocity at t = 1, and the path energy where W2 is known (Gaussian data)."""
    label = None if harness.label is None else harness.label[: path.shape[1]].to(harness.device)
    velocity = harness.flow.tiled().velocity(label, guidance=harness.settings.guidance, span=1.0)
    source = path[0].to(harness.device)
    first = velocity(source, torch.ones(len(source), device=harness.device)).cpu()
    found = bend.with_errors({"ivd": bend.initial_velocity_delta(first, path)})
    about = open_coupling(data).about
    settings = about.data or {}
    if settings.get("name") == "gaussian" and about.source is None and about.codec is None:
        own, spread = torch.tensor(settings["mean"]), torch.tensor(settings["std"])
        mean = about.units.forward(own[None])[0]
        std = about.units.forward((own + spread)[None])[0] - mean if about.scale else spread
        start = harness.flow.interpolant.noise_scale  # the standard deviation at t = 1
        w2_squared = float(mean.square().sum() + (start - std).square().sum())
        if w2_squared > 0:
            grid = harness.settings.solver.grid(1.0, 0.0)
            found["npe"], found["npe_se"] = bend.normalised_path_energy(path, w2_squared, grid)
    return found


def _budget(
    harness: Harness, about: dict[str, Any], coupling: Path, path: Tensor
) -> dict[str, float]:
    """Check cost(k-1) - cost(k) = S + V: a defect far from 0 means under- or over-fitting.

    Holds for a velocity on the straight interpolant at all times; V is the held-out loss summed
    over dimensions. A round of pieces, whose paths are no lines, has losses and no defect.
    """
    pieces = int(about.get("pieces", 1))
    student = about.get("time", {}).get("name") in {"point", "grid"}
    if (
        student
        or not isinstance(harness.flow.interpolant, Linear)
        or harness.settings.guidance != 1
    ):
        return {}
    opened = open_coupling(coupling)
    limit = 2 * harness.settings.trajectories
    losses = held_out_losses(
        harness.flow.tiled(),
        held_out_sides(opened, limit),
        seed=harness.seed,
        device=harness.device,
        limit=limit,
        pieces=pieces,
    )
    pairs = read(opened, limit=20000)
    count = min(len(pairs), harness.settings.trajectories)
    source, target = pairs.source[:count], pairs.target[:count]
    label = None if pairs.label is None else pairs.label[:count]
    ends = harness.carried(source, label)
    rise, error = cost_rise(source, target, ends)
    before = transport_cost(source, target)
    old = costs_per_pair(pairs.source, pairs.target)
    found = {
        **bend.with_errors({"transport_cost_before": old["transport_cost"]}),
        "cost_rise": rise,
        "cost_rise_se": error,
        "cost_pairs": count,
    }
    if not losses or pieces > 1:
        return {**found, **losses}
    size = path[0, 0].numel()
    loss = losses["held_out_loss"] * size
    after = transport_cost(source, ends)
    paths = bend.measured(path, harness.settings.solver.grid(1.0, 0.0))
    defect = (before - after - paths["straightness"] - loss) / before
    parts = (before * error, paths["straightness_se"], losses["held_out_loss_se"] * size)
    found |= {"budget_defect": defect, "budget_defect_se": math.hypot(*parts) / before}
    return {**found, **losses}


def _draw(
    paths: EvaluatePaths,
    shown: dict[int, Tensor],
    path: Tensor,
    settings: Evaluate,
    of: tuple[str, str],
) -> None:
    """Draw samples and paths; `of` are the data and the round, for titles.

    The plane of the paths is that of the data and of the sources, which all rounds share.
    """
    paths.out.mkdir(parents=True, exist_ok=True)
    real = open_coupling(paths.data)
    some = read(real, limit=max(ROWS, shown_of(real.about.shape)), sources=False).target
    seen = real.originals
    examples = some[: shown_of(seen.about.shape)]
    if seen is not real:
        examples = read(seen, limit=shown_of(seen.about.shape), sources=False).target
    examples = seen.about.units.inverse(examples)
    pictures.samples_by_nfe(
        paths.out / "samples.png", shown, image=seen.about.image, reference=examples,
        title=titled("Samples by number of Euler steps (NFE)", *of),
    )  # fmt: skip
    plane = None if seen.about.image else Plane.of(examples)
    (paths.out / FILE).write_bytes(to_show(shown, examples, plane).content())
    title = titled(f"Paths ({sampler_name(settings.solver).replace('_', ' ')} steps)", *of)
    pictures.trajectories(paths.out / "trajectories.png", path, Plane.of(some, path[0]), title)


def _csv(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
