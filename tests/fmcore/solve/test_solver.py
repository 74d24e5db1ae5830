"""Solvers: order of convergence, exact grids, counted evaluations, closed forms."""

import math

import pytest
import torch
from pydantic import ValidationError

from fmcore.matching.interpolant import Cosine
from fmcore.solve.solver import STEPS, Solver, solve
from tests.oracles import eight_gaussians_velocity, gaussian_velocity

ORDERS = {"euler": 1, "midpoint": 2, "heun": 2, "rk4": 4}
CALLS = {"euler": 1, "midpoint": 2, "heun": 2, "rk4": 4}


def test_every_solver_is_tested():
    assert set(STEPS) == set(ORDERS)


@pytest.mark.parametrize("name", STEPS)
def test_order_of_convergence(name):
    """On dx/dt = a(t) x the solution is known; the slope of the error is the order."""
    x = torch.tensor([[1.0], [-2.0]], dtype=torch.float64)
    exact = x * math.exp(math.sin(0.0) - math.sin(1.0))
    grid = [16, 32, 64, 128]
    errors = []
    for steps in grid:
        v = lambda x, t: t.cos()[:, None] * x
        grown = solve(v, x, Solver(name=name, steps=steps)).x
        errors.append(float((grown - exact).abs().max()))
    logs = torch.tensor(grid, dtype=torch.float64).log(), torch.tensor(errors).double().log()
    centred = [a - a.mean() for a in logs]
    slope = float((centred[0] * centred[1]).sum() / centred[0].square().sum())
    assert -slope == pytest.approx(ORDERS[name], abs=0.2)


@pytest.mark.parametrize("name", STEPS)
def test_nfe_is_what_the_network_saw(name):
    seen = []
    solution = solve(lambda x, t: seen.append(1) or x, torch.ones(2, 1), Solver(name=name, steps=5))
    assert solution.nfe == len(seen) == 5 * CALLS[name]


@pytest.mark.parametrize("name", STEPS)
def test_a_constant_field_is_solved_exactly_on_the_whole_interval(name):
    """No clipping at the ends: x(0) = x(1) - c for dx/dt = c."""
    x = torch.zeros(1, 2, dtype=torch.float64)
    c = torch.tensor([3.0, -1.0], dtype=torch.float64)
    solution = solve(
        lambda x, t: c.expand_as(x), x, Solver(name=name, steps=7), keep_trajectory=True
    )
    torch.testing.assert_close(solution.x, -c[None])
    assert solution.trajectory.shape == (8, 1, 2)
    torch.testing.assert_close(solution.trajectory[0], x)


def test_of_the_trajectory_some_states_are_kept_in_the_order_asked_for():
    x, solver = torch.ones(3, 2), Solver(name="heun", steps=6)
    whole = solve(lambda x, t: t[:, None] * x, x, solver, keep_trajectory=True)
    some = solve(lambda x, t: t[:, None] * x, x, solver, keep_trajectory=(4, 0, 6))
    assert torch.equal(some.trajectory, whole.trajectory[[4, 0, 6]])
    assert torch.equal(some.x, whole.x) and some.nfe == whole.nfe
    assert solve(lambda x, t: x, x, solver, keep_trajectory=()).trajectory is None


def test_forth_and_back_is_identity():
    v = gaussian_velocity(torch.tensor([1.0, 0.0]), torch.tensor([0.5, 2.0]))
    x = torch.randn(64, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    solver = Solver(name="rk4", steps=50)
    there = solve(v, x, solver).x
    back = solve(v, there, solver, start=0.0, end=1.0).x
    torch.testing.assert_close(back, x, atol=1e-5, rtol=1e-5)


# std(output) / s after N Euler steps from N(0, 1), as the closed form gives it.
EULER_STD = {
    1.0: {1: 0.0, 2: 0.5, 4: 0.72, 5: 0.7705, 8: 0.850822, 10: 0.878984, 100: 0.987228},
    0.5: {1: 0.0, 2: 0.4, 4: 0.681081, 10: 0.861565, 100: 0.985291},
    2.0: {1: 0.0, 2: 0.4, 4: 0.681081, 10: 0.861565, 100: 0.985291},
}


@pytest.mark.parametrize("s", EULER_STD)
def test_euler_shrinks_a_gaussian_as_the_closed_form_says(s):
    v = gaussian_velocity(torch.tensor([1.5]).double(), torch.tensor([s]).double())
    x = torch.tensor([[-1.0], [1.0]], dtype=torch.float64)
    for steps, ratio in EULER_STD[s].items():
        out = solve(v, x, Solver(name="euler", steps=steps)).x
        assert float(out[1] - out[0]) / 2 / s == pytest.approx(ratio, abs=2e-6)
        assert float(out.mean()) == pytest.approx(1.5, abs=1e-9)


def test_heun_on_a_gaussian():
    v = gaussian_velocity(torch.zeros(1).double(), torch.ones(1).double())
    x = torch.ones(1, 1, dtype=torch.float64)
    for steps, ratio in {1: 0.5, 2: 0.9375, 5: 0.994789, 10: 0.999335}.items():
        assert float(solve(v, x, Solver(steps=steps)).x) == pytest.approx(ratio, abs=2e-6)


def test_every_interpolant_of_gaussians_has_the_same_endpoint_map():
    mu, s = torch.tensor([2.0, -1.0]).double(), torch.tensor([0.5, 2.0]).double()
    x = torch.randn(32, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    solver = Solver(name="rk4", steps=200)
    for velocity in (gaussian_velocity(mu, s), gaussian_velocity(mu, s, Cosine())):
        torch.testing.assert_close(solve(velocity, x, solver).x, mu + s * x, atol=1e-5, rtol=1e-5)


def test_errors_on_eight_gaussians_fall_with_the_order():
    v = eight_gaussians_velocity(4.0, 0.5)
    x = torch.randn(256, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    exact = solve(v, x, Solver(name="rk4", steps=400)).x

    def rms(name, steps):
        gap = solve(v, x, Solver(name=name, steps=steps)).x - exact
        return float(gap.square().sum(1).mean().sqrt())

    euler = [rms("euler", n) for n in (50, 100)]
    assert euler[0] / euler[1] == pytest.approx(2, rel=0.15)
    assert rms("rk4", 25) < euler[1] / 5


def test_a_shifted_grid_is_the_map_of_its_formula_and_keeps_its_ends():
    grid = Solver(steps=4, shift=3.0).grid(1.0, 0.0)
    t = torch.tensor([1.0, 0.75, 0.5, 0.25, 0.0], dtype=torch.float64)
    torch.testing.assert_close(grid, 3 * t / (1 + 2 * t))
    assert grid[0] == 1 and grid[-1] == 0
    torch.testing.assert_close(Solver(steps=4, shift=3.0).grid(0.0, 1.0), grid.flip(0))


def test_a_shift_above_one_shortens_the_steps_at_the_source_and_below_one_at_the_target():
    """The steps from t = 1 (source) to t = 0 (target), as the description of `shift` says."""
    lengths = [-Solver(steps=4, shift=s).grid(1.0, 0.0).diff() for s in (3.0, 1 / 3, 1.0)]
    torch.testing.assert_close(lengths[0], torch.tensor([0.1, 0.15, 0.25, 0.5]).double())
    torch.testing.assert_close(lengths[1], lengths[0].flip(0))
    assert float(lengths[2].std()) == 0


def test_a_grid_of_the_users_own_is_walked_as_given():
    seen = []
    solver = Solver(name="euler", times=(1.0, 0.9, 0.3, 0.0))
    found = solve(lambda x, t: seen.append(round(float(t[0]), 6)) or x, torch.ones(1, 1), solver)
    assert seen == [1.0, 0.9, 0.3] and found.nfe == solver.steps == 3
    assert solver.refined().times == pytest.approx((1.0, 0.95, 0.9, 0.6, 0.3, 0.15, 0.0))
    assert solver.grid(0.0, 1.0).tolist() == pytest.approx([0.0, 0.3, 0.9, 1.0])


@pytest.mark.parametrize("shift", [0.5, 1.0, 3.0])
def test_any_grid_converges_with_its_order(shift):
    x = torch.tensor([[1.0]], dtype=torch.float64)
    v = lambda x, t: t.cos()[:, None] * x
    errors = [
        abs(
            float(solve(v, x, Solver(name="heun", steps=n, shift=shift)).x) - math.exp(-math.sin(1))
        )
        for n in (20, 40)
    ]
    assert errors[0] / errors[1] == pytest.approx(4, rel=0.15)


@pytest.mark.parametrize(
    "bad",
    [
        {"times": [1.0, 0.5]},
        {"times": [0.0, 1.0]},
        {"times": [1.0, 0.5, 0.5, 0.0]},
        {"times": [1.0, 0.0], "steps": 3},
        {"times": [1.0, 0.5, 0.0], "shift": 2.0},
        {"shift": 0.0},
    ],
)
def test_a_grid_that_is_none_is_refused(bad):
    with pytest.raises(ValidationError):
        Solver(**bad)
