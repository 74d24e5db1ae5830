"""Pictures of one round: samples by NFE, trajectories, the scan of its averages."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fmcore.verdict import keys
from fmcore.verdict.drawing import COLOURS, FAINT, INK, new_figure, plain_axes, save

POINTS, PATHS = 2000, 128


def _grid(images: Tensor) -> tuple[Any, bool]:
    """Lay images [N, C, H, W] in [-1, 1] side by side; return the strip, and whether gray."""
    n, channels, height, width = images.shape
    padded = torch.ones(n, channels, height + 2, width + 2)
    padded[:, :, 1:-1, 1:-1] = images.clamp(-1, 1)
    strip = (padded.permute(2, 0, 3, 1).reshape(height + 2, n * (width + 2), channels) + 1) / 2
    return (strip[..., 0] if channels == 1 else strip).numpy(), channels == 1


def samples_by_nfe(
    path: Path, samples: Mapping[int, Tensor], *, image: bool, reference: Tensor | None
) -> None:
    """Draw samples [N, *D] of each NFE, the same noise in each row or panel, and real data."""
    rows = [(f"NFE {nfe}", x) for nfe, x in sorted(samples.items())]
    if reference is not None:
        rows.append(("real data", reference))
    if image:
        _image_rows(path, rows)
    else:
        _scatter_panels(path, rows)


def _image_rows(path: Path, rows: list[tuple[str, Tensor]]) -> None:
    """Draw a labelled strip for each NFE; a single set is wrapped into a square."""
    if len(rows) == 1 and len(rows[0][1]) > 16:
        label, x = rows[0]
        side = round(len(x) ** 0.5)
        rows = [(label if i == 0 else "", part) for i, part in enumerate(x.split(side))]
    widest = max(len(x) for _, x in rows)
    ratio = rows[0][1].shape[2] / rows[0][1].shape[3]
    figure = new_figure(0.9 + 0.52 * widest, 0.56 * len(rows) * ratio + 0.1, layout=None)
    for i, (label, x) in enumerate(rows):
        height = 1 / len(rows)
        left = 0.9 / (0.9 + 0.52 * widest)
        axes = figure.add_axes((left, 1 - (i + 1) * height, (1 - left) * len(x) / widest, height))
        strip, gray = _grid(x)
        axes.imshow(strip, cmap="gray" if gray else None, vmin=0, vmax=1, interpolation="nearest")
        axes.set_axis_off()
        centre = 1 - (i + 0.5) * height
        figure.text(left - 0.01, centre, label, ha="right", va="center", fontsize=9, color=INK)
    save(figure, path)


def _scatter_panels(path: Path, rows: list[tuple[str, Tensor]]) -> None:
    plane = rows[-1][1].flatten(1)[:, :2]
    low, high = plane.quantile(0.001, dim=0), plane.quantile(0.999, dim=0)
    away = bool(((low > 0) | (high < 0)).any())  # from the origin: a centre of its own
    middle = (low + high) / 2 if away else torch.zeros(plane.shape[1])
    span = float((plane - middle).abs().quantile(0.999)) * 1.15
    left, below = float(middle[0]) - span, (float(middle[1]) if len(middle) > 1 else 0.0) - span
    limits = {"xlim": (left, left + 2 * span), "ylim": (below, below + 2 * span)}
    figure = new_figure(2.1 * len(rows), 2.4)
    for i, (label, x) in enumerate(rows):
        axes = figure.add_subplot(1, len(rows), i + 1)
        points = x[:POINTS].flatten(1)
        second = points[:, 1] if points.shape[1] > 1 else torch.zeros(len(points))
        colour = FAINT if label == "real data" else COLOURS[1]
        if label == "real data":
            colour = INK
        axes.scatter(points[:, 0], second, s=1.2, color=colour, alpha=0.5, linewidths=0)
        axes.set(**limits, xticks=[], yticks=[], aspect="equal")
        axes.set_title(label, fontsize=10, color=INK)
        for spine in axes.spines.values():
            spine.set_color(FAINT)
    save(figure, path)


def trajectories(path: Path, trajectory: Tensor) -> None:
    """Draw paths [T+1, B, *D] from source to target; above two dimensions, a projection.

    The projection is on the two directions in which the targets vary most: their principal
    components. The noise varies equally in all directions, so it has none.
    """
    x = trajectory.flatten(2).double()
    names = ("dimension 1", "dimension 2")
    if x.shape[2] > 2:
        ends = x[-1] - x[-1].mean(0)
        basis = torch.linalg.svd(ends, full_matrices=False)[2][:2]
        largest = basis.gather(1, basis.abs().argmax(1, keepdim=True))
        x = x @ (basis * largest.sign()).T  # fix the sign, for equal bytes
        names = ("first principal component of the targets", "second principal component")
    elif x.shape[2] == 1:
        x = torch.cat([x, torch.zeros_like(x)], dim=2)
    x = x[:, :PATHS]
    figure = new_figure(5.2, 5.2)
    axes = figure.add_subplot()
    for i in range(x.shape[1]):
        axes.plot(x[:, i, 0], x[:, i, 1], color=COLOURS[1], alpha=0.35, linewidth=0.8)
    axes.scatter(x[0, :, 0], x[0, :, 1], s=7, color=FAINT, label="source (t = 1)", zorder=3)
    axes.scatter(x[-1, :, 0], x[-1, :, 1], s=7, color=COLOURS[0], label="target (t = 0)", zorder=3)
    axes.set_xlabel(names[0], color=INK)
    axes.set_ylabel(names[1], color=INK)
    axes.legend(frameon=False, fontsize=9, loc="best")
    plain_axes(axes)
    save(figure, path)


def scan_of_weights(path: Path, values: Mapping[str, float], name: str) -> None:
    """Draw the distance over the length of a power average, with standard errors, at each NFE.

    `values` are the metrics of a round; nothing is drawn if it has fewer than two such averages.
    Dashed is the average that the round is known by.
    """
    found: dict[int, list[tuple[float, float, float]]] = {}
    for metric, nfe, value in keys.measured(values):
        length = metric.removeprefix(f"{name}_power_")
        if length != metric and length.replace(".", "", 1).isdigit():
            error = values.get(keys.error(keys.at_nfe(metric, nfe)), 0.0)
            found.setdefault(nfe, []).append((float(length), value, error))
    if max(map(len, found.values()), default=0) < 2:
        return
    figure = new_figure(6.4, 4.0)
    axes = figure.add_subplot()
    for i, (nfe, points) in enumerate(sorted(found.items())):
        x, y, errors = zip(*sorted(points), strict=True)
        colour = COLOURS[i % len(COLOURS)]
        axes.errorbar(x, y, errors, fmt="o-", color=colour, capsize=3, label=f"NFE {nfe}")
        axes.axhline(values[keys.at_nfe(name, nfe)], color=colour, linestyle="--", linewidth=1)
    axes.set_xlabel("length of the power average (sigma_rel); dashed: train.ema", color=INK)
    axes.set_ylabel(name, color=INK)
    axes.set_title("Distance by the length of the average", fontsize=11, color=INK, loc="left")
    axes.legend(frameon=False)
    plain_axes(axes)
    save(figure, path)
