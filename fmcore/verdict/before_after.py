"""One picture that explains reflow: a row for each round, from its pairs to its single step."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from fmcore.verdict.drawing import FAINT, INK, new_figure, palette, save
from fmcore.verdict.plane import Plane

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LINES = 160
"""Pairs and paths that are drawn."""


@dataclass(frozen=True)
class Shown:
    """A round: the pairs it trained on, its paths [T+1, N, 2], and samples [M, 2] of one step.

    `straightness` is that of its paths, `distance` the energy distance of the samples to the data.
    """

    name: str
    trained_on: str
    target: Tensor
    source: Tensor
    path: Tensor
    one_step: Tensor
    straightness: float
    distance: float


def plain(value: float) -> str:
    """Return a number to three decimals; a distance that is 0 on average is 0, not below.

    >>> plain(2.7049), plain(-0.0003)
    ('2.705', '0.000')
    """
    return f"{round(value, 3) + 0.0:.3f}"


def before_after(
    path: Path, rounds: Sequence[Shown], real: Tensor, *, title: str, software: str
) -> None:
    """Draw pairs, paths and one-step samples over the data, all in the same square."""
    plane = Plane.of(real, rounds[0].path[0])
    figure = new_figure(11.4, 4.05 * len(rounds) + 0.5)
    colours = palette(r.name for r in rounds)
    for i, r in enumerate(rounds):
        row = [figure.add_subplot(len(rounds), 3, 3 * i + j) for j in (1, 2, 3)]
        for axes in row:
            _over_data(axes, plane, real)
        _lines(row[0], [r.source[:LINES], r.target[:LINES]], colours[r.name], width=0.6)
        _lines(row[1], list(r.path[:, :LINES]), colours[r.name], width=1.0)
        _dots(row[2], r.one_step, 5, colours[r.name], alpha=0.6)
        row[0].set_ylabel(r.name, fontsize=16, color=colours[r.name], weight="bold", rotation=0,
                          labelpad=22)  # fmt: skip
        titles = (
            f"it learns from {r.trained_on}",
            f"its paths: straightness {plain(r.straightness)}",
            f"one step: energy distance to the data {plain(r.distance)}",
        )
        for axes, words in zip(row, titles, strict=True):
            axes.set_title(words, fontsize=11, color=INK)
    figure.suptitle(title, fontsize=13, color=INK)
    figure.text(
        0.5, 0.012, "gray: real data    light dots: noise (t = 1)    dark dots: where a line ends"
        " (t = 0)    0 is straight, and 0 is the distance of equal laws",
        ha="center", fontsize=9, color=INK,
    )  # fmt: skip
    engine = figure.get_layout_engine()
    if engine is not None:
        engine.set(rect=(0, 0.035, 1, 0.965))  # type: ignore[call-arg]
    save(figure, path, software=software)


def _over_data(axes: "Axes", plane: Plane, real: Tensor) -> None:
    _dots(axes, real, 4, FAINT)
    plane.show(axes)
    axes.set(xticks=[], yticks=[])
    for spine in axes.spines.values():
        spine.set_color(FAINT)


def _lines(axes: "Axes", at: list[Tensor], colour: str, *, width: float) -> None:
    """Draw lines through places [N, 2], the first light and the last dark."""
    for row in zip(*at, strict=True):
        x, y = zip(*(place.tolist() for place in row), strict=True)
        axes.plot(x, y, color=colour, alpha=0.45, linewidth=width)
    _dots(axes, at[0], 6, "#9a9a9a", zorder=3)
    _dots(axes, at[-1], 8, INK, zorder=3)


def _dots(
    axes: "Axes", at: Tensor, size: float, colour: str, *, alpha: float = 1.0, zorder: float = 1
) -> None:
    axes.scatter(at[:, 0], at[:, 1], s=size, color=colour, alpha=alpha, linewidths=0, zorder=zorder)
