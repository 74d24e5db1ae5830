"""Guidance is a property of a round: pairs that were made with it are not guided again.

Two classes N(-2, .5^2) and N(2, .5^2) with their exact velocities, and the exact velocities of the
straight flow that learns the guided pairs of the second class.
"""

import pytest
import torch

from fmcore.couple import Couple, couple
from fmcore.coupling.read import open_coupling
from fmcore.dataset.public import Digits
from fmcore.evaluate import Evaluate
from fmcore.matching.interpolant import Linear
from fmcore.measure.harness import Harness, guidance, harness_of
from fmcore.network.build import build
from fmcore.network.mlp import MLP
from fmcore.network.store import load, save
from fmcore.prepare import prepare
from fmcore.sampling.flow import Flow
from fmcore.settings import ReflowError
from fmcore.solve.solver import Solver
from fmcore.work.work import Work
from tests.chains import CPU

MEAN, SD = 2.0, 0.5
FINE = Solver(name="rk4", steps=60)
NOISE = torch.randn(4000, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
SECOND = torch.ones(4000, dtype=torch.int64)
NULL = 2


def mixed(of_class):
    """Return the network of two classes at -m and m whose null class is their even mixture."""

    def network(x, t, label):
        t = t[:, None]
        (low, p), (high, q) = of_class(x, t, -1.0), of_class(x, t, 1.0)
        share = torch.softmax(torch.stack([p, q]), dim=0)
        null = share[0] * low + share[1] * high
        own = torch.where(label[:, None] == 0, low, high)
        return torch.where(label[:, None] == NULL, null, own)

    return network


def independent(x, t, sign):
    """Velocity and log density of x_t = (1 - t) target + t source, drawn independently."""
    variance = ((1 - t) * SD) ** 2 + t**2
    gap = x - (1 - t) * sign * MEAN
    velocity = (t - (1 - t) * SD**2) * gap / variance - sign * MEAN
    return velocity, -(gap**2) / (2 * variance) - variance.log() / 2


def straight(mean, sd):
    """The same of the pairs target = mean + sd source, which the second round learns."""

    def of_class(x, t, sign):
        width = (1 - t) * sd + t
        source = (x - (1 - t) * sign * mean) / width
        return source - (sign * mean + sd * source), -(source**2) / 2 - width.log()

    return of_class


RF1 = Flow(mixed(independent), Linear(), classes=2)


def test_pairs_with_guidance_are_not_guided_again():
    """The spread of a class is .50; guided once .36, which guiding the second round makes .26."""
    pairs = RF1.sample(NOISE, FINE, label=SECOND, guidance=2.0).x
    mean, sd = float(pairs.mean()), float(pairs.std())
    assert (mean, sd) == pytest.approx((2.32, 0.36), abs=0.01)
    network = mixed(straight(mean, sd / float(NOISE.std())))
    rf2 = Flow(network, Linear(), classes=2, guided=2.0)
    asked = Evaluate(guidance=2.0)
    found = {}
    for name, flow in (("rf1", RF1), ("rf2", rf2)):
        settings = asked if flow.guided == 1 else asked.model_copy(update={"guidance": 1.0})
        harness = Harness(flow, NOISE, SECOND, settings, 0, CPU)
        found[name] = float(harness.samples(FINE).x.std())
    twice = Flow(network, Linear(), classes=2).sample(NOISE, FINE, label=SECOND, guidance=2.0).x
    assert found == pytest.approx({"rf1": sd, "rf2": sd}, abs=1e-3)
    assert (float(twice.mean()), float(twice.std())) == pytest.approx((2.55, 0.26), abs=0.02)


def test_guiding_a_guided_flow_is_refused_in_one_line():
    flow = Flow(RF1.network, Linear(), classes=2, guided=2.0)
    for ask in (
        lambda: flow.sample(NOISE, FINE, label=SECOND, guidance=3.0),
        lambda: flow.invert(NOISE, FINE, label=SECOND, guidance=3.0),
        lambda: flow.velocity(SECOND, guidance=3.0),
    ):
        with pytest.raises(ReflowError, match="guidance 2 is in the pairs .* applied twice") as e:
            ask()
        assert "\n" not in str(e.value)
    flow.sample(NOISE[:2], Solver(name="euler", steps=1), label=SECOND[:2])


@pytest.fixture
def data(tmp_path):
    prepare(tmp_path / "data", Digits(name="digits"), seed=0)
    return tmp_path / "data"


def model(folder, **about):
    save(folder, build(MLP(width=8, depth=1, classes=10), (1, 8, 8), seed=0), about=about)
    return folder


def test_guidance_goes_from_a_coupling_to_the_models_and_couplings_after_it(tmp_path, data):
    def pairs_of(name, path, **settings):
        work = Work(scratch=tmp_path / f"tmp_{name}")
        chosen = Couple(pairs=40, solver=Solver(name="euler", steps=2), **settings)
        couple(path, data, tmp_path / name, tmp_path / f"{name}.json", chosen, work)
        return open_coupling(tmp_path / name).about

    one = pairs_of("one", model(tmp_path / "rf1"), guidance=2.0)
    assert (one.guidance, one.guided, one.nfe) == (2.0, 2.0, 4)
    rf2 = model(tmp_path / "rf2", round="rf2", **one.carried())
    two = pairs_of("two", rf2)
    assert (two.guidance, two.guided, two.nfe) == (1.0, 2.0, 2)
    assert two.carried()["guided"] == 2.0 and Flow.of(load(rf2)).guided == 2.0
    with pytest.raises(ReflowError, match="guidance 3: guidance 2 is in the pairs"):
        pairs_of("three", rf2, guidance=3.0)
    assert "guided" not in pairs_of("plain", tmp_path / "rf1").carried()


def test_a_guided_round_is_measured_without_guidance_and_the_record_says_so(tmp_path, data):
    work, asked = Work(scratch=tmp_path / "tmp"), Evaluate(guidance=2.0)
    said = {}
    for name, about in (("rf1", {}), ("rf2", {"guided": 2.0})):
        flow = Flow.of(load(model(tmp_path / name, **about)))
        harness = harness_of(flow, data, 50, asked, work)
        said[name] = guidance(harness)
        said[f"{name} nfe"] = harness.samples(Solver(name="euler", steps=4)).nfe
    assert said == {"rf1": {"guidance": 2.0}, "rf1 nfe": 8, "rf2": {"guided": 2.0}, "rf2 nfe": 4}


def test_a_time_of_the_grid_may_be_a_bound_of_guidance(tmp_path, data):
    """In float32 0.8 is more than the number 0.8: both counts have to compare the same numbers."""
    guided = {"strength": 3.0, "within": (0.2, 0.8)}
    work = Work(scratch=tmp_path / "tmp")
    for mix in ({"generated": 1.0}, {"inverted": 1.0}):
        chosen = Couple(pairs=40, solver=Solver(name="euler", steps=10), guidance=guided, mix=mix)
        out = tmp_path / next(iter(mix))
        couple(model(tmp_path / "rf1"), data, out, tmp_path / "m.json", chosen, work)
        assert open_coupling(out).about.nfe == 10 + 7
