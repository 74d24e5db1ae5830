"""What every figure shares: its colours, its title, its axes, bytes that its numbers determine.

No dates and no versions are in the files.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ROUNDS = ("#d55e00", "#0072b2", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
"""Colours of rounds, in the order of the chain: those of Okabe and Ito (2008), which people with
any colour vision tell apart, without black and a yellow that is too pale for white paper. The
templates in .dvc/plots repeat them."""
INK, GRAY, FAINT = "#333333", "#808080", "#c8c8c8"
"""Text and what belongs to no round; the floor; what lies behind."""


def palette(names: Iterable[str]) -> dict[str, str]:
    """Return the colour of each name, in the order of the chain.

    >>> palette(["rf1", "rf2"])
    {'rf1': '#d55e00', 'rf2': '#0072b2'}
    """
    return {name: ROUNDS[i % len(ROUNDS)] for i, name in enumerate(dict.fromkeys(names))}


def data_name(settings: Mapping[str, Any] | None) -> str:
    """Return what a title calls a data set, from its settings: an own class by its name.

    >>> data_name({"name": "eight_gaussians"}), data_name({"name": "custom", "path": "own:Rings"})
    ('eight gaussians', 'Rings')
    """
    given = settings or {}
    if given.get("name") == "custom":
        return str(given.get("path", "")).rpartition(":")[2]
    return str(given.get("name", "")).replace("_", " ")


def titled(what: str, *of: str) -> str:
    """Return a title: what is shown, after the data and the round where they are known.

    >>> titled("Paths", "digits", "rf1"), titled("Paths", "")
    ('digits, rf1: paths', 'Paths')
    """
    known = ", ".join(filter(None, of))
    return f"{known}: {what[:1].lower()}{what[1:]}" if known else what


def new_figure(width: float, height: float, *, layout: str | None = "constrained") -> "Figure":
    """Return an empty figure, in inches; matplotlib is imported by the stages that draw."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout=layout)  # type: ignore[arg-type]
    engine = figure.get_layout_engine()
    if engine is not None:
        engine.set(w_pad=0.1, h_pad=0.1)  # type: ignore[call-arg]
    return figure


def save(figure: "Figure", path: Path, *, software: str | None = None) -> None:
    """Write the figure as PNG, which says `software` where that is given."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    FigureCanvasAgg(figure)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130, metadata={"Software": software})


def plain_axes(axes: "Axes") -> None:
    """Take away what tells nothing: the frame above and at the right, dark grid lines."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="#ececec", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=INK, labelsize=9)


def heading(axes: "Axes", title: str) -> None:
    """Write the title of a figure with one pair of axes, at the left."""
    axes.set_title(title, fontsize=11, color=INK, loc="left", parse_math=False)
