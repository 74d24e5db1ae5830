"""Training batches: pairing, flips, labels; each draw a function of (seed, step)."""

from itertools import islice

import numpy as np
import pytest
import torch

from fmcore.coupling.pairs import Pairs
from fmcore.measure.transport import transport_cost, w2
from fmcore.training.batch import BatchRules, Optimal, Sinkhorn, draw_batch, draw_batches

CPU = torch.device("cpu")


def pairs(n=64, shape=(2,), labels=False):
    generator = torch.Generator().manual_seed(0)
    target = 3 + 0.5 * torch.randn(n, *shape, generator=generator)
    source = torch.randn(n, *shape, generator=generator)
    label = torch.arange(n) % 3 if labels else None
    return Pairs(torch.arange(n), target, source, label)


def made(given, **changes):
    step = changes.pop("step", 5)
    return draw_batch(given, BatchRules(**changes), seed=1, step=step, device=CPU)


def test_times_are_stratified_and_a_function_of_seed_and_step():
    a, b = made(pairs()), made(pairs())
    assert torch.equal(a.t, b.t) and not torch.equal(a.t, made(pairs(), step=6).t)
    assert torch.equal((a.t * 64).floor().long(), torch.arange(64))
    assert a.span is None and a.label is None


def test_the_optimal_pairing_reaches_the_wasserstein_distance_of_the_batch():
    given = pairs()
    batch = made(given, pairing=Optimal(name="optimal"))
    assert transport_cost(batch.source, batch.target) == pytest.approx(
        w2(given.source, given.target) ** 2
    )
    assert torch.equal(batch.target, given.target)
    assert sorted(batch.source.tolist()) == sorted(given.source.tolist())


def test_the_entropic_pairing_lies_between_independent_and_optimal():
    pytest.importorskip("ot", reason="POT is an extra")
    given = pairs(256)
    costs = [
        transport_cost(b.source, b.target)
        for b in (
            made(given, pairing=Optimal(name="optimal")),
            made(given, pairing=Sinkhorn(name="sinkhorn", reg=0.02)),
            made(given, pairing=Sinkhorn(name="sinkhorn", reg=10.0)),
        )
    ]
    free = transport_cost(given.source, given.target)
    assert costs[0] < costs[1] < costs[2] == pytest.approx(free, rel=0.1)


def classes(n=64, *, of=2):
    """Classes at x = -2, 2, ..., in random order, with a standard normal source."""
    generator = torch.Generator().manual_seed(3)
    label = torch.randint(of, (n,), generator=generator)
    target = torch.stack([4.0 * label - 2, torch.zeros(n)], dim=1)
    target = target + 0.3 * torch.randn(n, 2, generator=generator)
    return Pairs(torch.arange(n), target, torch.randn(n, 2, generator=generator), label)


@pytest.mark.parametrize("of", [1, 2, 5])
def test_with_classes_each_class_keeps_its_own_sources_at_least_cost(of):
    given = classes(of=of)
    batch = made(given, classes=of, pairing=Optimal(name="optimal"))
    for key in range(of):
        rows = given.label == key
        assert sorted(batch.source[rows].tolist()) == sorted(given.source[rows].tolist())
        least = w2(given.source[rows], given.target[rows]) ** 2
        assert transport_cost(batch.source[rows], batch.target[rows]) == pytest.approx(least)
    assert torch.equal(batch.target, given.target) and torch.equal(batch.label, given.label)


def test_with_classes_an_entropic_pairing_stays_within_them():
    pytest.importorskip("ot", reason="POT is an extra")
    given = classes()
    batch = made(given, classes=2, pairing=Sinkhorn(name="sinkhorn"))
    for key in range(2):
        rows = given.label == key
        assert {*map(tuple, batch.source[rows].tolist())} <= {
            *map(tuple, given.source[rows].tolist())
        }
    assert not torch.equal(batch.source, given.source)


def test_the_source_of_a_class_is_the_law_that_it_is_sampled_from():
    """Across classes the one at 2 would get the sources with x > 0, whose mean is sqrt(2 / pi)."""
    given, optimal = classes(1000), Optimal(name="optimal")
    right = given.label == 1
    across = made(given, pairing=optimal).source[right, 0]
    within = made(given, classes=2, pairing=optimal).source[right, 0]
    assert float(across.mean()) == pytest.approx((2 / torch.pi) ** 0.5, abs=0.1)
    assert float(within.mean()) == pytest.approx(0, abs=4 / 500**0.5)
    assert float(within.std()) == pytest.approx(1, abs=0.15)


def test_labels_change_no_pairing_of_a_network_without_classes():
    given = classes()
    bare = Pairs(given.pair_id, given.target, given.source)
    for pairing in (Optimal(name="optimal"), Sinkhorn(name="sinkhorn")):
        if pairing.name == "sinkhorn":
            pytest.importorskip("ot", reason="POT is an extra")
        assert torch.equal(made(given, pairing=pairing).source, made(bare, pairing=pairing).source)


def test_a_flip_mirrors_source_and_target_of_the_same_samples():
    given = pairs(shape=(1, 4, 4))
    batch = made(given, flip=True)
    turned = [bool(torch.equal(b, a.flip(-1))) for a, b in zip(given.target, batch.target)]
    for i, mirrored in enumerate(turned):
        expected = given.source[i].flip(-1) if mirrored else given.source[i]
        assert torch.equal(batch.source[i], expected)
    assert 16 < sum(turned) < 48


def test_labels_are_dropped_to_the_null_class_at_the_asked_rate():
    given = pairs(3000, labels=True)
    assert made(given).label is None
    whole = made(given, classes=3)
    assert torch.equal(whole.label, given.label)
    dropped = made(given, classes=3, label_dropout=0.2).label
    assert float((dropped == 3).float().mean()) == pytest.approx(0.2, abs=0.03)
    assert torch.equal(dropped[dropped != 3], given.label[dropped != 3])


def test_spans_lie_between_two_draws_of_the_law():
    batch = made(pairs(4000), spans=0.25)
    assert float((batch.span > 0).float().mean()) == pytest.approx(0.25, abs=0.03)
    assert bool((batch.span <= batch.t).all()) and float(batch.t.max()) <= 1
    np.testing.assert_allclose(batch.t.mean(), 2 / 3, atol=0.02)


@pytest.mark.parametrize("at_once", [1, 2**12, 2**18])
def test_batches_drawn_at_once_are_those_of_their_steps(at_once, monkeypatch):
    """However many are drawn at once; the stream ends where it ends, and is not read further."""
    monkeypatch.setattr("fmcore.training.batch.AT_ONCE", at_once)
    given = [pairs(8 + step) for step in range(21)]
    rules, taken = BatchRules(spans=0.5), iter(given)
    found = list(draw_batches(islice(taken, 20), rules, seed=1, step=7, device=CPU))
    assert len(found) == 20 and next(taken) is given[20]
    for step, (batch, own_pairs) in enumerate(zip(found, given, strict=False), start=7):
        own = draw_batch(own_pairs, rules, seed=1, step=step, device=CPU)
        assert torch.equal(batch.t, own.t) and torch.equal(batch.span, own.span)
        assert torch.equal(batch.target, own.target) and torch.equal(batch.source, own.source)
