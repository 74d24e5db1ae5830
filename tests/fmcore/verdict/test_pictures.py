"""Pictures: drawn, in one colour for a round, with bytes that are a function of the numbers."""

import json
import re
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.colors import to_hex, to_rgb
from PIL import Image

from fmcore.settings import ReflowError
from fmcore.verdict import before_after, figures, film, pictures
from fmcore.verdict.comparison import Comparison, RoundResult
from fmcore.verdict.drawing import FAINT, GRAY, INK, ROUNDS, look, palette
from fmcore.verdict.plane import Plane
from tests.conftest import SOURCE


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
        plane = Plane.of(rand(64, dim))
        pictures.trajectories(folder / f"paths{dim}.png", rand(9, 64, dim), plane, "paths")
    film.points(folder / "points.png", rand(90, 2), rand(90, 2), title="points")
    times = [1.0, 0.5, 0.0]
    film.film(folder / "points.gif", rand(3, 90, 2), times, real=rand(90, 2), title="points")
    film.film(folder / "images.gif", rand(3, 10, 3, 8, 8), times, real=None, title="images")
    shown = [
        before_after.Shown(
            n, "pairs", rand(9, 2), rand(9, 2), rand(4, 9, 2), rand(9, 2), 0.1, -1e-9
        )
        for n in ("rf1", "rf2")
    ]
    file = folder / "before_after.png"
    before_after.before_after(file, shown, rand(90, 2), title="both", software="a test")
    curves = {"rf1": pd.DataFrame({"t": [0.0, 1], "gap": [1.0, 2]})}
    curves["rf2"] = pd.DataFrame({"t": [0.0, 1], "gap": [0.0, 0]})
    figures.straightness_over_t(folder / "gap.png", curves)
    figures.fd_over_nfe(folder / "fd.png", compared({1: 600.0, 8: 9.0}, 5.0))


def test_pictures_are_drawn_and_repeat_byte_for_byte(tmp_path):
    draw_all(tmp_path / "a")
    draw_all(tmp_path / "b")
    files = sorted((tmp_path / "a").iterdir())
    assert len(files) == 13
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
    plane = Plane.of(x[-1])
    pictures.trajectories(tmp_path / "all.png", x, plane)
    pictures.trajectories(tmp_path / "shown.png", x[:, :128], plane)
    assert (tmp_path / "all.png").read_bytes() == (tmp_path / "shown.png").read_bytes()


ONE_CURVE = pd.DataFrame({"t": [0.0, 1], "gap": [1.0, 2]})


def three_rounds() -> Comparison:
    found = compared({1: 600.0, 8: 9.0}, 5.0)
    (rf1,) = found.rounds
    again = replace(rf1, name="rf1_2", replicate_of="rf1", replicate=2)
    return replace(found, rounds=[rf1, again, replace(rf1, name="rf2"), replace(rf1, name="rf3")])


def test_a_round_has_one_colour_by_its_place_in_the_chain_and_so_have_its_replicates():
    found = three_rounds()
    rf1, rf2, rf3 = ROUNDS[:3]
    assert found.colours == {"rf1": rf1, "rf1_2": rf1, "rf2": rf2, "rf3": rf3}
    own = [r for r in found.rounds if not r.replicate]
    assert replace(found, rounds=own).colours == palette(["rf1", "rf2", "rf3"])


def lab(colours: list[str]) -> np.ndarray:
    """CIELAB [N, 3] of colours on a screen, to the eye that sees all of them."""
    rgb = np.array([to_rgb(colour) for colour in colours])
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    to_xyz = np.array(
        [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
    )
    x, y, z = np.cbrt(linear @ to_xyz.T / to_xyz.sum(1)).T
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], 1)


def test_no_two_rounds_look_the_same_and_the_first_six_are_those_of_okabe_and_ito():
    first = ("#d55e00", "#0072b2", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
    assert [look(i) for i in range(6)] == [(colour, "-", "o") for colour in first]
    assert len({look(i) for i in range(300)}) == 300
    some = lab([*palette(f"rf{i}" for i in range(24)).values(), INK, GRAY, FAINT])
    gaps = np.linalg.norm(some[:, None] - some, axis=2) + 1e3 * np.eye(27)
    assert gaps.min() > 18, "two rounds in nearly one colour"


def test_nine_rounds_are_drawn_in_nine_colours_and_named_beside_the_lines(tmp_path, drawn):
    (one,) = compared({1: 600.0, 8: 9.0}, 5.0).rounds
    rounds = [replace(one, name=f"rf{i}") for i in range(9)]
    found = replace(three_rounds(), rounds=rounds)
    figures.fd_over_nfe(tmp_path / "a", found)
    figures.straightness_over_t(tmp_path / "b", {r.name: ONE_CURVE for r in rounds})
    for axes in drawn:
        shown = {name: line for name, line in lines(axes).items() if name.startswith("rf")}
        assert [colour for colour, _ in shown.values()] == list(ROUNDS[:9])
        assert [dashes for _, dashes in shown.values()] == ["-"] * 6 + ["--"] * 3
        axes.figure.canvas.draw()
        assert axes.get_legend().get_window_extent().x0 >= axes.get_window_extent().x1


@pytest.fixture
def drawn(monkeypatch):
    """The axes of each figure that was saved."""
    found = []
    monkeypatch.setattr(figures, "save", lambda figure, _: found.append(figure.axes[0]))
    monkeypatch.setattr(pictures, "save", lambda figure, _: found.append(figure.axes[0]))
    return found


def lines(axes):
    labels = dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
    parts = {name: getattr(handle, "lines", [handle])[0] for name, handle in labels.items()}
    return {name: (to_hex(one.get_color()), one.get_linestyle()) for name, one in parts.items()}


def test_figures_of_all_rounds_have_these_colours_a_title_and_a_gray_dashed_floor(tmp_path, drawn):
    found = replace(three_rounds(), rounds=three_rounds().rounds[::2])  # rf1, rf2
    figures.fd_over_nfe(tmp_path / "a", found, "digits")
    figures.straightness_over_t(tmp_path / "b", {"rf1": ONE_CURVE, "rf2": ONE_CURVE}, "digits")
    rows = [
        {"round": name, "sampler": f"euler_{n}", "nfe": n, "fd_clf": 3.0, "flops_total": 9.0 * n}
        for name in ("rf2", "rf1")  # the rows are in another order than the chain
        for n in (1, 8)
    ]
    figures.quality_over_compute(tmp_path / "c", pd.DataFrame(rows), found, "digits")
    for axes in drawn:
        shown = lines(axes)
        floor = shown.pop("floor: real vs real", None)
        assert floor == (None if "t  (0" in axes.get_xlabel() else (GRAY, "--"))
        assert shown == {"rf1": (ROUNDS[0], "-"), "rf2": (ROUNDS[1], "-")}
        assert axes.get_title(loc="left").startswith("digits: ")
    assert len(drawn) == 3


def test_templates_of_dvc_have_the_same_colours_and_draw_the_floor_as_no_round():
    for name in ("over_nfe", "over_t"):
        spec = json.loads((SOURCE / ".dvc" / "plots" / f"{name}.json").read_text())
        layers = spec.get("layer", [spec])
        colours = [layer["encoding"].get("color") for layer in layers]
        for colour in filter(None, colours):
            assert colour["scale"]["range"] == list(ROUNDS) and colour["sort"] is None
        floors = [
            layer["mark"] for layer in layers if "== 'floor'" in json.dumps(layer.get("transform"))
        ]
        assert len(floors) == (2 if name == "over_nfe" else 0)
        assert all(mark["color"] == GRAY for mark in floors)
        rounds = [layer for layer in layers if layer["encoding"].get("color")]
        assert name == "over_t" or all("!= 'floor'" in json.dumps(layer) for layer in rounds)
    assert floors == [] and re.search(
        r"\$\{data.name\}: straightness", (SOURCE / "dvc.yaml").read_text()
    )


def test_the_plane_is_that_of_the_data_and_shows_paths_of_every_round_alike(tmp_path, drawn):
    generator = torch.Generator().manual_seed(0)
    spread = torch.tensor([1.0, 9.0, 0.1, 4.0, 0.1])
    real = 3 + spread * torch.randn(400, 5, generator=generator)
    source = torch.randn(50, 5, generator=generator)
    plane = Plane.of(real, source)
    assert plane.basis is not None
    assert plane.basis.abs().argmax(1).tolist() == [1, 3] and bool(
        (plane.basis.amax(1) > 0.9).all()
    )
    few = Plane.of(torch.randn(20, 1, 8, 8, generator=generator))  # more numbers than samples
    assert few.basis is not None
    torch.testing.assert_close(few.basis @ few.basis.T, torch.eye(2).double())
    for scale in (1.0, 0.2):  # the second round makes less spread samples
        ends = torch.stack([source, scale * real[:50]])
        pictures.trajectories(tmp_path / "x", ends, plane, "paths")
    first, second = drawn
    assert first.get_xlim() == second.get_xlim() and first.get_ylim() == second.get_ylim()
    assert first.get_xlabel() == "first principal component of the data"


def test_principal_components_are_those_of_the_singular_values():
    x = torch.randn(30, 64, generator=torch.Generator().manual_seed(1)) * torch.arange(1, 65)
    centred = (x - x.mean(0)).double()
    wide, tall = Plane.of(x), Plane.of(x[:, :12])
    for plane, given in ((wide, centred), (tall, centred[:, :12])):
        known = torch.linalg.svd(given, full_matrices=False)[2][:2]
        cosines = (plane.basis * known).sum(1).abs()
        torch.testing.assert_close(cosines, torch.ones(2).double())


def test_a_film_has_a_frame_for_each_time_and_stays_on_the_last(tmp_path):
    path = torch.linspace(0, 1, 5)[:, None, None] * torch.randn(1, 40, 2)
    film.film(tmp_path / "a.gif", path, [1, 0.75, 0.5, 0.25, 0], real=None, title="digits, rf1")
    with Image.open(tmp_path / "a.gif") as image:
        assert image.n_frames == 5 and image.info["loop"] == 0
        durations = []
        for i in range(5):
            image.seek(i)
            durations.append(image.info["duration"])
    assert durations == [600, 600, 600, 600, 1500]


def test_a_film_needs_a_known_suffix_and_ffmpeg_for_mp4(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    for name, says in (("a.avi", r"end in \.gif or \.mp4"), ("a.mp4", "needs ffmpeg.*a .gif")):
        with pytest.raises(ReflowError, match=says) as error:
            film.check(tmp_path / name)
        assert len(str(error.value).splitlines()) == 1
