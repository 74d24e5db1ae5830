"""Multistep solvers in the interpolant's exponential form against Adams-Bashforth on the velocity.

    python -m benchmarks.exponential

With x = alpha target + sigma source and l = log(alpha / sigma) the ODE is exactly

    x_end = sigma_end / sigma x + sigma_end * integral of target(l) e^l dl,

so a solver can extrapolate the target that the velocity predicts, by a polynomial in l through its
last values: DPM-Solver++ (Lu et al. 2022) has order 2, DEIS (Zhang & Chen 2022) does it for the
source. At t = 1 and t = 0 l is infinite, and the step is of order 1. Velocities are in closed form;
errors are over the standard deviation of the data, the best of several grids.
"""

import math
from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

from benchmarks.pair_solvers import INTERPOLANTS, SHIFTS, Known, clamped, ends, fields, spread
from fmcore.choices.multistep import AdamsBashforth
from fmcore.matching.conversions import Velocity, to_target
from fmcore.solve.adaptive import Adaptive
from fmcore.solve.solver import Solver
from tests.oracles import mixture_velocity

NFE = (12, 16, 24, 32, 48)
ORDERS = (2, 3, 4)
TOPS = (3.0, 4.0, 5.0, 7.0)
"""Largest |l| of the grids that are even in l."""


def log_ratio(path: Known, t: Tensor) -> Tensor:
    """Return l = log(alpha / sigma) [B] at t [B]; infinite at the ends."""
    a, b, _, _ = path.at(t, t)
    return (a / b).log()


def moments(h: float, order: int) -> Tensor:
    """Return the integrals [order] of u^j e^u for u in [0, h]."""
    found = [math.expm1(h)]
    for j in range(1, order):
        found.append(h**j * math.exp(h) - j * found[-1])
    return torch.tensor(found, dtype=torch.float64)


def exponential(v: Velocity, x: Tensor, path: Known, grid: Tensor, order: int) -> Tensor:
    """Integrate x [B, *D] over a falling grid [N + 1] from 1 to 0: N evaluations, x at the end."""
    a, b, _, _ = path.at(grid, grid)
    places = log_ratio(path, grid)
    known: list[tuple[Tensor, Tensor]] = []
    for i in range(len(grid) - 1):
        t = grid[i].expand(len(x)).clamp(max=1 - 1e-12)
        target = to_target(path, v(x, t), x, t)
        known = [pair for pair in known if pair[0].isfinite()][1 - order :] if order > 1 else []
        known.append((places[i], target))
        if not bool(places[i : i + 2].isfinite().all()):
            x = b[i + 1] / b[i] * x + (a[i + 1] - b[i + 1] * a[i] / b[i]) * target
            continue
        at = torch.stack([place for place, _ in known]) - places[i]
        powers = torch.arange(len(known), dtype=torch.float64)
        weights = torch.linalg.solve(
            at ** powers[:, None], moments(float(places[i + 1] - places[i]), len(known))
        )
        sums = sum(w * value for w, (_, value) in zip(weights, known, strict=True))
        x = b[i + 1] / b[i] * x + b[i + 1] * a[i] / b[i] * sums
    return x


def grids(path: Known, steps: int) -> Iterator[Tensor]:
    """Yield grids [steps + 1] from 1 to 0: shifted ones, and ones that are even in l."""
    for shift in (0.2, *SHIFTS):
        yield Solver(name="euler", steps=steps, shift=shift).grid(1.0, 0.0)
    fine = torch.linspace(1, 0, 20_001, dtype=torch.float64)[1:-1]
    places = log_ratio(path, fine).contiguous()
    for top in TOPS:
        wanted = torch.linspace(-top, top, steps - 1, dtype=torch.float64)
        inner = fine[torch.searchsorted(places, wanted).clamp(max=len(fine) - 1)]
        grid = torch.cat([torch.ones(1), inner, torch.zeros(1)]).double()
        if bool((grid[1:] < grid[:-1]).all()):
            yield grid


def main() -> None:
    """Print the least error by interpolant, field, kind and NFE."""
    torch.set_num_threads(1)
    print("| interpolant, field | solver |", " | ".join(map(str, NFE)), "|")
    for path in [p for p in INTERPOLANTS if p.name in ("linear", "cosine", "variance_preserving")]:
        for field, modes, s in fields():
            v = clamped(mixture_velocity(modes, s, path), path.first)
            draw = torch.Generator().manual_seed(1)
            x = torch.randn(64, modes.shape[1], generator=draw, dtype=torch.float64)
            exact, _ = ends(v, x, Adaptive(rtol=1e-8, atol=1e-8, max_steps=20_000))

            def error(end: Tensor, exact: Tensor = exact, size: float = spread(modes, s)) -> float:
                return float((end - exact).square().mean().sqrt()) / size

            adams = [
                min(
                    error(ends(v, x, AdamsBashforth(name=name, steps=n - 1, shift=shift))[0])
                    for name in ("ab2", "ab3", "ab4")
                    for shift in SHIFTS
                )
                for n in NFE
            ]
            run = partial(exponential, v, x, path)
            own = {k: [min(error(run(g, k)) for g in grids(path, n)) for n in NFE] for k in ORDERS}
            rows = {"ab2 to ab4": adams, **{f"exponential, order {k}": own[k] for k in ORDERS}}
            for name, values in rows.items():
                shown = " | ".join(f"{value:.1e}" for value in values)
                print(f"| {path.name}, {field} | {name} | {shown} |", flush=True)


if __name__ == "__main__":
    main()
