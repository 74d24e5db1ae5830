"""The measurements of a flow, with the same noise and labels for every round."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor

from fmcore import own
from fmcore.choices.solvers import GridSolver, OdeSolver, sampler_name
from fmcore.codec.latents import Units, same_codec
from fmcore.coupling.checks import check_labels
from fmcore.coupling.noise import uniform
from fmcore.coupling.read import labels, open_coupling, read
from fmcore.coupling.source import Drawn
from fmcore.dataset.kinds import Dataset
from fmcore.measure.likelihood import Likelihood, bits_per_dim, log_likelihood
from fmcore.measure.straightness import with_errors
from fmcore.network.store import Weights
from fmcore.sampling.flow import Flow, advice_on_few_steps
from fmcore.sampling.reverse_sde import Sde, diffusions
from fmcore.sampling.samples import Rows
from fmcore.scale import same_units
from fmcore.settings import (
    BatchSize,
    GridSize,
    GuidanceOf,
    GuidanceWithin,
    Seed,
    Settings,
    SeveralSamples,
    derive_seed,
    strength,
)
from fmcore.solve.solver import Solution, Solver
from fmcore.verdict import keys
from fmcore.work.work import Work


class Evaluate(Settings):
    """What is measured: Euler at each NFE, trajectories by a fine solver, the reverse SDE.

    `sde` is measured on rounds whose velocity is a score. `guidance` is for flows with classes.
    Each cut of the yardstick has noise of its own, the same for all rounds.
    """

    nfe: Annotated[tuple[GridSize, ...], Field(min_length=1, max_length=100, strict=False)] = (
        1, 2, 4, 8, 16, 32, 64,
    )  # fmt: skip
    """Numbers of Euler steps with which samples are drawn and compared with the data. Tables count
    evaluations: two a step with guidance, one without. Drop the large ones to save time."""
    solvers: Annotated[tuple[OdeSolver, ...], Field(max_length=100, strict=False)] = ()
    """Other solvers with which samples are drawn and compared with the data, each a row of its own
    beside Euler: `{name: heun_to_euler, steps: 18}` is the 35 evaluations of EDM, `{name: dopri5}`
    the RK45 of papers. The NFE of each is counted."""
    solver: GridSolver = Solver(name="heun", steps=32)
    """The fine solver of the paths on which straightness and transport cost are measured. Raise its
    steps when paths are curved."""
    sde: Annotated[tuple[Sde, ...], Field(max_length=100, strict=False)] = ()
    """Reverse SDEs with which samples are drawn as well. Only for rounds trained on the independent
    coupling: others have no score."""
    trajectories: SeveralSamples = 2048
    """How many paths are solved for straightness, transport cost and the budget. Raise it for
    smaller errors of these numbers."""
    reconstructions: int = Field(default=512, ge=0, le=10**9)
    """How many held-out real samples, and generated ones, are inverted and mapped back in one step,
    for `drift`; 0 skips it. With classes each sample is inverted with its own label."""
    retrieval: int = Field(default=512, ge=0, le=10**6)
    """For how many conditions, of those that trained and of those that did not, samples are looked
    for among real ones (`retrieval_top1`); 0 skips it. Without `data.conditions` nothing is."""
    guidance: GuidanceOf = 1.0
    """Strength of guidance while measuring, or `{strength: 3, within: [0.2, 0.8]}` for some times.
    1 is none; others need network.classes or conditions and count twice where they act. Rounds
    whose pairs have guidance in them are measured without."""
    seed: Seed | None = None
    """Seed of the noise and labels on which every round is measured. null takes the chain's."""
    weights: Annotated[tuple[Weights, ...], Field(max_length=100, strict=False)] = ("raw",)
    """Other weights that are measured beside the average: `raw`, the optimiser's own, and power
    averages by relative length, of rounds with `power_ema`; [raw, 0.03, 0.05, 0.1, 0.2] is a scan.
    [] measures none."""
    weights_nfe: Annotated[tuple[GridSize, ...], Field(max_length=100, strict=False)] = (1, 8)
    """Numbers of Euler steps at which other weights are measured, where `nfe` has them too. Add
    some when weights differ more at others."""
    likelihood: Likelihood | None = None
    """How the likelihood of held-out data is measured; `{}` takes the defaults. null skips it."""
    batch: BatchSize = 1024
    """Samples that are drawn at once. Raise it on a large GPU, lower it when memory runs out; it
    changes no result."""

    @model_validator(mode="after")
    def _one_row_for_each_solver(self) -> "Evaluate":
        names = [sampler_name(solver) for solver in self.solvers]
        diffusions = [keys.churned(sde.churn, sde.steps) for sde in self.sde]
        for place, called in (("solvers", names), ("sde", diffusions)):
            if twice := next((name for name in called if called.count(name) > 1), None):
                raise ValueError(f"{place}: two of them are called {twice}; leave one out")
        counted: dict[int, int] = {}
        for steps in sorted(set(self.nfe)):
            other = counted.setdefault(self._counted(steps), steps)
            if other != steps:
                raise ValueError(
                    f"nfe: {other} and {steps} steps both take {self._counted(steps)} evaluations"
                    " with this guidance, and rows are told apart by evaluations; leave one out"
                )
        if any(name.startswith("euler_") for name in names):
            raise ValueError("solvers: put Euler with even steps into evaluate.nfe")
        return self

    def _counted(self, steps: int) -> int:
        """Return the evaluations of Euler with some steps, two at the times with guidance."""
        if not isinstance(self.guidance, GuidanceWithin):
            return steps if self.guidance == 1 else 2 * steps
        times = Solver(name="euler", steps=steps).grid(1.0, 0.0)[:-1].float()
        return steps + int(self.guidance.at(times).sum())


@dataclass(frozen=True)
class Harness:
    """A flow to measure, the noise and labels that every round gets, and the ways to sample it."""

    flow: Flow
    noise: Rows
    label: Tensor | None
    settings: Evaluate
    seed: int
    device: torch.device

    @cached_property
    def units(self) -> Units:
        """The way of samples into the data's own units; latents are decoded."""
        return Units.of(self.flow.scale, self.flow.codec, self.device)

    def samples(self, solver: Solver, *, count: int | None = None, keep: bool = False) -> Solution:
        """Integrate from the first `count` noise samples to t = 0."""
        label = None if self.label is None else self.label[:count]
        return self.made(solver, label, count=count, keep=keep)

    def made(
        self,
        solver: OdeSolver,
        label: Tensor | None,
        *,
        count: int | None = None,
        keep: bool = False,
    ) -> Solution:
        """Integrate from the first noise samples to t = 0, as many as labels [N] or `count`."""
        return self.flow.sample(
            self.noise[: count if label is None else len(label)],
            solver,
            device=self.device,
            batch=self.settings.batch,
            label=label,
            guidance=self.settings.guidance,
            keep_trajectory=keep,
        )

    def carried(self, source: Tensor, label: Tensor | None) -> Tensor:
        """Integrate from `source` [N, *D] to t = 0 with the fine solver; the endpoints."""
        return self.flow.sample(
            source,
            self.settings.solver,
            device=self.device,
            batch=self.settings.batch,
            label=label if self.flow.classes else None,
            guidance=self.settings.guidance,
        ).x

    def diffused(self, sde: Sde) -> Iterator[Solution]:
        """Integrate from all noise samples to t = 0 by the reverse SDE, batch by batch."""
        return diffusions(
            self.flow,
            self.noise,
            sde,
            seed=derive_seed(self.seed, "evaluate"),
            device=self.device,
            batch=self.settings.batch,
            label=self.label,
            guidance=self.settings.guidance,
        )


def harness_of(flow: Flow, data: Path, count: int, settings: Evaluate, work: Work) -> Harness:
    """Return a flow's harness: `count` sources and, for a flow with classes, real labels."""
    real, ids = open_coupling(data), np.arange(count)
    same_codec(flow.codec, real.about.codec, str(data))
    same_units(flow.scale, real.about.units, str(data))
    if advice := advice_on_few_steps(flow, settings.nfe):
        work.warn(advice)
    noise = Drawn(real.source, derive_seed(work.seed, "evaluate"), count)
    if flow.guided != 1:
        settings = settings.model_copy(update={"guidance": 1.0})
    label = None
    if flow.classes:
        given = labels(real)
        if given is not None or settings.guidance != 1:
            check_labels(given, flow.classes, str(data))
        if given is not None:
            draws = uniform(derive_seed(work.seed, "evaluate"), ids, draw=1)
            label = given[torch.from_numpy((draws * len(given)).astype(np.int64))]
    return Harness(flow, noise, label, settings, work.seed, work.device)


def guidance(harness: Harness) -> dict[str, float]:
    """Return the guidance in measuring and, as `guided`, that in the pairs; neither if it is 1."""
    given = harness.settings.guidance
    used = {"guidance": strength(given), "guided": harness.flow.guided}
    found = {name: value for name, value in used.items() if value != 1}
    if isinstance(given, GuidanceWithin):
        found["guidance_from"], found["guidance_to"] = given.within
    return found


def reconstruction(harness: Harness, data: Path, fake: Tensor) -> dict[str, float]:
    """Invert with the fine solver, map back in one Euler step; return mean square errors.

    Errors are per dimension, in model units. A larger error for real samples than for the flow's
    own means that the rounds drift away from the data (`drift` = recon_real - recon_fake, as in
    balanced conic reflow); `drift_rel` is relative to the variance of the data. Real samples are
    held-out ones: a flow may take back what it trained on and nothing else. A flow with classes
    takes each sample with its own label; without labels, or with fewer than two samples held out,
    nothing is measured.
    """
    count, solver = harness.settings.reconstructions, harness.settings.solver
    pairs = read(open_coupling(data), split="held_out", limit=max(count, 1), sources=False)
    labels: tuple[Tensor | None, Tensor | None] = (None, None)
    if harness.flow.classes:
        if pairs.label is None or harness.label is None:
            return {}
        labels = (pairs.label, harness.label[: len(fake[:count])])
    if not count or len(pairs) < 2:
        return {}
    errors, spreads = [], []
    given = pairs.target
    for x, label in zip((given, fake[:count]), labels, strict=True):
        device, w = harness.device, harness.settings.guidance
        source = harness.flow.invert(x, solver, device=device, label=label, guidance=w).x
        one = Solver(name="euler", steps=1)
        back = harness.flow.sample(source, one, device=device, label=label, guidance=w).x
        each = (back - x).double().square()
        errors.append(float(each.mean()))
        spreads.append(float(each.flatten(1).mean(1).std(unbiased=False)) / math.sqrt(len(x)))
    real, own = errors
    drift = real - own
    variance = max(float(given.var(dim=0).mean()), 1e-12)
    return {
        "recon_real": real,
        "recon_fake": own,
        "drift": drift,
        "drift_rel": drift / variance,
        "drift_rel_se": math.hypot(*spreads) / variance,
        "recon_samples": min(len(given), len(fake[:count])),
    }


def likelihood(harness: Harness, data: Path) -> dict[str, float]:
    """Return the mean -log p in nats of real data under the flow, of held-out data if there is any.

    The density is that of the data in its own units; of latents, that of the latents.
    Images first get uniform noise of one level, and `bits_per_dim` is returned too. Where the
    density of the data is known, `nll/floor` is its own mean -log p: no flow has a lower one. Each
    is with its standard error over the samples.
    """
    settings = harness.settings.likelihood
    if settings is None:
        return {}
    coupling = open_coupling(data)
    if coupling.about.source is not None:  # the density of real samples is not known
        return {}
    pairs = read(coupling, split="held_out", limit=settings.samples, sources=False)
    if len(pairs) < 2:
        pairs = read(coupling, limit=settings.samples, sources=False)
    scale = harness.flow.scale
    x, size = scale.inverse(pairs.target), pairs.target[0].numel()
    if coupling.about.image:
        generator = torch.Generator().manual_seed(derive_seed(harness.seed, "dequantise"))
        x = x + (torch.rand(x.shape, generator=generator) - 0.5) / 127.5
    label = pairs.label if harness.flow.classes else None
    seed = derive_seed(harness.seed, "likelihood")
    found = log_likelihood(
        harness.flow, scale.forward(x), settings, seed=seed, device=harness.device, label=label
    )
    result = with_errors({"nll": scale.log_std(tuple(x.shape[1:])) - found})
    if coupling.about.image:
        bits = {"bits_per_dim": bits_per_dim(result["nll"], size)}
        return {**result, **bits, "bits_per_dim_se": result["nll_se"] / (size * math.log(2))}
    if not coupling.about.data or coupling.about.codec:
        return result
    known = own.read(Dataset, coupling.about.data, f"{data}: data").log_density(x)
    if known is None:
        return result
    floor = with_errors({"nll": -known})
    return {**result, **{keys.at_floor(name): value for name, value in floor.items()}}
