"""Adams-Bashforth: known weights, order, exactness for polynomials, counted evaluations."""

import math

import pytest
import torch

from fmcore.choices.multistep import AdamsBashforth, weights
from fmcore.choices.solvers import sampler_name
from fmcore.solve.solver import Solver, solve
from tests.oracles import eight_gaussians_velocity

NAMES = {"ab2": 2, "ab3": 3, "ab4": 4}

# Hairer, Norsett & Wanner, Solving ODEs I, III.1, equations 1.5, oldest first.
KNOWN = {
    1: [1],
    2: [-1 / 2, 3 / 2],
    3: [5 / 12, -16 / 12, 23 / 12],
    4: [-9 / 24, 37 / 24, -59 / 24, 55 / 24],
}


@pytest.mark.parametrize("k", KNOWN)
def test_weights_on_even_steps_are_those_of_the_book(k):
    times = torch.linspace(0.7, 0.7 - 0.1 * (k - 1), k, dtype=torch.float64)
    found = weights(times, times[-1] - 0.1)
    assert found == pytest.approx([-0.1 * w for w in KNOWN[k]])


@pytest.mark.parametrize("k", [2, 3, 4])
def test_weights_integrate_polynomials_on_uneven_times(k):
    times, end = torch.tensor([0.9, 0.85, 0.6, 0.5][:k], dtype=torch.float64), 0.2
    for power in range(k):
        found = sum(
            w * t**power
            for w, t in zip(weights(times, torch.tensor(end)), times.tolist(), strict=True)
        )
        last = float(times[-1])
        assert found == pytest.approx((end ** (power + 1) - last ** (power + 1)) / (power + 1))


@pytest.mark.parametrize("name", NAMES)
def test_order_of_convergence(name):
    """On dx/dt = cos(t) x; Heun's first step costs h^3, so order 4 shows as at least 3."""
    x = torch.tensor([[1.0], [-2.0]], dtype=torch.float64)
    exact = x * math.exp(-math.sin(1.0))
    errors = [
        float((solve(lambda x, t: t.cos()[:, None] * x, x, solver).x - exact).abs().max())
        for solver in (AdamsBashforth(name=name, steps=n) for n in (40, 80))
    ]
    order = math.log2(errors[0] / errors[1])
    assert min(NAMES[name], 3) - 0.25 < order < NAMES[name] + 0.5


@pytest.mark.parametrize("name", NAMES)
def test_after_short_first_steps_each_is_exact_for_polynomials_of_its_own_degree(name):
    """On dx/dt = t^k, k below the number of velocities; the first steps' error is of 1e-12."""
    times = (1.0, 1 - 1e-4, 1 - 2e-4, 1 - 3e-4, 0.7, 0.45, 0.2, 0.0)
    solver, x = AdamsBashforth(name=name, times=times), torch.zeros(1, 1, dtype=torch.float64)
    off = [
        abs(float(solve(lambda x, t, k=k: t[:, None] ** k, x, solver).x) + 1 / (k + 1))
        for k in range(5)
    ]
    count = NAMES[name]
    assert max(off[:count]) < 1e-6  # weights of such uneven times enlarge the rounding
    assert off[count] > 1e-3


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("steps", [1, 2, 7])
def test_one_evaluation_for_each_step_and_one_more(name, steps):
    seen = []
    solver = AdamsBashforth(name=name, steps=steps)
    found = solve(
        lambda x, t: seen.append(1) or x * 0 + 3, torch.zeros(2, 1), solver, keep_trajectory=True
    )
    assert found.nfe == len(seen) == steps + 1
    torch.testing.assert_close(found.x, torch.full((2, 1), -3.0))
    assert len(found.trajectory) == steps + 1
    assert sampler_name(solver) == f"{name}_{steps}"


def test_forth_and_back_on_a_shifted_grid_and_fewer_evaluations_than_rk4():
    v = eight_gaussians_velocity(1.39, 0.174)
    x = torch.randn(256, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    exact = solve(v, x, Solver(name="rk4", steps=200)).x

    def error(solver):
        return float((solve(v, x, solver).x - exact).square().mean().sqrt())

    ours = AdamsBashforth(name="ab4", steps=31, shift=0.5)
    assert error(ours) < error(Solver(name="rk4", steps=8)) < error(Solver(name="heun", steps=16))
    long = AdamsBashforth(name="ab3", steps=200)
    back = solve(v, solve(v, x, long).x, long, start=0.0, end=1.0).x
    assert float((back - x).abs().max()) < 1e-2
