"""Laws of t: the drawn times follow the law's density."""

import math

import numpy as np
import pytest
import torch
from pydantic import TypeAdapter, ValidationError
from scipy import stats

from fmcore.choices.laws import Beta, LawOfTime, LogitNormal, Mode
from fmcore.matching.times import Grid, Point, Uniform, UShaped

U = (torch.arange(100_000, dtype=torch.float64) + 0.5) / 100_000

LAWS = {
    "uniform": (Uniform(), lambda t: t),
    "logit_normal": (
        LogitNormal(name="logit_normal", mean=-0.3, std=1.4),
        lambda t: stats.norm.cdf((np.log(t) - np.log1p(-t) + 0.3) / 1.4),
    ),
    "u_shaped": (
        UShaped(name="u_shaped"),
        lambda t: (np.exp(4 * t) - 1 + math.exp(4) - np.exp(4 * (1 - t))) / (2 * math.expm1(4)),
    ),
    "beta": (Beta(name="beta", a=0.7, b=2.5), lambda t: stats.beta(0.7, 2.5).cdf(t)),
}


@pytest.mark.parametrize("name", LAWS)
def test_times_follow_the_cdf(name):
    law, cdf = LAWS[name]
    t = law.spread(U)
    assert bool((t.diff() >= 0).all()) and 0 <= float(t.min()) <= float(t.max()) <= 1
    np.testing.assert_allclose(cdf(t.numpy()), U.numpy(), atol=1e-9)


@pytest.mark.parametrize("scale", [-1.0, 0.0, 1.29, 1.75])
def test_the_mode_law_has_the_density_of_its_map(scale):
    """The density is 1 / |df/du| (Esser et al. 2024, equation 20)."""
    t = Mode(name="mode", scale=scale).spread(U)
    assert bool((t.diff() >= 0).all())
    w = 1 - U
    slope = 1 + scale * (1 - math.pi / 2 * torch.sin(math.pi * w))
    torch.testing.assert_close(t.diff() * 1e5, slope[:-1], atol=1e-3, rtol=0)
    assert t[0] == pytest.approx(0, abs=1e-4) and t[-1] == pytest.approx(1, abs=1e-4)


def test_students_learn_only_the_times_that_they_read():
    assert Point(name="point").spread(U).unique().tolist() == [1.0]
    times, counts = Grid(name="grid", steps=4).spread(U).unique(return_counts=True)
    assert times.tolist() == [0.25, 0.5, 0.75, 1.0]
    assert set(counts.tolist()) == {25_000}


def test_a_law_can_be_named_by_a_word():
    law = TypeAdapter(LawOfTime)
    assert law.validate_python("u_shaped") == UShaped(name="u_shaped")
    assert law.validate_python({"name": "beta", "a": 3.0}) == Beta(name="beta", a=3.0)
    for bad in ("u_shape", {"name": "mode", "scale": 2.0}, {"name": "grid"}):
        with pytest.raises(ValidationError):
            law.validate_python(bad)
