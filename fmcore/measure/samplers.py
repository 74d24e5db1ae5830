"""What a flow's samples score, by each solver, with other weights, and by the reverse SDE.

Samples pass from the solver through the features into sums: no solver's samples are kept.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from fmcore.choices.solvers import OdeSolver, euler_at, sampler_name
from fmcore.measure import averages
from fmcore.measure.harness import Harness
from fmcore.measure.scores import Scores
from fmcore.measure.yardstick import Yardstick
from fmcore.network.build import take
from fmcore.network.store import load
from fmcore.sampling.flow import Flow
from fmcore.sampling.samples import SampleJob, solutions
from fmcore.verdict import keys
from fmcore.verdict.cuts import SamplerCuts
from fmcore.verdict.errors import summary
from fmcore.work.work import Work, silent
from fmcore.work.workers import start_workers

IMAGES, POINTS = 16, 2000
"""Samples that a picture shows for each NFE."""


def shown_of(shape: Sequence[int]) -> int:
    """Return how many samples of a shape [*D] a picture shows."""
    return IMAGES if len(shape) > 1 else POINTS


def by_solver(
    harness: Harness, solvers: Sequence[OdeSolver], measure: Scores, work: Work
) -> tuple[list[SamplerCuts], dict[int, Tensor]]:
    """Return what each solver scores, and some samples of Euler at each NFE for the pictures.

    The milliseconds that a sample took are an event, no metric: they change from run to run.
    """
    rows: list[SamplerCuts] = []
    shown: dict[int, Tensor] = {}
    settings, label = harness.settings, harness.label
    some = shown_of(harness.units.shape or harness.noise[:1].shape[1:])
    job = SampleJob(harness.flow, settings.guidance, harness.device)
    with start_workers(work.executor, job, harness.device) as run:
        for done, solver in enumerate(solvers, start=1):
            found = solutions(run, harness.noise, solver, batch=settings.batch, label=label)
            name = sampler_name(solver)
            row, passed = measure.row(name, found, harness.units, label, shown=some)
            rows.append(row)
            if row.euler:
                shown[round(row.nfe)] = passed.shown
            name, took = measure.yardstick.name, 1000 * passed.seconds / passed.count
            values = {name: summary(row.cuts)[name], "nfe": row.nfe, "ms_per_sample": took}
            work.log(values, done)
    return rows, shown


def other_weights(
    harness: Harness,
    about: dict[str, Any],
    model: Path,
    average: list[SamplerCuts],
    measure: Yardstick,
    work: Work,
) -> tuple[list[SamplerCuts], dict[str, float]]:
    """Return what other weights of the model score beside its average, and their metrics."""
    rows: list[SamplerCuts] = []
    found: dict[str, float] = {}
    steps = set(harness.settings.nfe) & set(harness.settings.weights_nfe)
    for weights in averages.there(harness.settings.weights, about):
        loaded = load(model, weights=weights, device=str(work.device))
        take(loaded.network, harness.flow.table)
        flow = Flow.of(loaded, work.compute)
        other, scores = replace(harness, flow=flow), Scores(measure, None)
        own, _ = by_solver(other, euler_at(steps), scores, replace(work, log=silent))
        named, values = averages.beside(weights, own, average, measure.name)
        rows, found = [*rows, *named], {**found, **values}
    return rows, found


def by_churn(harness: Harness, measure: Scores) -> list[SamplerCuts]:
    """Return what the reverse SDE scores, for a velocity that is a score."""
    rows: list[SamplerCuts] = []
    for sde in harness.settings.sde if harness.flow.score else ():
        name, found = keys.churned(sde.churn, sde.steps), harness.diffused(sde)
        rows.append(measure.row(name, found, harness.units, harness.label)[0])
    return rows
