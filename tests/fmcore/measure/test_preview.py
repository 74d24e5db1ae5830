"""Samples of a training so far: they change nothing, cost little, and come from one noise."""

import numpy as np
import pytest
import torch

from fmcore.coupling.noise import gaussian_noise
from fmcore.coupling.read import open_coupling
from fmcore.matching.times import Grid
from fmcore.measure import preview
from fmcore.measure.preview import IMAGES, POINTS, Preview
from fmcore.network.build import build
from fmcore.network.images import UNet
from fmcore.settings import ReflowError, derive_seed
from fmcore.train import Train
from fmcore.training.fit import new_state
from fmcore.verdict.plane import Plane
from fmcore.verdict.shown import REAL, Shown, to_show
from tests.chains import gaussian_data, two_dimensions
from tests.fmcore.training.test_train import run

SETTINGS = Train(steps=60, batch=64, lr=3e-3, log_every=10, checkpoint_every=30)


class Clock:
    """A clock that the test sets."""

    now = 0.0

    def monotonic(self):
        return self.now


@pytest.fixture
def start(tmp_path):
    return two_dimensions(tmp_path)


def test_a_training_that_shows_samples_has_the_same_bytes(start, monkeypatch):
    monkeypatch.setattr(preview, "SHARE", 1e9)
    shown = []
    look = Preview(open_coupling(start / "data"), SETTINGS, 5, shown.append)
    assert run(start, "a", SETTINGS, look=look) == run(start, "b", SETTINGS)
    assert [one.step for one in shown] == [20, 30, 40, 50, 60]
    assert {*shown[0].samples} == {1, 8} and shown[0].samples[8].shape == (POINTS, 2)
    first, last = (one.samples[8].mean(0) for one in (shown[0], shown[-1]))
    goal = np.array([2.0, -1.0])
    assert np.abs(last - goal).sum() < np.abs(first - goal).sum()


def test_a_preview_that_fails_is_the_last_and_stops_no_training(start, monkeypatch):
    monkeypatch.setattr(preview, "SHARE", 1e9)
    tries = []

    def full(shown):
        tries.append(shown.step)
        raise torch.OutOfMemoryError("no memory")

    look = Preview(open_coupling(start / "data"), SETTINGS, 5, full)
    assert run(start, "a", SETTINGS, look=look) == run(start, "b", SETTINGS)
    assert tries == [20]


def test_dropout_and_the_global_generator_are_left_alone(tmp_path):
    network = build(UNet(name="unet", channels=(8,), dropout=0.5), (1, 8, 8), seed=0)
    state = new_state(network, Train(steps=1))
    look = Preview(open_coupling(gaussian_data(tmp_path / "d", mu=[0.0], s=[1.0])), SETTINGS, 0, id)
    look.source = torch.zeros(4, 1, 8, 8)
    before = torch.random.get_rng_state()
    one, two = (look._sampled(state, 1) for _ in range(2))
    assert torch.equal(one, two) and state.ema.training and network.training
    assert bool((torch.random.get_rng_state() == before).all())


def test_the_noise_is_that_on_which_rounds_are_measured(start):
    found = preview._sources(open_coupling(start / "data"), POINTS, 5)
    noise = gaussian_noise(derive_seed(5, "evaluate"), np.arange(POINTS), (2,))
    assert torch.equal(found, noise)


def test_previews_wait_until_they_are_paid_for(start, monkeypatch):
    """A step takes 1 s and a preview 10 s: at 0.5 % the first comes after 2,000 s or later."""
    clock, at = Clock(), []
    monkeypatch.setattr(preview, "time", clock)
    look = Preview(open_coupling(start / "data"), SETTINGS, 5, lambda _: None)
    monkeypatch.setattr(look, "_drawn", lambda state: at.append(clock.now))

    def show(_):
        clock.now += 10.0

    look.show = show
    state = new_state(build(UNet(name="unet", channels=(8,)), (1, 8, 8), seed=0), SETTINGS)
    for step in range(10, 20_000, 10):
        clock.now += 10.0
        state.step = step
        look(state)
    # Foreseen are 256 (1 + 8) / (3 * 64) = 12 steps: 12 s.
    assert 2400 <= at[0] < 2420 and len(at) == 10
    assert all(10.0 * n <= 0.005 * t for n, t in enumerate(at, start=1))


def test_a_student_is_shown_in_the_steps_that_it_learns(start):
    student = SETTINGS.model_copy(update={"time": Grid(steps=3)})
    assert Preview(open_coupling(start / "data"), student, 5, id).nfe == (3,)


def points(n=4, step=0):
    x = torch.arange(2.0 * n).reshape(n, 2)
    return to_show({1: x, 16: x + 1, 2: x}, x - 1, Plane.of(x), step=step)


def test_what_is_shown_is_read_as_it_was_written():
    for one in (points(step=7), to_show({4: torch.zeros(IMAGES, 3, 8, 6)}, None, None)):
        content = one.content()
        found = Shown.read(content, "a file")
        assert found.content() == content and found.square == one.square
        assert (found.step, found.images) == (one.step, one.images)
        for title, x in one.titled.items():
            np.testing.assert_array_equal(found.titled[title], x)
    assert [*points().titled] == ["NFE 1", "NFE 2", "NFE 16", REAL]


def test_pixels_are_bytes_of_one_or_three_channels_and_large_images_are_smaller():
    x = torch.linspace(-1, 1, 2 * 300 * 200).reshape(1, 2, 300, 200)
    found = to_show({1: x}, None, None).samples[1]
    assert found.shape == (1, 128, 85, 1) and found.dtype == np.uint8
    assert to_show({1: torch.full((1, 3, 2, 2), 7.0)}, None, None).samples[1].min() == 255


@pytest.mark.parametrize("damage", [b"", b"nothing", None, -1])
def test_a_damaged_file_is_one_line(damage):
    whole = points().content()
    content = whole[:-9] if damage is None else whole[: damage or None] if damage == -1 else damage
    with pytest.raises(ReflowError, match=r"samples\.safetensors: damaged, no samples"):
        Shown.read(content, "samples.safetensors")
