"""dopri5 with steps of each row's own: against torchdiffeq row by row, and free of the batch."""

import pytest
import torch
import torchdiffeq

from fmcore.matching.interpolant import Linear
from fmcore.network.field import Field
from fmcore.settings import ReflowError
from fmcore.solve.adaptive import Adaptive
from fmcore.solve.solver import solve
from tests.oracles import eight_gaussians_velocity

V = eight_gaussians_velocity(4.0, 0.5)
X = torch.randn(40, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def reference(x, tolerance, start=1.0, end=0.0):
    """Each row by torchdiffeq alone, so that its step control sees one row."""
    times = torch.tensor([start, end], dtype=torch.float64)
    rows = [
        torchdiffeq.odeint(
            lambda t, y: V(y, t.expand(1)), row[None], times, rtol=tolerance, atol=tolerance
        )[-1]
        for row in x
    ]
    return torch.cat(rows)


@pytest.fixture(scope="module")
def exact():
    return reference(X, 1e-11)


@pytest.mark.parametrize("tolerance", [1e-4, 1e-6, 1e-8])
def test_each_row_is_as_exact_as_torchdiffeq_alone(exact, tolerance):
    own = solve(V, X, Adaptive(name="dopri5", rtol=tolerance, atol=tolerance))
    theirs = reference(X, tolerance)
    error = (own.x - exact).abs().max()
    assert float(error) < 3 * float((theirs - exact).abs().max()) + 1e-12


def test_the_evaluations_are_those_of_torchdiffeq():
    settings = Adaptive(name="dopri5", rtol=1e-6, atol=1e-6)
    own = solve(V, X[:8], settings)
    for row, count in zip(X[:8], own.evaluations):
        calls = []

        def counted(t, y, calls=calls):
            calls.append(t)
            return V(y, t.expand(1))

        times = torch.tensor([1.0, 0.0], dtype=torch.float64)
        torchdiffeq.odeint(counted, row[None], times, rtol=1e-6, atol=1e-6)
        assert abs(int(count) - len(calls)) <= 0.3 * len(calls)
    assert own.nfe == int(own.evaluations.max())


def test_a_row_does_not_depend_on_its_batch_mates():
    settings = Adaptive(name="dopri5")
    whole = solve(V, X, settings)
    for cut in (1, 7, 39):
        parts = [solve(V, x, settings) for x in X.split(cut)]
        assert torch.equal(torch.cat([p.x for p in parts]), whole.x)
        assert torch.equal(torch.cat([p.evaluations for p in parts]), whole.evaluations)


def test_there_and_back_is_where_it_began():
    settings = Adaptive(name="dopri5", rtol=1e-9, atol=1e-9)
    there = solve(V, X, settings).x
    back = solve(V, there, settings, start=0.0, end=1.0).x
    torch.testing.assert_close(back, X, rtol=0, atol=1e-6)


@pytest.mark.long
def test_a_tighter_tolerance_costs_more_and_errs_less():
    loose, exact = Adaptive(name="dopri5", rtol=1e-3, atol=1e-3), reference(X, 1e-11)
    a, b = solve(V, X, loose), solve(V, X, loose.refined())
    assert (b.x - exact).norm() < (a.x - exact).norm() and bool(
        (b.evaluations >= a.evaluations).all()
    )


def test_a_velocity_that_cannot_be_solved_is_named():
    with pytest.raises(ReflowError, match="did not arrive within 20 steps"):
        solve(lambda x, t: x * float("nan"), X, Adaptive(name="dopri5", max_steps=20))
    with pytest.raises(ValueError, match="no trajectory"):
        solve(V, X, Adaptive(name="dopri5"), keep_trajectory=True)


def test_rows_that_have_arrived_are_not_computed():
    called = []

    def counted(x, t):
        called.append(len(x))
        return V(x, t)

    found = solve(counted, X, Adaptive(name="dopri5"))
    assert sum(called) == int(found.evaluations.sum())
    assert called[-1] < called[0] == len(X)


def test_labels_go_with_their_rows():
    speeds = torch.tensor([0.0, 1.0, 30.0])

    def by_label(x, t, label):
        return V(x, t) * (1 + torch.sin(speeds[label % 3] * t)[:, None])

    label = torch.arange(len(X))
    settings = Adaptive(name="dopri5")
    whole = solve(Field(by_label, Linear(), classes=3).velocity(label), X, settings)
    assert len(set(whole.evaluations.tolist())) > 3
    for row in range(0, len(X), 7):
        v = Field(by_label, Linear(), classes=3).velocity(label[row : row + 1])
        assert torch.equal(solve(v, X[row : row + 1], settings).x[0], whole.x[row])
