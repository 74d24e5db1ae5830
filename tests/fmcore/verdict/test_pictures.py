"""Pictures: they are drawn, and their bytes are a function of the numbers."""

import pandas as pd
import pytest
import torch
from PIL import Image

from fmcore.verdict import figures, pictures
from fmcore.verdict.comparison import Comparison, RoundResult


def compared(distances, floor):
    cuts = {nfe: [0.9 * d, d, 1.1 * d] for nfe, d in distances.items()}
    rf1 = RoundResult("rf1", "independent", None, False, distances, {}, cuts)
    return Comparison("fd_clf", "a", floor, [rf1], {}, [], [], 0.3)


def test_a_distance_that_is_no_larger_than_its_error_is_drawn(tmp_path):
    """The energy distance of equal laws is around 0, on either side."""
    figures.fd_over_nfe(tmp_path / "a.png", compared({1: 0.3, 2: 0.001, 8: -0.0002}, 0.0))
    figures.fd_over_nfe(tmp_path / "b.png", compared({1: -0.3, 8: -0.0002}, 0.0))
    assert (tmp_path / "a.png").stat().st_size > 5000


def draw_all(folder):
    generator = torch.Generator().manual_seed(0)

    def rand(*shape):
        return torch.randn(*shape, generator=generator)

    pictures.samples_by_nfe(
        folder / "digits.png", {1: rand(16, 1, 8, 8), 4: rand(16, 1, 8, 8)}, image=True,
        reference=rand(16, 1, 8, 8),
    )  # fmt: skip
    pictures.samples_by_nfe(folder / "rgb.png", {2: rand(64, 3, 8, 8)}, image=True, reference=None)
    pictures.samples_by_nfe(folder / "plane.png", {1: rand(500, 2)}, image=False, reference=None)
    pictures.samples_by_nfe(folder / "line.png", {1: rand(500, 1)}, image=False, reference=None)
    for dim in (1, 2, 64):
        pictures.trajectories(folder / f"paths{dim}.png", rand(9, 64, dim))
    curves = {"rf1": pd.DataFrame({"t": [0.0, 1], "gap": [1.0, 2]})}
    curves["rf2"] = pd.DataFrame({"t": [0.0, 1], "gap": [0.0, 0]})
    figures.straightness_over_t(folder / "gap.png", curves)
    figures.fd_over_nfe(folder / "fd.png", compared({1: 600.0, 8: 9.0}, 5.0))


def test_pictures_are_drawn_and_repeat_byte_for_byte(tmp_path):
    draw_all(tmp_path / "a")
    draw_all(tmp_path / "b")
    files = sorted((tmp_path / "a").iterdir())
    assert len(files) == 9
    for file in files:
        assert file.read_bytes() == (tmp_path / "b" / file.name).read_bytes()
        with Image.open(file) as image:
            assert image.width > 150 and image.height > 50
            assert len(image.convert("L").getcolors(10_000)) > 4, "an empty picture"


def test_values_beyond_the_range_are_clipped_not_rescaled(tmp_path):
    black = torch.full((1, 1, 8, 8), -9.0)
    pictures.samples_by_nfe(tmp_path / "a.png", {1: black}, image=True, reference=None)
    pictures.samples_by_nfe(tmp_path / "b.png", {1: black / 9}, image=True, reference=None)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


@pytest.mark.parametrize("floor", [-0.001, 0.0, 5.0])
def test_a_floor_of_zero_is_left_out(tmp_path, floor):
    figures.fd_over_nfe(tmp_path / "a.png", compared({1: 3.0}, floor))
    assert (tmp_path / "a.png").stat().st_size > 5000


def test_every_end_point_belongs_to_a_path(tmp_path):
    x = torch.randn(9, 256, 2, generator=torch.Generator().manual_seed(0))
    pictures.trajectories(tmp_path / "all.png", x)
    pictures.trajectories(tmp_path / "shown.png", x[:, :128])
    assert (tmp_path / "all.png").read_bytes() == (tmp_path / "shown.png").read_bytes()
