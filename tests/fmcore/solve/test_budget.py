"""A solver within a budget of evaluations: never more, and no step fewer than it pays for."""

import pytest
import torch

from fmcore.choices.budget import ADAPTIVE, STEPS, named, within
from fmcore.settings import ReflowError
from fmcore.solve.solver import solve


def nfe(solver):
    return solve(lambda x, t: -x, torch.ones(3, 2), solver).nfe


@pytest.mark.parametrize("name", STEPS)
@pytest.mark.parametrize("budget", [4, 7, 32])
def test_the_evaluations_that_are_counted_are_those_that_were_granted(name, budget):
    solver = within(name, budget)
    assert nfe(solver) <= budget < nfe(named(name, steps=solver.steps + 1))


def test_an_adaptive_solver_stops_at_its_budget():
    needed = nfe(named(ADAPTIVE))
    assert nfe(within(ADAPTIVE, needed)) == needed
    with pytest.raises(ReflowError, match="did not arrive"):
        nfe(within(ADAPTIVE, needed - 6))


def test_what_cannot_be_is_told_in_one_line():
    with pytest.raises(ReflowError, match=r"no solver 'rk45'; expected one of euler, .*, dopri5$"):
        within("rk45", 9)
    with pytest.raises(ReflowError, match="rk4: one step takes more than 3 evaluations"):
        within("rk4", 3)
