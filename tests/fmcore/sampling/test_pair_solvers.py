"""The solver that makes pairs where none is named, by interpolant."""

import pytest
import torch

from fmcore.choices.solvers import solver_of_pairs
from fmcore.couple import Couple
from fmcore.matching.interpolant import (
    Cosine,
    Linear,
    Polynomial,
    VarianceExploding,
    VariancePreserving,
)
from fmcore.network.build import build
from fmcore.network.mlp import MLP
from fmcore.network.store import save
from fmcore.sampling.sampler import sampler_of
from fmcore.solve.adaptive import Adaptive
from fmcore.solve.solver import Solver, solve
from fmcore.work.work import Work
from tests.chains import gaussian_data
from tests.oracles import mixture_velocity


def two_modes(interpolant):
    """Two narrow modes: the hardest of the fields in benchmarks/pair_solvers.py for most paths."""
    modes = torch.tensor([[-1.0], [1.0]], dtype=torch.float64)
    v = mixture_velocity(modes, torch.tensor([0.05], dtype=torch.float64), interpolant)
    return lambda x, t: v(x, t.clamp(min=interpolant.first))


@pytest.mark.parametrize(
    "interpolant",
    [
        Linear(),
        Cosine(),
        Polynomial(),
        VariancePreserving(name="variance_preserving"),
        VarianceExploding(name="variance_exploding"),
    ],
    ids=lambda i: i.name,
)
def test_the_solver_of_pairs_is_better_than_heun_18_at_its_cost_or_a_little_more(interpolant):
    """Off by less than half of where gates.solver_gap_rel warns, for the data's spread of 1."""
    v = two_modes(interpolant)
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(200, 1, generator=draw, dtype=torch.float64) * interpolant.noise_scale
    exact = solve(v, x, Adaptive(rtol=1e-8, atol=1e-8)).x
    chosen, before = solver_of_pairs(interpolant), Solver(name="heun", steps=18)
    ours, heun = (solve(v, x, s) for s in (chosen, before))
    error, heuns = (float((e.x - exact).square().mean().sqrt()) for e in (ours, heun))
    assert error < 0.01 and error < 0.5 * heuns
    assert ours.nfe <= (24 if interpolant.name == "linear" else 40)


def test_pairs_are_made_by_the_solver_of_their_interpolant_unless_one_is_named(tmp_path):
    gaussian_data(tmp_path / "data", mu=[0.0, 0.0], s=[1.0, 1.0], pairs=50)
    network = build(MLP(width=8, depth=1), (2,), seed=0)
    found = {}
    for path in (Linear(), VarianceExploding(name="variance_exploding")):
        about = {"interpolant": path.model_dump()}
        save(tmp_path / path.name, network, about=about)
        for solver in (None, Solver(name="euler", steps=3)):
            work = Work(scratch=tmp_path / "tmp")
            settings = Couple(pairs=10, solver=solver)
            sampler = sampler_of(tmp_path / path.name, tmp_path / "data", settings, work)
            found[path.name, solver is None] = (sampler.about.solver, sampler.about.nfe)
            assert sampler.solver == (solver or solver_of_pairs(path))
    assert found["linear", True][1] == 24 and found["linear", True][0]["name"] == "ab4"
    assert found["variance_exploding", True][1] == 40
    assert found["variance_exploding", False] == found["linear", False]
