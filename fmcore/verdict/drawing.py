"""What every figure shares: its colours, its title, its axes, bytes that its numbers determine.

No dates and no versions are in the files.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ROUNDS = (
    "#d55e00", "#0072b2", "#009e73", "#cc79a7", "#e69f00", "#56b4e9",
    "#8877ff", "#773311", "#880077", "#ddbb77", "#dd2244", "#0044aa",
    "#774466", "#557744", "#99cc99", "#8899ff", "#99aa44", "#00ccdd",
    "#885500", "#bb55cc", "#cccc44", "#994488", "#994455", "#cc9999",
)  # fmt: skip
"""Colours of rounds, in the order of the chain. The first six are those of Okabe and Ito (2008),
which people with any colour vision tell apart, without black and a yellow that is too pale for
white paper; each further one is the farthest in CIELAB from all before it, to normal and to
colour-blind sight, of muted colours that show on white and on black. The templates in .dvc/plots
repeat them."""
ALIKE = 6
"""Rounds that share dashes and marker; those of the next so many have others."""
MARKERS = ("o", "s", "^", "v")
BESIDE, COLUMN = 15, 1.4
"""Lines of a legend beside the axes, and the width of one column of them in inches."""
INK, GRAY, FAINT = "#333333", "#808080", "#c8c8c8"
"""Text and what belongs to no round; the floor; what lies behind."""
Dashes = str | tuple[int, tuple[int, ...]]
"""A line style of matplotlib: by its name, or an offset and the lengths of dashes and gaps."""


class Look(NamedTuple):
    """How a round is drawn: the colour everywhere, dashes and markers where there are lines."""

    colour: str
    dashes: Dashes = "-"
    marker: str = "o"


def look(place: int) -> Look:
    """Return the look of the round at a place in the chain; no two places have the same.

    >>> look(8)
    Look(colour='#880077', dashes='--', marker='s')
    """
    band = place // ALIKE
    return Look(ROUNDS[place % len(ROUNDS)], dashes(band), MARKERS[band % len(MARKERS)])


def dashes(band: int) -> Dashes:
    """Return a whole line for 0, dashes for 1, then dashes with one dot more for each.

    >>> dashes(0), dashes(1), dashes(3)
    ('-', '--', (0, (6, 2, 1, 2, 1, 2)))
    """
    return ("-", "--")[band] if band < 2 else (0, (6, 2, *(1, 2) * (band - 1)))


def looks(rounds: Mapping[str, str | None]) -> dict[str, Look]:
    """Return the look of each round, in the order of the chain.

    A value is the round of which the key is a replicate, which has its look; None if it is none.

    >>> {name: own.colour for name, own in looks({"a": None, "a_2": "a", "b": None}).items()}
    {'a': '#d55e00', 'a_2': '#d55e00', 'b': '#0072b2'}
    """
    own = [name for name, of in rounds.items() if not of]
    known = dict.fromkeys([*own, *filter(None, rounds.values())])
    every = {name: look(place) for place, name in enumerate(known)}
    return {name: every[of or name] for name, of in rounds.items()}


def palette(names: Iterable[str]) -> dict[str, str]:
    """Return the colour of each name, in the order of the chain.

    >>> palette(["rf1", "rf2"])
    {'rf1': '#d55e00', 'rf2': '#0072b2'}
    """
    return {name: own.colour for name, own in looks(dict.fromkeys(names)).items()}


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


def legend(axes: "Axes", **look: Any) -> None:
    """Name the lines: inside the axes, or beside them where so many would hide what is drawn.

    `look` is passed on to matplotlib.
    """
    count = len(axes.get_legend_handles_labels()[1])
    if count <= ALIKE + 1:  # and the floor
        axes.legend(frameon=False, **look)
        return
    columns, figure = -(-count // BESIDE), axes.get_figure(root=True)
    assert figure is not None
    axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1), ncols=columns, **look)
    width, height = figure.get_size_inches()
    figure.set_size_inches(width + COLUMN * columns, height)
