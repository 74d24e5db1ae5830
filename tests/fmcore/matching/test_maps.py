"""Rules of flow maps against the exact map of curved paths that do not cross."""

import pytest
import torch
from pydantic import TypeAdapter

from fmcore.matching.interpolant import Cosine, Linear, expand, interpolate
from fmcore.matching.loss import flow_matching_loss
from fmcore.matching.maps import Batch, MeanFlow
from fmcore.training.losses import RuleOfMap

MU, S = torch.tensor([1.0, -2.0]).double(), torch.tensor([0.5, 2.0]).double()
PATH = Cosine()
RULES = ["mean_flow", "improved", "shortcut", {"name": "consistency", "steps": 7}, "lagrangian"]
rules = pytest.mark.parametrize("rule", RULES, ids=lambda r: r if isinstance(r, str) else r["name"])


def of(rule):
    return TypeAdapter(RuleOfMap).validate_python(rule)


def at(t, noise):
    """Return x_t and its velocity, where each noise has the target mu + s noise."""
    return interpolate(PATH, MU + S * noise, noise, t)


def exact(x, t, label=None, span=None):
    """Return the mean velocity over [t - span, t] of the path through x; at span 0 its velocity."""
    a, b, *_ = PATH.at(t, x)
    noise = (x - a * MU) / (a * S + b)
    h = expand(span, x)
    chord = (x - at(t - span, noise)[0]) / torch.where(h > 0, h, 1.0)
    return torch.where(h > 0, chord, at(t, noise)[1])


def batch(span=None):
    noise = torch.randn(6, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    t = torch.tensor([0.3, 0.5, 0.7, 0.9, 1.0, 1.0], dtype=torch.float64)
    span = t * torch.tensor([0.1, 0.9, 0.5, 0.2, 1.0, 0.5]) if span is None else span
    return Batch(MU + S * noise, noise, t, span=span)


def gap(rule, network, given):
    x, v = at(given.t, given.source)
    return of(rule).gap(network, given, x, v, PATH)


@rules
def test_the_exact_map_has_no_gap_and_others_have(rule):
    found = gap(rule, exact, batch())
    torch.testing.assert_close(found, torch.zeros_like(found), atol=1e-9, rtol=0)
    longer = lambda *a: 1.1 * exact(*a)
    assert float(gap(rule, longer, batch()).abs().mean()) > 0.01
    spanless = lambda x, t, label, span: exact(x, t, label, torch.zeros_like(span))
    assert float(gap(rule, spanless, batch())[1:].abs().mean()) > 0.01


@rules
def test_without_a_span_each_rule_is_flow_matching(rule):
    off = lambda *a: exact(*a) + 0.3
    zero = torch.zeros(6, dtype=torch.float64)
    for span in (zero, None):
        given = Batch(batch().target, batch().source, batch().t, span=span)
        torch.testing.assert_close(gap(rule, off, given), torch.full((6, 2), 0.3).double())


@rules
def test_gradients_flow_through_the_prediction_alone(rule):
    """Of the Lagrangian rule the prediction is u + h du/dh, the velocity where the map ends."""
    scale = torch.ones((), dtype=torch.float64, requires_grad=True)
    given = batch(torch.tensor([0.1, 0.4, 0.7, 0.5, 1.0, 0.0]).double())
    gap(rule, lambda *a: scale * exact(*a), given).sum().backward()
    (x, _), span = at(given.t, given.source), given.span
    if rule == "lagrangian":
        expected = at(given.t - span, given.source)[1]
    else:
        reached = torch.where(span > 0, given.t, 0.0) if isinstance(rule, dict) else span
        expected = exact(x, given.t, None, reached)
    torch.testing.assert_close(scale.grad, expected.sum())


def test_improved_follows_the_velocity_of_the_network_and_mean_flow_that_of_the_pair():
    """Where paths cross they differ: the one aim is a function of x and t, the other is not."""
    given, x = batch(), torch.zeros(6, 2, dtype=torch.float64)
    u = lambda x, t, label, span: x * expand(span, x)
    v = torch.ones_like(x)
    h = expand(given.span, x)
    mean_flow, improved = (of(r).gap(u, given, x, v, PATH) for r in ("mean_flow", "improved"))
    torch.testing.assert_close(mean_flow, -v + h * h * v)
    torch.testing.assert_close(improved, -v)


def test_the_loss_takes_the_rule_it_is_given():
    given = batch()
    losses = [
        float(flow_matching_loss(exact, given, PATH, "mean_flow", rule=of(r))[1]) for r in RULES
    ]
    assert max(losses) < 1e-15
    off = lambda x, t, label, span: exact(x, t, label, span) + (0.1 + expand(span, x)) ** 2
    found = {float(flow_matching_loss(off, given, PATH, "mean_flow", rule=of(r))[1]) for r in RULES}
    assert len(found) == len(RULES) and min(found) > 1e-4
    standard = flow_matching_loss(off, given, Linear(), "mean_flow")[1]
    assert standard == flow_matching_loss(off, given, Linear(), "mean_flow", rule=MeanFlow())[1]
