"""The pairs of a coupling, shard by shard: each a pure function of (model, settings, index)."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from pydantic import Field, model_validator
from torch import Tensor

from fmcore.choices.fitted import Fitted
from fmcore.choices.multistep import AdamsBashforth
from fmcore.choices.solvers import Custom, HeunToEuler, OdeSolver, solver_of_pairs
from fmcore.conditions.table import Table
from fmcore.coupling.compact import Store
from fmcore.coupling.noise import NOT_REAL, uniform
from fmcore.coupling.pairs import Pairs
from fmcore.coupling.source import Source
from fmcore.coupling.write import About, packed, table
from fmcore.network.store import Weights
from fmcore.sampling.flow import Flow
from fmcore.sampling.probe import Auto, Probe, probes, remembered
from fmcore.sampling.states import steps_at
from fmcore.settings import (
    BatchSize,
    GuidanceOf,
    GuidanceWithin,
    SampleCount,
    Settings,
    derive_seed,
)
from fmcore.solve.adaptive import Adaptive
from fmcore.solve.solver import Solution, Solver, solve
from fmcore.work.compute import rows_of_call

Kind = Literal["generated", "inverted"]

SolverOfPairs = Annotated[
    Solver | HeunToEuler | AdamsBashforth | Fitted | Custom | Adaptive | Auto,
    Field(discriminator="name"),
]


class Couple(Settings):
    """How many pairs, by which solver; `batch` does not change the bytes."""

    pairs: SampleCount
    """How many pairs are sampled. Raise it when held_out_ratio warns on the round that trains on
    them."""
    solver: SolverOfPairs | None = None
    """The solver of the ODE that makes the pairs. `{name: auto, error: 1e-3}` takes the cheapest
    for an error, found by a probe of the flow. null takes what was measured for the interpolant:
    ab4 of 23 steps with shift 0.5 for linear, 24 evaluations."""
    mix: dict[Kind, Annotated[float, Field(gt=0, le=1)]] = Field(
        default={"generated": 1.0}, min_length=1
    )
    """Shares of pairs `generated` from noise and `inverted` from real samples; they add up to 1.
    Add inverted pairs when gates.drift_rel warns."""
    guidance: GuidanceOf = 1.0
    """Strength of guidance in making the pairs: v_null + guidance (v - v_null), or `{strength,
    within}` for some times. 1 is none; others need network.classes or conditions and cost twice.
    Rounds that learn such pairs, or come after, are not guided again."""
    weights: Weights = "ema"
    """Which weights of the round make the pairs: the average (`ema`), the optimiser's own (`raw`),
    or the power average of a relative length (0.1), if the round has `power_ema`."""
    batch: BatchSize = 1024
    """Pairs that are solved at once, rounded up to whole calls of the network. Raise it on a GPU,
    lower it when memory runs out; it does not change the bytes."""
    shard: BatchSize = 4096
    """Pairs in each Parquet file: the unit of work of a worker. A stopped run keeps whole files."""
    audit_every: SampleCount = 128
    """One pair in this many is solved again with twice the steps (or a tenth of the tolerances), to
    measure `solver_gap`: whole calls of the network, the first one at least. Lower it for a better
    estimate; its gate decides nothing on fewer than 64."""

    store: Store = Store()
    """What of a pair is on disk. Compact couplings of images take an eighth of the bytes."""

    @model_validator(mode="after")
    def _shares(self) -> "Couple":
        if abs(sum(self.mix.values()) - 1) > 1e-9:
            raise ValueError(f"mix: shares must add up to 1, got {self.mix}")
        if isinstance(self.solver, Solver) and "inverted" in self.mix:
            there, back = calls_of(self.solver, 1.0), calls_of(self.solver, 0.0)
            if len(self.mix) > 1 and there != back:
                raise ValueError(
                    f"solver {self.solver.name} takes {there} evaluations from source to target and"
                    f" {back} back, so generated and inverted pairs have other numbers of"
                    " evaluations; name another solver, or make pairs of one kind"
                )
        if len(self.mix) > 1 and isinstance(self.guidance, GuidanceWithin):
            raise ValueError(
                "guidance: within some times, generated and inverted pairs have other numbers of"
                " evaluations; give a strength alone, or pairs of one kind"
            )
        return self

    def ids(self, index: int) -> range:
        """Return the numbers of the pairs in shard `index`; the last shard may have fewer."""
        first = index * self.shard
        return range(first, min(first + self.shard, self.pairs))

    def audited(self, ids: NDArray[np.int64], rows: int) -> NDArray[np.bool_]:
        """Return which of the pairs `ids` [N] are audited: whole runs of `rows` pairs.

        A network call has `rows` rows, padded if there are fewer: single pairs here and there would
        cost many calls that are nearly empty.
        """
        return np.asarray(ids // rows % self.audit_every == 0)


@dataclass(frozen=True)
class PairSampler:
    """The sampler of a coupling's pairs: its flow, source, real data, settings and device."""

    flow: Flow
    source: Source
    data: Pairs | None
    about: About
    settings: Couple
    device: torch.device
    table: Table | None = None

    @property
    def solver(self) -> OdeSolver:
        """The solver that is set, or the one that was measured for the flow's interpolant."""
        named = self.settings.solver
        assert not isinstance(named, Auto), "`settled` was called"
        return named or solver_of_pairs(self.flow.interpolant)

    def settled(self, auto: Auto, receipt: Path) -> "PairSampler":
        """Return the sampler with the solver that a probe of the flow chooses (see `probe`)."""
        seed = derive_seed(self.about.seed, "probe")
        drawn = replace(self, about=self.about.model_copy(update={"seed": seed}))
        ids = np.arange(probes(math.prod(self.about.shape)))
        source, _, label = drawn._known(ids, torch.zeros(len(ids), dtype=torch.bool))
        how = Probe(self.flow, source, label, self.device, self.settings.guidance)
        both_ways = "inverted" in self.settings.mix
        key = {"coupling": self.about.in_shard, "auto": auto.model_dump()}
        solver, probe = remembered(receipt, key, lambda: how.choose(auto, both_ways=both_ways))
        nfe = nfe_of(solver, self.flow, self.settings)
        found = {"solver": recorded(solver), "nfe": nfe, "probe": probe}
        return replace(
            self,
            about=self.about.model_copy(update=found),
            settings=self.settings.model_copy(update={"solver": solver}),
        )

    def on(self, device: torch.device) -> Callable[[int], tuple[pa.Buffer, int]]:
        """Return `packed`, computing on `device`: what a worker runs."""
        return replace(self, flow=self.flow.on(device), device=device).packed

    def packed(self, index: int) -> tuple[pa.Buffer, int]:
        """Return a shard as an Arrow stream, and its NFE."""
        rows, nfe = self.shard(index)
        return packed(rows), nfe

    def shard(self, index: int) -> tuple[pa.Table, int]:
        """Return shard `index`, a pure function of (model, settings, index), and its NFE.

        An audited pair is solved again with twice the steps; `solver_gap` is the RMS difference of
        the endpoints, an estimate of the discretisation error of that pair.
        """
        pairs = self.settings.ids(index)
        ids: NDArray[np.int64] = np.arange(pairs.start, pairs.stop)
        inverted = self._inverted(ids)
        source, target, label = self._known(ids, inverted)
        gap = np.full(len(ids), np.nan, dtype=np.float32)
        spent = torch.zeros(len(ids), dtype=torch.int64)
        nfe, count = 0, self.settings.store.pieces - 1
        states = source.new_empty(len(ids), count, *source.shape[1:]) if count else None
        for back, rows in ((False, ~inverted), (True, inverted)):
            if not bool(rows.any()):
                continue
            given = (target if back else source)[rows] if bool(inverted.any()) else source
            own = None if label is None else label[rows]
            kept = steps_at(self.solver, count + 1, back=back)
            found = self._solve(given, own, self.solver, back, kept)
            (source if back else target)[rows] = found.x
            if states is not None and found.trajectory is not None:
                states[rows] = found.trajectory.transpose(0, 1)
            nfe = found.nfe
            if found.evaluations is not None:
                spent[rows] = found.evaluations
            audited = torch.from_numpy(
                self.settings.audited(ids, rows_of_call(self.flow.tile, self.device))
            )[rows]
            if bool(audited.any()):
                own = None if own is None else own[audited]
                finer = self._solve(given[audited], own, self.solver.refined(), back).x
                error = (finer - found.x[audited]).flatten(1).square().mean(1).sqrt()
                gap[rows.numpy().nonzero()[0][audited.numpy()]] = error.numpy()
        extra: dict[str, NDArray[Any]] = {}
        if len(self.settings.mix) > 1:
            extra["kind"] = np.where(inverted.numpy(), "inverted", "generated")
        if isinstance(self.solver, Adaptive):
            extra["nfe"] = spent.numpy()
        if states is not None:
            extra["trajectory"] = states.numpy()
        real_id = self._real_ids(ids, inverted)
        return table(self.about, ids, target, source, label, gap, real_id, extra), nfe

    def _inverted(self, ids: NDArray[np.int64]) -> Tensor:
        """Return which of the pairs [N] are inverted from real samples."""
        mix = self.settings.mix
        if len(mix) == 1:
            return torch.full((len(ids),), "inverted" in mix)
        return torch.from_numpy(uniform(self.about.seed, ids) < mix["inverted"])

    def _real_ids(self, ids: NDArray[np.int64], inverted: Tensor) -> NDArray[np.int64] | None:
        """Return the identity [N] of the real sample of each pair that is made from one.

        An inverted pair is made from a target, any other from a source, real or noise.
        """
        drawn = self.source.identities(self.about.seed, ids)
        if self.data is None or self.data.real_id is None or "inverted" not in self.settings.mix:
            return None if drawn is None else drawn.numpy()
        known = self.data.real_id[torch.from_numpy(ids % len(self.data))]
        other = torch.full_like(known, NOT_REAL) if drawn is None else drawn
        return torch.where(inverted, known, other).numpy()

    def _known(
        self, ids: NDArray[np.int64], inverted: Tensor
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return the source and target that are known before solving, and the labels."""
        source = self.source.draw(self.about.seed, ids)
        target = torch.zeros_like(source)
        if self.data is None:
            return source, target, None
        rows = torch.from_numpy(ids % len(self.data))
        target[inverted] = self.data.target[rows[inverted]]
        if not self.flow.classes or self.data.label is None:
            return source, target, None
        drawn = (uniform(self.about.seed, ids, draw=1) * len(self.data)).astype(np.int64)
        rows = torch.where(inverted, rows, torch.from_numpy(drawn))
        return source, target, self.data.label[rows]

    def _solve(
        self,
        x: Tensor,
        label: Tensor | None,
        solver: OdeSolver,
        back: bool,
        kept: tuple[int, ...] = (),
    ) -> Solution:
        carry = self.flow.invert if back else self.flow.sample
        return carry(
            x,
            solver,
            device=self.device,
            batch=self.settings.batch,
            label=label,
            guidance=self.settings.guidance,
            keep_trajectory=kept or False,
        )


def recorded(solver: OdeSolver) -> dict[str, Any]:
    """Return a solver as a coupling records it."""
    return solver.model_dump(mode="json", exclude_none=True)


def calls_of(solver: Solver, start: float) -> int:
    """Return the evaluations of a fixed grid from the time `start`, 1 or 0, to the other end."""
    return solve(lambda x, _: x, torch.zeros(1, 1), solver, start=start, end=1 - start).nfe


def nfe_of(solver: OdeSolver, flow: Flow, settings: Couple) -> int | None:
    """Return the NFE of a fixed grid, counted on a trivial field, two where there is guidance."""
    if isinstance(solver, Adaptive):
        return None
    guidance, nulls = settings.guidance, 0

    def trivial(x: Tensor, t: Tensor) -> Tensor:
        nonlocal nulls
        # A time of float32, as in the field: as a number of Python 0.8 would lie beyond 0.8.
        within = not isinstance(guidance, GuidanceWithin) or bool(guidance.at(t[0]))
        nulls += flow.classes > 0 and guidance != 1 and within
        return x

    start = 0.0 if "inverted" in settings.mix else 1.0
    calls = solve(trivial, torch.zeros(1, 1), solver, start=start, end=1 - start).nfe
    return calls + nulls
