"""Every definition of straightness on paths whose values are known by hand, and their errors."""

import math

import pytest
import torch

from fmcore.measure.straightness import (
    initial_velocity_delta,
    measured,
    normalised_path_energy,
    per_path,
    ratio_with_error,
    straightness,
    straightness_curve,
    straightness_rel,
    with_errors,
)
from fmcore.solve.solver import Solver
from tests import oracles
from tests.fmcore.measure.test_metrics import paths

EVEN = Solver(steps=400)
SHIFTED = Solver(steps=400, shift=3.0)


def arc(angle, radius, grid):
    """A path of constant speed along an arc."""
    turned = angle * grid.grid(1.0, 0.0)
    return radius * torch.stack([turned.cos(), turned.sin()], -1)[:, None]


def parabolas(a, grid):
    """Paths (t, a t^2), one for each a: their velocity (1, 2 a t), their chord (1, a)."""
    t = grid.grid(1.0, 0.0)[:, None]
    return torch.stack([t.expand(-1, len(a)), a * t.square()], -1)


@pytest.mark.parametrize("grid", [EVEN, SHIFTED])
@pytest.mark.parametrize("angle", [0.5, math.pi / 2, math.pi])
def test_an_arc_has_its_closed_forms(angle, grid):
    r = 1.5
    found = measured(arc(angle, r, grid), grid.grid(1.0, 0.0))
    chord = (2 * r * math.sin(angle / 2)) ** 2
    s = (r * angle) ** 2 - chord
    assert found["straightness"] == pytest.approx(s, rel=1e-3)
    assert found["straightness_per_dim"] == pytest.approx(s / 2, rel=1e-3)
    assert found["straightness_rel"] == pytest.approx(s / chord, rel=1e-3)
    assert found["curvature_angle"] == pytest.approx(angle / 4, rel=1e-3)
    # |v - chord|^2 is |v|^2 + |c|^2 - 2 |v| |c| cos(angle (t - 1/2))
    t = (torch.arange(4000, dtype=torch.float64) + 0.5) / 4000
    speed, c = r * angle, math.sqrt(chord)
    gap = speed**2 + c**2 - 2 * speed * c * (angle * (t - 0.5)).cos()
    assert found["straightness_norm"] == pytest.approx(float(gap.sqrt().mean()), rel=1e-3)


@pytest.mark.parametrize("grid", [EVEN, SHIFTED])
def test_a_parabola_has_its_closed_forms(grid):
    a = torch.tensor([-2.0, 0.5, 3.0], dtype=torch.float64)
    path, times = parabolas(a, grid), grid.grid(1.0, 0.0)
    each = per_path(path, times)
    torch.testing.assert_close(each["straightness"], a.square() / 3, rtol=1e-3, atol=0)
    torch.testing.assert_close(each["straightness_norm"], a.abs() / 2, rtol=1e-3, atol=0)
    torch.testing.assert_close(each["chord"], 1 + a.square())
    rel = float((a.square() / 3).sum() / (1 + a.square()).sum())
    assert straightness_rel(path, times) == pytest.approx(rel, rel=1e-3)
    energy = 1 + 4 / 3 * float(a.square().mean())
    assert normalised_path_energy(path, 2.0, times)[0] == pytest.approx((energy - 2) / 2, rel=1e-3)
    start = torch.stack([torch.ones(3), 2 * a], -1)  # the velocity at t = 1
    torch.testing.assert_close(initial_velocity_delta(start, path), a.square() / 2)
    t, gap = straightness_curve(path, times)
    torch.testing.assert_close(gap, a.square().mean() * (2 * t - 1).square(), rtol=1e-2, atol=1e-4)


@pytest.mark.parametrize("steps", [2, 5, 10])
def test_the_error_of_a_grid_is_known(steps):
    """Means over T even segments of a parabola lose 1 / T^2 of S; so a number needs its grid."""
    a = torch.ones(1, dtype=torch.float64)
    found = straightness(parabolas(a, Solver(steps=steps)))
    assert found == pytest.approx((1 - 1 / steps**2) / 3)


def test_a_right_angle_is_45_degrees_off_its_chord():
    corner = torch.tensor([[[0.0, 0.0]], [[1.0, 0.0]], [[1.0, 1.0]]])
    assert measured(corner)["curvature_angle"] == pytest.approx(torch.pi / 4)
    assert normalised_path_energy(corner, 2.0)[0] == pytest.approx((4 - 2) / 2)
    line = corner[[0, 2]]
    assert measured(line)["curvature_angle"] == pytest.approx(0, abs=1e-6)
    assert normalised_path_energy(line, 2.0)[0] == pytest.approx(0)


def test_definitions_of_others_are_ours():
    """Slow copies of what the papers' own code computes, on one trajectory."""
    path = torch.cumsum(torch.randn(9, 50, 3, generator=torch.Generator().manual_seed(0)), 0)
    v, chord = (path[:-1] - path[1:]) * 8, path[0] - path[-1]
    found = measured(path)
    mean_square = float(((v - chord) ** 2).mean())  # fast-ode, curvature
    norms = float(torch.linalg.vector_norm(v - chord, dim=-1).mean(1).sum() / 8)  # SlimFlow
    assert found["straightness_per_dim"] == pytest.approx(mean_square, rel=1e-5)
    assert found["straightness_norm"] == pytest.approx(norms, rel=1e-5)


@pytest.mark.parametrize("s", [0.5, 2.0])
def test_path_energy_of_the_first_round_is_cost_plus_straightness(s):
    """int E||v||^2 dt = E||Z1 - Z0||^2 + S for any flow; here cost = W2^2 = mu^2 + (1 - s)^2."""
    w2_squared = 1.5**2 + (1 - s) ** 2
    found, _ = normalised_path_energy(paths(s, 200, "rk4"), w2_squared)
    assert found == pytest.approx(oracles.straightness(s) / w2_squared, rel=5e-3)


def test_standard_errors_cover_the_truth():
    """Nominal 95 % intervals over 128 paths hold the true mean in 90 to 98 % of 1,000 draws."""
    generator = torch.Generator().manual_seed(0)
    held = {"straightness": 0, "straightness_norm": 0, "rel": 0}
    truth = {"straightness": 1 / 3, "straightness_norm": math.sqrt(2 / math.pi) / 2, "rel": 1 / 6}
    for _ in range(1000):
        a = torch.randn(128, generator=generator, dtype=torch.float64)
        each = {"straightness": a.square() / 3, "straightness_norm": a.abs() / 2}
        found = with_errors(each)
        rel, error = ratio_with_error(each["straightness"], 1 + a.square())
        found |= {"rel": rel, "rel_se": error}
        for name in held:
            held[name] += abs(found[name] - truth[name]) < 1.96 * found[f"{name}_se"]
    assert all(900 <= count <= 980 for count in held.values()), held
