"""What every figure shares: its colours, its axes, and bytes that are a function of its numbers.

No dates and no versions are in the files.
"""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = ("#b8433a", "#2f6db3", "#3f8f5f", "#8a5fb0", "#c98a1b", "#4a4a4a")
INK, FAINT = "#333333", "#c8c8c8"


def new_figure(width: float, height: float, *, layout: str | None = "constrained") -> "Figure":
    """Return an empty figure, in inches; matplotlib is imported by the stages that draw."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout=layout)  # type: ignore[arg-type]


def save(figure: "Figure", path: Path) -> None:
    """Write the figure as PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    FigureCanvasAgg(figure)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130, metadata={"Software": None})


def plain_axes(axes: "Axes") -> None:
    """Take away what tells nothing: the frame above and at the right, dark grid lines."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="#ececec", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=INK, labelsize=9)
