"""Measure the error of solvers at the end of the ODE against NFE, on velocities in closed form.

    python -m benchmarks.pair_solvers [--out FILE.json] [--model FOLDER]

For each interpolant and each field: the least NFE at which the RMS error of an endpoint, over the
standard deviation of the data, is at most 0.02 (where gates.solver_gap_rel warns), and less.
"""

import argparse
import json
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fmcore.choices.multistep import AdamsBashforth
from fmcore.matching.conversions import Velocity
from fmcore.matching.interpolant import (
    Cosine,
    Linear,
    Polynomial,
    VarianceExploding,
    VariancePreserving,
)
from fmcore.sampling.probe import Auto, Probe, probes
from fmcore.solve.adaptive import Adaptive
from fmcore.solve.solver import Solver, solve
from fmcore.tensors import load_flow
from tests.oracles import mixture_velocity

Row = dict[str, Any]
LEVELS = (0.02, 0.01, 0.005)
CALLS = {"euler": 1, "midpoint": 2, "heun": 2, "rk4": 4, "ab2": 1, "ab3": 1, "ab4": 1}
"""Evaluations for each step; those of Adams-Bashforth have one more in the first."""
BUDGETS = (4, 8, 12, 16, 20, 24, 28, 32, 36, 40, 48, 56, 64, 80, 96)
"""Evaluations that are tried."""
SHIFTS = (0.33, 0.5, 0.7, 1.0, 1.5, 2.0, 3.0)
Known = Linear | Cosine | Polynomial | VariancePreserving | VarianceExploding
INTERPOLANTS: tuple[Known, ...] = (
    Linear(),
    Cosine(),
    Polynomial(),
    VariancePreserving(name="variance_preserving"),
    VarianceExploding(name="variance_exploding"),
)


def fields() -> Iterator[tuple[str, Tensor, Tensor]]:
    """Yield (name, modes [M, d], standard deviations [d]), each of data with a spread near 1."""
    angle = torch.arange(8, dtype=torch.float64) * torch.pi / 4
    ring = torch.stack([angle.cos(), angle.sin()], dim=1)
    yield "8 Gaussians", 1.39 * ring, torch.full((2,), 0.174, dtype=torch.float64)
    pair = torch.tensor([[-1.0], [1.0]], dtype=torch.float64)
    yield "2 narrow modes", pair, torch.full((1,), 0.05, dtype=torch.float64)
    draw = torch.Generator().manual_seed(0)
    width = torch.logspace(0, -1.5, 16, dtype=torch.float64)
    modes = 0.7 * width * torch.randn(5, 16, generator=draw, dtype=torch.float64)
    yield "5 modes in 16 dimensions", modes, 0.7 * width


def spread(modes: Tensor, s: Tensor) -> float:
    """Return the standard deviation of the data over all dimensions."""
    return float((modes.var(dim=0, unbiased=False) + s**2).mean().sqrt())


def clamped(v: Velocity, first: float) -> Velocity:
    """Return v, which at times below `first` is that at `first`, as a Flow has it."""
    return lambda x, t: v(x, t.clamp(min=first))


def ends(v: Velocity, x: Tensor, solver: Solver | Adaptive) -> tuple[Tensor, float]:
    """Return the endpoints and the mean NFE."""
    found = solve(v, x, solver)
    counted = found.evaluations
    return found.x, float(found.nfe if counted is None else counted.double().mean())


def fixed(name: str, nfe: int, shift: float) -> Solver:
    """Return a solver of so many evaluations on a shifted grid."""
    steps = nfe // CALLS[name] - name.startswith("ab")
    kind = AdamsBashforth if name.startswith("ab") else Solver
    return kind.model_validate({"name": name, "steps": steps, "shift": shift})


def candidates() -> Iterator[tuple[str, Solver | Adaptive]]:
    """Yield the solvers that are tried, by a name for the table."""
    for name in CALLS:
        for shift in SHIFTS if name != "euler" else (1.0,):
            for nfe in BUDGETS:
                yield f"{name}, shift {shift:g}", fixed(name, nfe, shift)
    for power in range(2, 13):
        tol = 10 ** (-power / 2)
        yield "dopri5", Adaptive(rtol=tol, atol=tol)


def least(rows: list[Row], interpolant: str, solver: str, level: float) -> str:
    """Return the least NFE from which on a solver is within a level on every field, as text."""
    worst: dict[float, float] = {}
    own = [r for r in rows if (r["interpolant"], r["solver"]) == (interpolant, solver)]
    for row in own:  # an adaptive solver has other NFE on each field, so that its table is by tol
        key = row["setting"].get("rtol") or row["setting"]["steps"]
        worst[key] = max(worst.get(key, 0.0), row["error"])
    good = [k for k, error in worst.items() if error <= level]
    if not good:
        return f"> {BUDGETS[-1]}"
    nfe: dict[float, float] = {}
    for row in own:
        key = row["setting"].get("rtol") or row["setting"]["steps"]
        nfe[key] = max(nfe.get(key, 0.0), row["nfe"])
    return f"{min(nfe[k] for k in good):.0f}"


def of_model(folder: Path) -> None:
    """Print the errors of some solvers on a trained model, against rk4 of 96 steps; then of auto.

    Auto's error is measured on sources that it did not probe.
    """
    flow = load_flow(folder)
    assert flow.made_of is not None
    shape = flow.made_of[0].shape
    count = probes(math.prod(shape))
    x = torch.randn(2 * count, *shape, generator=torch.Generator().manual_seed(0))
    exact = flow.sample(x, Solver(name="rk4", steps=96)).x
    size = float((exact - exact.mean(dim=0)).square().mean().sqrt())
    for name in CALLS:
        for nfe in (24, 36, 48):
            for shift in (0.33, 0.5, 0.7, 1.0):
                found = flow.sample(x, fixed(name, nfe, shift))
                error = float((found.x - exact).square().mean().sqrt()) / size
                print(f"| {name} | {shift:g} | {found.nfe} | {error:.4f} |")
    spent = 0

    def counted(x: Tensor, t: Tensor) -> Tensor:
        nonlocal spent
        spent += len(x)
        return flow.network(x, t)

    counting = replace(flow, network=counted)
    for wanted in (1e-2, 3e-3, 1e-3):
        spent = 0
        solver, receipt = Probe(counting, x[:count]).choose(Auto(name="auto", error=wanted))
        fresh = flow.sample(x[count:], solver)
        error = float((fresh.x - exact[count:]).square().mean().sqrt()) / size
        grid = "own grid" if solver.times else f"shift {solver.shift:g}"
        print(f"| {wanted:g} | {solver.name}, {grid} | {fresh.nfe} | {receipt['error']:.2g} "
              f"| {error:.2g} | {spent} |")  # fmt: skip


def main() -> None:
    """Print the tables, and write all errors to a file if one is named."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path)
    parser.add_argument("--model", type=Path, help="measure this trained model alone")
    given = parser.parse_args()
    if given.model:
        of_model(given.model)
        return
    torch.set_num_threads(1)
    rows: list[Row] = []
    for interpolant in INTERPOLANTS:
        for field, modes, s in fields():
            v = clamped(mixture_velocity(modes, s, interpolant), interpolant.first)
            draw = torch.Generator().manual_seed(1)
            x = torch.randn(64, modes.shape[1], generator=draw, dtype=torch.float64)
            x = interpolant.noise_scale * x
            exact, _ = ends(v, x, Adaptive(rtol=1e-8, atol=1e-8, max_steps=20_000))
            for name, solver in candidates():
                end, nfe = ends(v, x, solver)
                error = float((end - exact).square().mean().sqrt()) / spread(modes, s)
                setting = solver.model_dump(exclude_none=True)
                rows.append({"interpolant": interpolant.name, "field": field, "solver": name,
                             "nfe": nfe, "error": error, "setting": setting})  # fmt: skip
            print(f"{interpolant.name}, {field}", flush=True)
    for level in LEVELS:
        print(f"\nleast NFE at which the error is at most {level} of the data on all fields")
        print("| solver |", " | ".join(i.name for i in INTERPOLANTS), "|")
        for name in dict.fromkeys(str(row["solver"]) for row in rows):
            found = (least(rows, i.name, name, level) for i in INTERPOLANTS)
            print("|", name, "|", " | ".join(found), "|")
    if given.out:
        given.out.write_text(json.dumps(rows))


if __name__ == "__main__":
    main()
