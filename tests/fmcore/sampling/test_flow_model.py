"""A trained network as a flow: objectives, guidance, spans and inversion, in closed form."""

import pytest
import torch

from fmcore.matching.conversions import to_source, to_target
from fmcore.matching.interpolant import Cosine, Linear, VarianceExploding, VariancePreserving
from fmcore.network.build import build, with_spans
from fmcore.network.mlp import MLP
from fmcore.sampling.flow import Flow, advice_on_few_steps
from fmcore.solve.adaptive import Adaptive
from fmcore.solve.solver import Solver
from tests.chains import CPU
from tests.fmcore.matching.test_loss import average_velocity
from tests.oracles import gaussian_velocity

MU, S = torch.tensor([1.0, -0.5]), torch.tensor([0.5, 1.5])
X = torch.randn(300, 2, generator=torch.Generator().manual_seed(0))
FINE = Solver(name="rk4", steps=60)
SCHEDULES = [
    Linear(),
    Cosine(),
    VariancePreserving(name="variance_preserving"),
    VarianceExploding(name="variance_exploding", sigma_min=0.01, sigma_max=100.0),
]


@pytest.mark.parametrize("interpolant", SCHEDULES, ids=lambda i: i.name)
@pytest.mark.parametrize("objective", ["velocity", "noise", "target"])
def test_every_objective_on_every_interpolant_carries_noise_to_the_data(interpolant, objective):
    """One flow map for all schedules: x -> mu + s x (for ve up to sigma_min)."""
    v = gaussian_velocity(MU, S, interpolant)
    network = {
        "velocity": v,
        "noise": lambda x, t: to_source(interpolant, v(x, t), x, t),
        "target": lambda x, t: to_target(interpolant, v(x, t), x, t),
    }[objective]
    flow = Flow(network, interpolant, objective)
    found = flow.sample(X, FINE, device=CPU)
    torch.testing.assert_close(found.x, MU + S * X, atol=0.03, rtol=0.03)
    back = flow.invert(found.x, FINE, device=CPU).x
    torch.testing.assert_close(back, X, atol=0.03, rtol=0.03)


def test_guidance_extrapolates_from_the_null_class_and_counts_twice():
    def network(x, t, label):
        return label[:, None].float().expand_as(x)

    flow = Flow(network, Linear(), classes=5)
    label = torch.ones(300, dtype=torch.int64)
    plain = flow.sample(X, Solver(name="euler", steps=3), device=CPU, label=label)
    guided = flow.sample(X, Solver(name="euler", steps=3), device=CPU, label=label, guidance=2.0)
    torch.testing.assert_close(plain.x, X - 1)
    torch.testing.assert_close(guided.x, X - (5 + 2 * (1 - 5)))
    assert (plain.nfe, guided.nfe) == (3, 6)
    adaptive = flow.sample(X, Adaptive(name="dopri5"), device=CPU, label=label, guidance=2.0)
    assert adaptive.nfe == int(adaptive.evaluations.max()) and adaptive.nfe % 2 == 0


def test_an_average_velocity_takes_long_steps_exactly():
    exact = average_velocity(MU, S)
    flow = Flow(
        lambda x, t, label, span: exact(x, t, label, span.clamp(min=1e-3)), Linear(), "mean_flow"
    )
    for steps in (1, 2, 5):
        found = flow.sample(X, Solver(name="euler", steps=steps), device=CPU)
        torch.testing.assert_close(found.x, MU + S * X, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("steps", [1, 2, 20])
def test_few_steps_of_a_noise_network_enlarge_its_error_as_the_warning_says(steps):
    """Alpha is 0 at t = 1: the first step reads t = 0.99, where W / alpha is 100 for linear."""
    v, off = gaussian_velocity(MU, S), 1e-3
    exact = lambda x, t: to_source(Linear(), v(x, t), x, t)
    first = lambda x, t: exact(x, t) + off * (t > 0.98)[:, None]
    solver = Solver(name="euler", steps=steps)
    ends = [Flow(n, Linear(), "noise").sample(X, solver, device=CPU).x for n in (exact, first)]
    enlarged = float((ends[1] - ends[0]).abs().max()) / off
    rest = (1 + S.max() ** 2 / 3) ** 0.5  # what later steps make of it: at most a few times
    assert 0.2 * 100 / steps < enlarged < float(4 * rest) * 100 / steps
    said = advice_on_few_steps(Flow(exact, Linear(), "noise"), [steps])
    assert (said is None) is (steps == 20)
    assert said is None or (f"objective noise at NFE {steps}: " in said and " 100 / NFE" in said)
    assert advice_on_few_steps(Flow(v, Linear()), [steps]) is None


GRIDS = [Solver(name="euler", steps=4, shift=3.0), Solver(name="euler", times=(1.0, 0.9, 0.3, 0.0))]


@pytest.mark.parametrize("solver", GRIDS, ids=["shift", "times"])
def test_the_span_of_an_average_velocity_is_the_step_of_the_grid_both_ways(solver):
    """The exact average is exact on any grid, if each step asks for its own span."""
    exact = average_velocity(MU.double(), S.double())
    asked = []

    def network(x, t, label, span):
        asked.append(float(span[0]))
        return exact(x, t, label, span)

    flow, x = Flow(network, Linear(), "mean_flow"), X[:100].double()
    there = flow.sample(x, solver, device=CPU).x
    steps = (-solver.grid(1.0, 0.0).diff()).tolist()
    assert asked == pytest.approx(steps)
    torch.testing.assert_close(there, MU + S * x)
    asked.clear()
    torch.testing.assert_close(flow.invert(there, solver, device=CPU).x, x)
    assert asked == pytest.approx([-step for step in reversed(steps)])


def test_labels_and_spans_change_nothing_before_they_are_trained():
    plain = build(MLP(width=16, depth=1, time_features=8), (2,), seed=0)
    named = build(MLP(width=16, depth=1, time_features=8, classes=3), (2,), seed=0)
    t = torch.linspace(0, 1, 300)
    label = torch.arange(300) % 3
    assert torch.equal(plain(X, t), named(X, t)) and torch.equal(plain(X, t), named(X, t, label))
    wider = with_spans(plain)
    assert torch.equal(wider(X, t, None, t), plain(X, t))
    assert with_spans(wider) is wider and wider.settings.spans


def test_a_label_moves_the_velocity_once_its_embedding_does():
    network = build(MLP(width=16, depth=1, time_features=8, classes=3), (2,), seed=0)
    torch.nn.init.normal_(network.label.weight)
    t = torch.full((300,), 0.5)
    null = network(X, t)
    assert torch.equal(network(X, t, torch.full((300,), 3)), null)
    assert not torch.allclose(network(X, t, torch.zeros(300, dtype=torch.int64)), null)
