"""A run on a terminal: a row for each stage, losses as small curves, samples in half blocks."""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from rich.console import Console, Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from flows.compare.costs import duration
from flows.compare.samples import laid_out
from flows.watch.state import Points, Seen, Watched
from fmcore.settings import ReflowError
from fmcore.verdict.shown import Shown

BARS = "▁▂▃▄▅▆▇█"
WIDTH, CELLS, SIDE = 24, 20, 16
"""Columns of a curve, columns of a plot of points, pixels of an image's side at most."""
COLOURS = {"running": "yellow", "done": "green", "failed": "red", "stopped": "red"}
NONE = "no run yet; `reflow run` starts one, and `reflow watch` shows it"


def sparkline(points: Points, width: int = WIDTH) -> str:
    """Draw a curve in a line of text, on a logarithmic scale if all values are above 0.

    >>> sparkline([(1, 8.0), (2, 4.0), (3, 2.0), (4, 1.0)])
    '█▆▃▁'
    """
    values = [v for _, v in points if math.isfinite(v)]
    if not values:
        return ""
    if min(values) > 0:
        values = [math.log(v) for v in values]
    parts = [part for part in np.array_split(np.array(values), min(width, len(values)))]
    means = [float(part.mean()) for part in parts]
    low, high = min(means), max(means)
    top = len(BARS) - 1
    return "".join(BARS[round((m - low) / (high - low) * top) if high > low else 0] for m in means)


def line_of(seen: Seen) -> str:
    """Say in a line how a run is."""
    if seen.state == "none":
        return NONE
    took = duration(seen.seconds)
    if seen.state == "running":
        left = "" if seen.left is None else f", about {duration(seen.left)} left"
        return f"{seen.title}: running for {took}{left}"
    words = {
        "done": f"up to date after {took}",
        "failed": f"failed after {took}; `reflow run` tries again",
        "stopped": f"stopped after {took}; `reflow run` goes on from there",
        "killed": f"its process is gone after {took}; `reflow run` goes on from there",
    }
    return f"{seen.title}: {words[seen.state]} ({duration(seen.ago)} ago)"


def text_of(stage: Watched) -> str:
    """Return the latest numbers of a stage, or why it failed."""
    if stage.error:
        return stage.error.removeprefix(f"{stage.name}: ")
    left = "" if stage.left is None else f"{duration(stage.left)} left"
    names = ("loss", "held_out_loss") if stage.name.startswith("train@") else tuple(stage.curves)
    hidden = ("ms_per_sample", "lr", "grad_norm")
    last = {n: stage.curves[n][-1][1] for n in names if n in stage.curves and n not in hidden}
    values = "  ".join(f"{n.replace('_', ' ')} {v:.4g}" for n, v in last.items())
    return "  ".join(filter(None, (values, left)))


def view(seen: Seen, console: Console) -> RenderableType:
    """Return what the terminal shows of a run."""
    head = Text(line_of(seen), style="bold" if seen.state == "running" else "")
    if seen.state == "none":
        return head
    table = Table(box=None, pad_edge=False, show_header=False, padding=(0, 1, 0, 0))
    for _ in range(3):
        table.add_column(no_wrap=True)
    table.add_column()
    for stage in seen.stages:
        took = duration(stage.seconds) if stage.seconds else ""
        middle: RenderableType = Text(f"{took:>{WIDTH // 2}}")
        if stage.state == "running" and stage.total:
            middle = ProgressBar(total=1.0, completed=stage.share, width=WIDTH // 2)
        loss = sparkline(stage.curves["loss"]) if "loss" in stage.curves else ""
        text = Text.assemble((f"{loss} " if loss else "", "cyan"), text_of(stage))
        table.add_row(
            Text(stage.name), Text(stage.state, style=COLOURS.get(stage.state, "dim")), middle, text
        )
    parts: list[RenderableType] = [head, table, *_gates(seen)]
    if console.is_terminal and console.color_system:
        parts += _samples(seen, console.width)
    return Group(*parts)


def _gates(seen: Seen) -> list[Text]:
    every = [(s.name, state, says) for s in seen.stages for state, says in s.gates]
    said = [
        Text(f"{state}: {name}: {says}", style="red" if state == "fail" else "yellow")
        for name, state, says in every
        if state in ("warn", "fail")
    ]
    counts = {state: [s for _, s, _ in every].count(state) for state in ("ok", "undecided")}
    words = {"ok": "within their bounds", "undecided": "not decided"}
    rest = ", ".join(f"{n} {words[state]}" for state, n in counts.items() if n)
    return [*said, *([Text(f"gates so far: {rest}", style="dim")] if rest else [])]


def last_preview(seen: Seen) -> tuple[Watched, Shown] | None:
    """Return the training that showed samples last, and these; None if none did."""
    shown = [stage for stage in seen.stages if stage.preview]
    shown.sort(key=lambda stage: stage.state == "running")
    for stage in reversed(shown):
        try:
            assert stage.preview is not None
            return stage, Shown.read(stage.preview.read_bytes(), str(stage.preview))
        except (OSError, ReflowError):  # it began anew in this moment
            continue
    return None


def _samples(seen: Seen, width: int) -> list[Text]:
    found = last_preview(seen)
    if found is None:
        return []
    stage, shown = found
    titles = [*shown.titled]
    said = f"samples of {stage.name.partition('@')[2]} at step {shown.step}: {', '.join(titles)}"
    rows = []
    if shown.images:
        for x in shown.titled.values():
            small = x[:, :: -(-x.shape[1] // SIDE), :: -(-x.shape[2] // SIDE)]
            sheet = laid_out(small, max(1, width // (small.shape[2] + 1)))
            rows += blocks(sheet[: small.shape[1], ..., : max(1, sheet.shape[2] - 1)])
    else:
        plots = [_plot(x, shown.square) for x in shown.titled.values()]
        rows = blocks(np.concatenate(plots, axis=1)[:, :width])
    return [Text(said, style="dim"), *rows]


def _plot(x: NDArray[np.float32], square: tuple[float, float, float]) -> NDArray[np.uint8]:
    """Count points [N, 2] in the cells of a square, as gray values [h, w, 1], y upwards."""
    middle, half = np.array(square[:2]), square[2]
    at = np.floor(((x - middle) / half + 1) * CELLS).astype(int)
    counts = np.zeros((2 * CELLS, 2 * CELLS + 2))
    inside = at[((at >= 0) & (at < 2 * CELLS)).all(axis=1)]
    np.add.at(counts, (2 * CELLS - 1 - inside[:, 1], inside[:, 0]), 1)
    bright = np.where(counts > 0, 90 + 165 * counts / max(counts.max(), 1), 0)
    return bright[..., None].astype(np.uint8)


def blocks(pixels: NDArray[np.uint8]) -> list[Text]:
    """Draw pixels [h, w, 1 or 3] as lines of half blocks, two rows a line."""
    colours = np.broadcast_to(pixels, (*pixels.shape[:2], 3))
    if len(colours) % 2:
        colours = np.concatenate([colours, np.zeros_like(colours[:1])])
    return [
        Text.assemble(*(("▀", f"{_rgb(a)} on {_rgb(b)}") for a, b in zip(top, under, strict=True)))
        for top, under in zip(colours[::2], colours[1::2], strict=True)
    ]


def _rgb(colour: Sequence[int] | NDArray[np.uint8]) -> str:
    return "#{:02x}{:02x}{:02x}".format(*(int(c) for c in colour))
