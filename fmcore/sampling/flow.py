"""A trained network as a flow: solve its ODE from noise to samples, or back."""

import threading
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
from torch import Tensor

from fmcore.choices.solvers import OdeSolver
from fmcore.conditions.table import Table
from fmcore.matching.conversions import usable_times
from fmcore.network.build import table_of
from fmcore.network.field import Field, FieldVelocity, interpolant_of, maps_to_end
from fmcore.network.outside import check_null
from fmcore.network.store import Model
from fmcore.scale import Scale
from fmcore.settings import GuidanceWithin, ReflowError, strength
from fmcore.solve.solver import Solution, Solver, solve
from fmcore.work.compute import TILE, Compute, in_tiles, rows_of_call, to_cpu

_turn = threading.Lock()
"""Held while a flow is solved: threads that sample share one device and the graphs recorded on it
(`work.ahead`), and draw noise and pack results meanwhile."""


@dataclass(frozen=True)
class Flow(Field):
    """A velocity field that is sampled: source to target, or back.

    `score` says whether the velocity is also a score, `refusal` why not. `guided` is the guidance
    in the pairs that it was trained on, its own or one further up the chain; 1 is none. It is in
    the velocity already, so such a flow is not guided again. `to_end` says that its spans all reach
    t = 0 (rule consistency).
    """

    score: bool = False
    tile: int = TILE
    made_of: tuple[Model, Compute] | None = field(default=None, repr=False, compare=False)
    guided: float = 1.0
    to_end: bool = False

    @classmethod
    def of(cls, model: Model, compute: Compute | None = None) -> "Flow":
        """Return the flow of a loaded model, in the precision of `compute`."""
        about, compute = model.config, compute or Compute()
        return cls(
            compute.sampling(model.network),
            interpolant_of(about),
            about.get("objective", "velocity"),
            model.network.settings.classes,
            no_score(about) is None,
            model.network.tile,
            (model, compute),
            about.get("guided", 1.0),
            maps_to_end(about),
        )

    def velocity(
        self,
        label: Tensor | None = None,
        *,
        guidance: float | GuidanceWithin = 1.0,
        span: float | Callable[[Tensor], Tensor] = 0.0,
    ) -> FieldVelocity:
        """Return v(x, t) as `Field.velocity` does.

        Raises ReflowError for guidance of a flow whose pairs have guidance in them.
        """
        if guidance != 1 and self.guided != 1:
            raise ReflowError(
                f"guidance {strength(guidance):g}: guidance {self.guided:g} is in the pairs that"
                " this flow learned, and would be applied twice; leave guidance at 1"
            )
        if guidance != 1 and self.made_of is not None:
            check_null(self.made_of[0].network.settings, f"guidance {strength(guidance):g}")
        return super().velocity(label, guidance=guidance, span=span)

    @property
    def scale(self) -> Scale:
        """The scale of the model: `flow.scale.inverse(x)` is a sample in the data's own units."""
        return Scale() if self.made_of is None else self.made_of[0].scale

    @property
    def codec(self) -> Mapping[str, Any] | None:
        """The record of the codec whose latents the flow makes; None for none."""
        return None if self.made_of is None else self.made_of[0].config.get("codec")

    @property
    def table(self) -> Table | None:
        """The table of conditions that the network was given; None if it takes none."""
        return None if self.made_of is None else table_of(self.made_of[0].network)

    @property
    def refusal(self) -> str:
        """Why the velocity is not a score."""
        return no_score({} if self.made_of is None else self.made_of[0].config) or ""

    def on(self, device: torch.device) -> "Flow":
        """Return the flow with its weights on `device`."""
        if self.made_of is None:
            return self
        model, compute = self.made_of
        return Flow.of(replace(model, network=model.network.to(device)), compute)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle as weights and settings: a compiled network cannot be pickled."""
        if self.made_of is None:
            return Flow, tuple(getattr(self, f.name) for f in fields(self))
        model, compute = self.made_of
        return Flow.of, (replace(model, network=deepcopy(model.network).cpu()), compute)

    def tiled(self) -> "Flow":
        """Return the flow with network calls of one size (see `compute.in_tiles`)."""
        return replace(self, network=in_tiles(self.network, self.tile))

    def sample(
        self,
        source: Tensor,
        solver: OdeSolver,
        *,
        device: torch.device | None = None,
        batch: int = 1024,
        label: Tensor | None = None,
        guidance: float | GuidanceWithin = 1.0,
        keep_trajectory: bool | Sequence[int] = False,
    ) -> Solution:
        """Integrate from source [N, *D] to t = 0; the solution, in model units, is on the CPU.

        `batch` rows are solved at once, rounded up to whole network calls. Of the trajectory, all
        states are kept, or those after some numbers of steps.
        `device` holds the weights: given for a loaded model, else that of the source. The state is
        float32 in every precision of the network: a half-precision state would lose the pairing.
        Where there is guidance an evaluation of the velocity counts as two: it calls the network
        twice.
        """
        ends = (1.0, 0.0)
        with _turn:
            return self._carry(
                source, solver, ends, device, batch, label, guidance, keep_trajectory
            )

    def invert(
        self,
        target: Tensor,
        solver: OdeSolver,
        *,
        device: torch.device | None = None,
        batch: int = 1024,
        label: Tensor | None = None,
        guidance: float | GuidanceWithin = 1.0,
        keep_trajectory: bool | Sequence[int] = False,
    ) -> Solution:
        """Integrate from target [N, *D] to t = 1: the source from which the flow would make it."""
        ends = (0.0, 1.0)
        with _turn:
            found = self._carry(
                target, solver, ends, device, batch, label, guidance, keep_trajectory
            )
        return replace(found, x=found.x / self.interpolant.noise_scale)

    def _carry(
        self,
        x: Tensor,
        solver: OdeSolver,
        ends: tuple[float, float],
        device: torch.device | None,
        batch: int,
        label: Tensor | None,
        guidance: float | GuidanceWithin,
        keep: bool | Sequence[int],
    ) -> Solution:
        tiled, parts = self.tiled(), []
        if device is None:
            device = x.device if self.made_of is None else _device_of(self.made_of[0].network)
        rows_each = rows_of_call(self.tile, device)
        batch = -(-batch // rows_each) * rows_each
        for cut in range(0, len(x), batch):
            rows = x[cut : cut + batch].to(device)
            own = None if label is None else label[cut : cut + batch].to(device)
            start, end = ends
            if start == 1:
                rows = self.interpolant.noise_scale * rows
            span = span_of(solver, start, end, to_end=self.to_end)
            v = tiled.velocity(own, guidance=guidance, span=span)
            found = solve(v, rows, solver, start=start, end=end, keep_trajectory=keep)
            parts.append(with_nulls(found, v))
        return concatenated(parts)


def no_score(about: Mapping[str, Any]) -> str | None:
    """Return why the velocity of a model is not a score, from its config; None if it is one."""
    if about.get("coupling") != "independent" or about.get("pairing") != "independent":
        return (
            "its pairs are not independent, so that source and target depend on each other; use a"
            " round with `coupling: independent` and `pairing: independent`"
        )
    if about.get("source") is not None:
        return "its source is data, not noise; use a round of a chain without `source`"
    if signal := about.get("terminal_signal"):
        return (
            f"its teacher's last time step leaves {signal:.2g} of the target in x, so that x at"
            " t = 1 is not independent of it; use a round that is trained here"
        )
    if not about.get("learns_mean", True):
        return (
            f"its loss ({_named(about.get('loss'))}) does not learn the mean of the paths through a"
            " point; train the round with loss mse"
        )
    return None


FEW = 10
"""Steps of Euler below which the first, from t = 1, decides what a network of noise gives."""


def advice_on_few_steps(flow: Flow, nfe: Sequence[int]) -> str | None:
    """Return a warning if a network that predicts noise is sampled in a few steps of Euler.

    At t = 1 alpha is 0 and the noise does not determine the target, so the network is read at
    t = 0.99, where an error of its prediction becomes one of the velocity W / alpha times as large.
    """
    few = [n for n in nfe if n < FEW]
    if flow.objective != "noise" or not few:
        return None
    t = torch.tensor([usable_times(flow.interpolant, "noise")[1]])
    a, b, da, db = flow.interpolant.at(t, t)
    factor = float(((a * db - da * b) / a).abs())
    return (
        f"objective noise at NFE {', '.join(map(str, few))}: the first step starts where alpha is"
        f" almost 0 and makes an error of the network {factor:.0f} / NFE times as large; do not"
        " compare these numbers with other objectives'; use more steps, or objective velocity"
    )


def _named(loss: Any) -> str:
    """Return the name of a loss in a model's config."""
    given = loss if isinstance(loss, Mapping) else {}
    return "normalised" if given.get("normalised") else str(given.get("path") or given.get("name"))


def span_of(
    solver: OdeSolver, start: float, end: float, *, to_end: bool = False
) -> float | Callable[[Tensor], Tensor]:
    """Return the span that a step of Euler from time t [B] covers; 0 for any other solver.

    It is the length of the step of the grid that begins next to t, below 0 from target to source:
    x_(t + h) = x_t + h u(x_t, t, -h), as u(x, t, span) averages over [t - span, t]. With `to_end`
    it is t, down to the target, of which the step goes a part; such a network learned no other.
    """
    if not isinstance(solver, Solver) or solver.name != "euler":
        return 0.0
    if to_end:
        return (lambda t: t) if end < start else 0.0
    grid = solver.grid(start, end)

    def span(t: Tensor) -> Tensor:
        times, lengths = (a.to(t.device, t.dtype) for a in (grid[:-1], grid[:-1] - grid[1:]))
        return lengths[(times - t[:, None]).abs().argmin(dim=1)]

    return span


def _device_of(network: torch.nn.Module) -> torch.device:
    return next(network.parameters()).device


def with_nulls(found: Solution, velocity: FieldVelocity) -> Solution:
    """Return a solution whose counts have the evaluations of the null condition, too."""
    nulls = velocity.nulls
    if nulls is None:
        return found
    if found.evaluations is None:  # on a grid all rows have the same
        return replace(found, nfe=found.nfe + int(nulls.max()))
    counts = found.evaluations.cpu() + nulls
    return replace(found, nfe=int(counts.max()), evaluations=counts)


def concatenated(parts: list[Solution]) -> Solution:
    """Concatenate the solutions of batches on the CPU."""
    ends = to_cpu([p.x for p in parts])
    paths = to_cpu([p.trajectory for p in parts if p.trajectory is not None])
    counts = [p.evaluations.cpu() for p in parts if p.evaluations is not None]
    return Solution(
        torch.cat(ends),
        max(p.nfe for p in parts),
        torch.cat(paths, dim=1) if paths else None,
        torch.cat(counts) if counts else None,
    )


def mean_nfe(found: Solution) -> float:
    """Return the counted evaluations of the network for one sample, the mean over samples."""
    counted = found.evaluations
    return float(found.nfe) if counted is None else float(counted.double().mean())
