"""The cheapest solver for a wanted error, found by a short probe of the flow at hand.

Some sources are carried to t = 0 by rk4, whose steps are doubled until it is exact enough. To the
paths of half of them multistep solvers on a few grids are fitted; the others tell their error. All
of it is a function of (flow, sources, error). For pairs inverted from real data too,
Adams-Bashforth is tried instead, whose weights hold both ways, and the exact ends are carried back
to their sources: the worse of both ways is the error.
"""

import json
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import Field, TypeAdapter
from torch import Tensor

from fmcore.checked import read_json, sealed
from fmcore.choices.fitted import Fitted, fitted
from fmcore.choices.multistep import AdamsBashforth
from fmcore.matching.conversions import Velocity
from fmcore.sampling.flow import Flow
from fmcore.settings import GuidanceWithin, ReflowError, Settings
from fmcore.solve.solver import Solution, Solver

EXACT = 0.4
"""Gap of the last doubling of rk4 over the wanted error: its error is at most a quarter of it."""

RECEIPT = "solver.json"
"""The file of a stage's scratch folder that holds what was chosen, for its other processes."""

SHIFTS = (0.5, 0.7, 1.0, 1.5, 2.0)
POWERS = (0.25, 0.35)
"""Of the bend of paths, for the density of a grid (see `dense_where_bent`)."""
FIRST, MOST = 4, 256
"""Fewest and most steps that are tried."""

Carry = Callable[[Solver, Sequence[int]], Solution]
"""(solver, steps after which a state is kept) -> the solution from the probe's sources."""
Back = Callable[[Solver, Tensor], Tensor]
"""(solver, ends [B, *D]) -> the sources [B, *D] that the solver finds for these ends."""


class Auto(Settings):
    """Chooses the solver by a probe of the flow: the fewest evaluations for the wanted error."""

    name: Literal["auto"]
    """A multistep solver that is fitted to some paths of the flow, on the grid that a probe finds
    best: shifted, or dense where paths bend. With inverted pairs it is Adams-Bashforth. The
    coupling records which, and its error."""
    error: float = Field(default=1e-3, ge=1e-5, le=0.1)
    """Wanted root mean square error of an endpoint, relative to the standard deviation of the
    endpoints; of both ends where pairs are inverted too. Lower it for more exact pairs; a tenth
    costs about twice the evaluations."""


Found = tuple[Solver, dict[str, Any]]
"""The solver that was chosen, and a receipt."""


def probes(dim: int) -> int:
    """Return how many sources are probed: few values are far off in few dimensions.

    >>> probes(2), probes(3072)
    (2048, 64)
    """
    return min(2048, max(64, 2**14 // dim))


@dataclass(frozen=True)
class Probe:
    """Sources [B, *D] and labels on which solvers are tried, and the flow that carries them."""

    flow: Flow
    source: Tensor
    label: Tensor | None = None
    device: torch.device | None = None
    guidance: float | GuidanceWithin = 1.0

    def choose(self, auto: Auto, *, both_ways: bool = False) -> Found:
        """Return what `choose` does; `both_ways` for a solver that also inverts real samples."""
        if both_ways:
            return choose(auto, self._carry, back=(self.source, self._back))
        return choose(auto, self._carry, self._velocity())

    def _carry(self, solver: Solver, keep: Sequence[int]) -> Solution:
        return self.flow.sample(self.source, solver, keep_trajectory=keep or False, **self._how())

    def _back(self, solver: Solver, ends: Tensor) -> Tensor:
        return self.flow.invert(ends, solver, **self._how()).x

    def _how(self) -> dict[str, Any]:
        given: dict[str, Any] = {"device": self.device, "label": self.label}
        return {**given, "guidance": self.guidance, "batch": len(self.source)}

    def _velocity(self) -> Velocity:
        """Return the velocity of the first half of the sources, on the CPU."""
        device = self.device or self.source.device
        label = None if self.label is None else self.label[: len(self.source) // 2].to(device)
        v = self.flow.tiled().velocity(label, guidance=self.guidance)
        return lambda x, t: v(x.to(device), t.to(device)).cpu()


def choose(
    auto: Auto,
    carry: Carry,
    velocity: Velocity | None = None,
    back: tuple[Tensor, Back] | None = None,
) -> Found:
    """Return the solver with the fewest steps that has the wanted error, and a receipt.

    `velocity` is that of the first half of the probe's sources, to which solvers are fitted; None
    where pairs are inverted: `back` has the sources, and the way to them from the ends.
    Raises ReflowError if none has the error with at most `MOST` steps.
    """
    exact, path = _exact(auto, carry)
    spread = _rms(exact - exact.mean(0))
    known = 0 if velocity is None else len(exact) // 2

    def error(solver: Solver) -> float:
        there = _at_most((carry(solver, ()).x - exact)[known:]) / spread
        if back is None:
            return there
        source, inverse = back
        gap = inverse(solver, exact) - source
        return max(there, _at_most(gap) / _rms(source - source.mean(0)))

    families = list(_adams(path) if velocity is None else _fits(velocity, path[:, :known]))
    best: tuple[Solver, float] | None = None
    for make in sorted(families, key=lambda make: error(make(24)))[:2]:
        found = _fewest(make, error, auto.error, MOST if best is None else best[0].steps - 1)
        best = found or best
    if best is None:
        raise ReflowError(
            f"couplings: solver auto found no grid of up to {MOST} steps with an error of"
            f" {auto.error:g}; raise `error`, or name a solver"
        )
    return best[0], {"wanted": auto.error, "error": best[1], "probes": len(exact)}


def remembered(file: Path, key: Mapping[str, Any], find: Callable[[], Found]) -> Found:
    """Return what `find` finds, or what the file says that it found for the same key."""
    try:
        known = read_json(file)
    except (OSError, ReflowError):
        known = {}
    if known.get("key") == json.loads(json.dumps(key)):
        return CHOSEN.validate_python(known["solver"]), known["probe"]
    solver, probe = find()
    content = {"key": key, "solver": solver.model_dump(exclude_none=True), "probe": probe}
    file.parent.mkdir(parents=True, exist_ok=True)
    draft = file.with_name(f".{file.name}.{os.getpid()}")
    draft.write_text(json.dumps(sealed(content)))
    draft.replace(file)
    return solver, probe


CHOSEN: TypeAdapter[AdamsBashforth | Fitted] = TypeAdapter(
    Annotated[AdamsBashforth | Fitted, Field(discriminator="name")]
)
Make = Callable[[int], Solver]
"""steps -> a solver of so many steps."""


def _adams(path: Tensor) -> Iterator[Make]:
    def shifted(steps: int, *, name: str, shift: float) -> Solver:
        return AdamsBashforth.model_validate({"name": name, "steps": steps, "shift": shift})

    def bent(steps: int, *, name: str, power: float) -> Solver:
        times = dense_where_bent(path, steps, power)
        return AdamsBashforth.model_validate({"name": name, "times": times})

    for name in ("ab3", "ab4"):
        yield from (partial(shifted, name=name, shift=shift) for shift in SHIFTS)
        yield from (partial(bent, name=name, power=power) for power in POWERS)


def _fits(velocity: Velocity, path: Tensor) -> Iterator[Make]:
    at = partial(along, path)

    def shifted(steps: int, *, shift: float) -> Solver:
        grid = Solver(name="euler", steps=steps, shift=shift).grid(1.0, 0.0)
        return fitted(velocity, at, tuple(grid.tolist()))

    def bent(steps: int, *, power: float) -> Solver:
        return fitted(velocity, at, dense_where_bent(path, steps, power))

    yield from (partial(shifted, shift=shift) for shift in SHIFTS[:3])
    yield from (partial(bent, power=power) for power in POWERS)


def along(path: Tensor, t: float) -> Tensor:
    """Return where a path [T + 1, B, *D] on an even grid from 1 to 0 is at t [B, *D].

    By the polynomial of degree 5 through the six nearest times.
    """
    steps = len(path) - 1
    first = min(max(round((1 - t) * steps - 2.5), 0), steps - 5)
    near = [(steps - first - k) / steps for k in range(6)]
    shares = [math.prod((t - b) / (a - b) for b in near if b != a) for a in near]
    own = path[first : first + 6]
    return torch.einsum("k,k...->...", torch.tensor(shares, dtype=own.dtype), own)


def _fewest(
    make: Make, error: Callable[[Solver], float], wanted: float, most: int
) -> tuple[Solver, float] | None:
    """Return the solver with the fewest steps up to `most` and its error, by bisection."""
    found, low, high = None, FIRST, most
    while low <= high:
        steps = min((low + high) // 2, 2 * low) if found is None else (low + high) // 2
        solver = make(steps)
        got = error(solver)
        if got <= wanted:
            found, high = (solver, got), steps - 1
        else:
            low = steps + 1
    return found


def _exact(auto: Auto, carry: Carry) -> tuple[Tensor, Tensor]:
    """Return endpoints [B, *D] that are exact enough, and their trajectory [65, B, *D]."""
    before = carry(Solver(name="rk4", steps=32), ()).x
    for steps in (64, 128, 256, 512):
        solution = carry(Solver(name="rk4", steps=steps), range(0, steps + 1, steps // 64))
        assert solution.trajectory is not None
        found = solution.x
        gap = _rms(found - before) / max(_rms(found - found.mean(0)), 1e-12)
        if gap <= EXACT * auto.error:
            return found, solution.trajectory
        before = found
    raise ReflowError(
        f"couplings: solver auto needs endpoints that are exact to {EXACT * auto.error:.2g}, but"
        f" rk4 of 512 steps is still off by {gap:.2g}; raise `error`, or train the round longer"
    )


def dense_where_bent(path: Tensor, steps: int, power: float) -> tuple[float, ...]:
    """Return times [steps + 1] from 1 to 0, dense where paths [T + 1, B, *D] on an even grid bend.

    The density of times is the size of the third derivative to some power (the error of a step of
    order p is h^(p + 1) times a derivative, so equal errors need a power below 1 / (p + 1)).
    """
    some = path.double().flatten(1)
    bent = (some.diff(n=3, dim=0).square().mean(1).sqrt() ** power).numpy()
    passed = np.linspace(0, 1, len(some))  # 1 - t, which rises
    fine = np.linspace(0, 1, 257)
    density = np.interp(
        fine, (passed[1:-2] + passed[2:-1]) / 2, bent + max(0.05 * bent.max(), 1e-12)
    )
    total = np.concatenate([[0], ((density[1:] + density[:-1]) / 2).cumsum()])
    inner = 1 - np.interp(np.linspace(0, 1, steps + 1)[1:-1], total / total[-1], fine)
    return (1.0, *inner.tolist(), 0.0)


def _rms(x: Tensor) -> float:
    return float(x.double().square().mean().sqrt())


def _at_most(gap: Tensor) -> float:
    """Return the root mean square of a gap [B, *D] and two standard errors: rows differ much."""
    rows = gap.double().flatten(1).square().mean(1)
    return float((rows.mean() + 2 * rows.std() / len(rows) ** 0.5).sqrt())
