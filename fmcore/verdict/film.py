"""A film of a flow for slides: noise becomes data. A picture of samples over the data."""

import shutil
import subprocess
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fmcore.settings import ReflowError
from fmcore.verdict.drawing import FAINT, INK, heading, new_figure, plain_axes, save
from fmcore.verdict.pictures import sheet
from fmcore.verdict.plane import Plane

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from PIL import Image

SUFFIXES = (".gif", ".mp4")
SECONDS, HELD = 3.0, 1.5
"""How long the noise moves, and how long the data stays before it begins again."""
DPI = 110


def points(path: Path, x: Tensor, real: Tensor | None, *, title: str, colour: str = INK) -> None:
    """Draw samples [N, *D] as points with axes, over real data in gray where it is known."""
    figure = new_figure(5.2, 5.4)
    axes, plane = _axes_of(figure, x, real, None)
    at = plane.project(x)
    size = min(14.0, max(3.0, 4000 / len(x)))
    axes.scatter(at[:, 0], at[:, 1], s=size, color=colour, alpha=0.7, linewidths=0, zorder=3)
    heading(axes, title)
    save(figure, path)


def film(
    path: Path,
    trajectory: Tensor,
    times: Sequence[float],
    *,
    real: Tensor | None,
    title: str,
    colour: str = INK,
) -> None:
    """Write a .gif or .mp4 of a trajectory [T+1, N, *D], a frame for each of the times [T+1].

    Points move over the real data, which is gray; images [N, C, H, W] are a sheet that changes.
    Raises ReflowError for .mp4 where there is no ffmpeg.
    """
    check(path)
    if trajectory.ndim == 5:
        figure, draw = _sheets(trajectory, times, title)
    else:
        figure, draw = _moving(trajectory, times, real, title, colour)
    _lay_out(figure, draw)
    path.parent.mkdir(parents=True, exist_ok=True)
    each = max(0.02, SECONDS / len(times))
    if path.suffix == ".mp4":
        _mp4(path, figure, draw, len(times), each)
    else:
        _gif(path, list(_frames(figure, draw, len(times))), each)


def check(path: Path) -> None:
    """Check that a film of this name can be written here. Raises ReflowError if not."""
    if path.suffix not in SUFFIXES:
        raise ReflowError(f"{path}: expected a film's name to end in .gif or .mp4")
    if path.suffix == ".mp4" and shutil.which("ffmpeg") is None:
        raise ReflowError(f"{path}: .mp4 needs ffmpeg, which is not here; write a .gif instead")


def _axes_of(
    figure: "Figure", x: Tensor, real: Tensor | None, source: Tensor | None
) -> "tuple[Axes, Plane]":
    """Return axes with the real data in gray, and the plane; that of x where there is none."""
    plane = Plane.of(x if real is None else real, source)
    axes = figure.add_subplot()
    if real is not None:
        behind = plane.project(real)
        axes.scatter(behind[:, 0], behind[:, 1], s=5, color=FAINT, linewidths=0, label="real data")
        axes.legend(frameon=False, fontsize=9, loc="upper right", markerscale=2)
    axes.set_xlabel(plane.names[0], color=INK)
    axes.set_ylabel(plane.names[1], color=INK)
    plain_axes(axes)
    plane.show(axes)
    return axes, plane


def _moving(
    trajectory: Tensor, times: Sequence[float], real: Tensor | None, title: str, colour: str
) -> "tuple[Figure, Callable[[int], None]]":
    figure = new_figure(5.2, 5.4)
    axes, plane = _axes_of(figure, trajectory[-1], real, trajectory[0])
    at = torch.stack([plane.project(x) for x in trajectory]).numpy()
    size = min(14.0, max(3.0, 4000 / at.shape[1]))
    dots = axes.scatter(
        at[0, :, 0], at[0, :, 1], s=size, color=colour, alpha=0.7, linewidths=0, zorder=3
    )

    def draw(i: int) -> None:
        dots.set_offsets(at[i])
        heading(axes, f"{title}, t = {times[i]:.2f}")

    return figure, draw


def _sheets(
    trajectory: Tensor, times: Sequence[float], title: str
) -> "tuple[Figure, Callable[[int], None]]":
    count = trajectory.shape[1]
    side = -(-count // max(1, round(count**0.5)))
    width = max(4.4, 0.52 * side + 0.4)
    ratio = trajectory.shape[3] / trajectory.shape[4] * -(-count // side) / side
    figure = new_figure(width, (width - 0.4) * ratio + 0.85)
    axes = figure.add_subplot()
    axes.set_axis_off()
    gray = trajectory.shape[2] == 1

    def whole(x: Tensor) -> Tensor:
        rows = [torch.from_numpy(sheet(row)[0]) for row in x.split(side)]
        blank = torch.ones_like(rows[0])
        return torch.cat([torch.cat([r, blank[:, r.shape[1] :]], dim=1) for r in rows])

    shown = axes.imshow(
        whole(trajectory[0]), cmap="gray" if gray else None, vmin=0, vmax=1,
        interpolation="nearest",
    )  # fmt: skip

    def draw(i: int) -> None:
        shown.set_data(whole(trajectory[i]))
        heading(axes, f"{title}, t = {times[i]:.2f}")

    return figure, draw


def _lay_out(figure: "Figure", draw: Callable[[int], None]) -> None:
    """Find the layout once, so that the axes stay where they are."""
    draw(0)
    figure.draw_without_rendering()
    figure.set_layout_engine("none")


def _frames(figure: "Figure", draw: Callable[[int], None], count: int) -> "Iterator[Image.Image]":
    import numpy as np
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from PIL import Image

    figure.set_dpi(DPI)
    canvas = FigureCanvasAgg(figure)
    for i in range(count):
        draw(i)
        canvas.draw()  # type: ignore[no-untyped-call]
        drawn = np.asarray(canvas.buffer_rgba())  # type: ignore[no-untyped-call]
        yield Image.fromarray(drawn[..., :3].copy())


def _gif(path: Path, frames: "list[Image.Image]", each: float) -> None:
    milliseconds = [round(1000 * each)] * (len(frames) - 1) + [round(1000 * HELD)]
    from PIL.Image import Quantize

    small = [frame.quantize(128, Quantize.FASTOCTREE) for frame in frames]  # keeps rare colours
    small[0].save(
        path, save_all=True, append_images=small[1:], duration=milliseconds, loop=0, disposal=1
    )


def _mp4(
    path: Path, figure: "Figure", draw: Callable[[int], None], count: int, each: float
) -> None:
    from matplotlib.animation import FFMpegWriter
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    FigureCanvasAgg(figure)
    writer = FFMpegWriter(fps=round(1 / each), extra_args=["-pix_fmt", "yuv420p"])
    try:
        with writer.saving(figure, str(path), dpi=DPI):
            for i in [*range(count), *[count - 1] * round(HELD / each)]:
                draw(i)
                writer.grab_frame()
    except subprocess.CalledProcessError as error:
        raise ReflowError(f"{path}: this ffmpeg writes no .mp4 ({error}); write a .gif") from error
