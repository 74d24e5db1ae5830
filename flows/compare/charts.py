"""Line charts as SVG for a page: text in the page's own colour, so that light and dark both fit."""

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from fmcore.verdict.drawing import GRAY, Dashes, Look, legend

INK = "#010203"
"""Drawn in this colour, then replaced by `currentColor`."""

HELD_OUT = "held_out_loss"
"""The column of a loss on pairs that no step learns from."""

LABELS: Any = {
    "font.size": 10,
    "svg.fonttype": "none",
    "svg.hashsalt": "reflow",
    "text.parse_math": False,  # a name with two dollars is no formula
}


@dataclass(frozen=True)
class Line:
    """A line: its name, its points, and the spread around them where it is known.

    A round has its own colour, whatever else is drawn; what is no round has that of the text.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float]
    sd: Sequence[float] = field(default_factory=tuple)
    colour: str = INK
    style: Dashes = "-"
    marker: str = "o"

    @classmethod
    def of(
        cls, round_: str, x: Sequence[float], y: Sequence[float], look: Look, *, held_out: bool
    ) -> "Line":
        """Return a curve of a round in its look; that of pairs which are held out is dotted."""
        name = f"{round_}, held out" if held_out else round_
        return cls(name, x, y, (), look.colour, ":" if held_out else look.dashes, look.marker)


@dataclass(frozen=True)
class Axes:
    """The labels and the scales of the axes."""

    x: str
    y: str
    log_x: bool = False
    log_y: bool = True
    ticks: Sequence[float] = ()
    tick_names: Sequence[str] = ()
    floor: float | None = None


def chart(lines: Sequence[Line], axes: Axes) -> str:
    """Draw the lines; equal numbers give equal bytes."""
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogFormatter

    with matplotlib.rc_context(LABELS):
        figure = Figure(figsize=(4.4, 3.1), layout="constrained")
        FigureCanvasSVG(figure)
        plot = figure.add_subplot()
        for line in lines:
            y = [max(v, 1e-12) for v in line.y] if axes.log_y else list(line.y)
            colour, marker = line.colour, line.marker if len(y) < 20 else ""
            plot.plot(
                line.x, y, marker=marker, linestyle=line.style, color=colour, linewidth=2,
                markersize=4, label=line.name,
            )  # fmt: skip
            if line.sd:
                low = [max(v - s, v / 10) for v, s in zip(y, line.sd, strict=True)]
                high = [v + s for v, s in zip(y, line.sd, strict=True)]
                plot.fill_between(line.x, low, high, color=colour, alpha=0.2, linewidth=0)
        if axes.floor:
            plot.axhline(axes.floor, color=GRAY, linestyle="--", linewidth=1.2, label="floor")
        if axes.log_x:
            plot.set_xscale("log", base=2)
        if axes.log_y:
            plot.set_yscale("log")
            plot.yaxis.set_major_formatter(LogFormatter())  # the usual one writes formulas
            plot.yaxis.set_minor_formatter(LogFormatter(labelOnlyBase=False))
        if axes.ticks:
            plot.set_xticks(axes.ticks, axes.tick_names or [f"{t:g}" for t in axes.ticks])
            plot.minorticks_off()
        plot.set_xlabel(axes.x, color=INK)
        plot.set_ylabel(axes.y, color=INK)
        legend(plot, labelcolor=INK)
        plot.spines[["top", "right"]].set_visible(False)
        plot.spines[["left", "bottom"]].set_color(INK)
        plot.tick_params(which="both", colors=INK)
        plot.grid(color="#808080", alpha=0.25, linewidth=0.8)
        plot.set_axisbelow(True)
        figure.patch.set_alpha(0)
        plot.patch.set_alpha(0)
        text = io.StringIO()
        figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
    return _inline(text.getvalue(), f"{axes.y} over {axes.x}")


def _inline(svg: str, label: str) -> str:
    """Make a figure part of a page: no prolog, no fixed size, unique ids, a label."""
    from hashlib import sha256
    from html import escape

    body = svg[svg.index("<svg") :].replace(INK, "currentColor")
    own = f"c{sha256(body.encode()).hexdigest()[:8]}"
    body = re.sub(r'(id="|href="#|url\(#)', rf"\g<1>{own}-", body)
    body = re.sub(r"font: ([\d.]+px)[^;\"]*", r"font: \1 system-ui, sans-serif", body)
    body = re.sub(r"<metadata>.*?</metadata>", "", body, flags=re.DOTALL)
    size = re.compile(r'<svg([^>]*?) (?:width|height)="[^"]*"')
    while size.search(body):
        body = size.sub(r"<svg\1", body, count=1)
    return body.replace("<svg", f'<svg role="img" aria-label="{escape(label)}"', 1)
