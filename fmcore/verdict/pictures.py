"""Pictures of one round: samples by NFE, trajectories, the scan of its averages.

A round alone is drawn in ink: its colour depends on the rounds beside it, and so would the bytes.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fmcore.verdict import keys
from fmcore.verdict.drawing import FAINT, GRAY, INK, heading, new_figure, plain_axes, save
from fmcore.verdict.plane import Plane

POINTS, PATHS = 2000, 128


def sheet(images: Tensor) -> tuple[Any, bool]:
    """Lay images [N, C, H, W] in [-1, 1] side by side; return the strip, and whether gray."""
    n, channels, height, width = images.shape
    padded = torch.ones(n, channels, height + 2, width + 2)
    padded[:, :, 1:-1, 1:-1] = images.clamp(-1, 1)
    strip = (padded.permute(2, 0, 3, 1).reshape(height + 2, n * (width + 2), channels) + 1) / 2
    return (strip[..., 0] if channels == 1 else strip).numpy(), channels == 1


def samples_by_nfe(
    path: Path,
    samples: Mapping[int, Tensor],
    *,
    image: bool,
    reference: Tensor | None,
    title: str = "",
) -> None:
    """Draw samples [N, *D] of each NFE, the same noise in each row or panel, and real data.

    Points are drawn in the plane of the real data, if they are given.
    """
    rows = [(f"NFE {nfe}", x) for nfe, x in sorted(samples.items())]
    if reference is not None:
        rows.append(("real data", reference))
    if image:
        _image_rows(path, rows, title)
    else:
        _scatter_panels(path, rows, title)


def sheet_of_prompts(
    path: Path, rows: Sequence[str], columns: Mapping[str, Tensor], *, title: str = ""
) -> None:
    """Draw images [R, C, H, W] of each column, say an NFE or a round, in a row for each prompt."""
    each, left, above, edge = 0.56, 0.3 + 0.075 * max(len(text) for text in rows), 0.72, 0.1
    width = max(left + 0.62 * len(columns) + edge, 0.2 + 0.092 * len(title))
    height = above + each * len(rows) + edge
    figure = new_figure(width, height, layout=None)
    write = partial(figure.text, color=INK, va="center", parse_math=False)
    write(0.1 / width, 1 - 0.22 / height, title, fontsize=11)
    for j, (name, images) in enumerate(columns.items()):
        x = (left + 0.62 * j) / width
        write(x + 0.26 / width, 1 - 0.56 / height, name, fontsize=8, ha="center")
        for i, image in enumerate(images):
            bottom = 1 - (above + (i + 1) * each) / height
            axes = figure.add_axes((x, bottom, 0.52 / width, 0.52 / height))
            strip, gray = sheet(image[None])
            axes.imshow(
                strip, cmap="gray" if gray else None, vmin=0, vmax=1, interpolation="nearest"
            )
            axes.set_axis_off()
            if j == 0:
                write(
                    (left - 0.08) / width, bottom + 0.26 / height, rows[i], fontsize=9, ha="right"
                )
    save(figure, path)


def _image_rows(path: Path, rows: list[tuple[str, Tensor]], title: str) -> None:
    """Draw a labelled strip for each NFE; a single set is wrapped into a square."""
    if len(rows) == 1 and len(rows[0][1]) > 16:
        label, x = rows[0]
        side = round(len(x) ** 0.5)
        rows = [(label if i == 0 else "", part) for i, part in enumerate(x.split(side))]
    widest = max(len(x) for _, x in rows)
    each = 0.56 * rows[0][1].shape[2] / rows[0][1].shape[3]
    above, edge, left = 0.42 if title else 0.1, 0.1, 0.9
    width = max(left + 0.52 * widest + edge, left + 0.092 * len(title))
    height = above + each * len(rows) + edge
    figure = new_figure(width, height, layout=None)
    figure.text(
        left / width, 1 - 0.26 / height, title, va="center", fontsize=11, color=INK,
        parse_math=False,
    )  # fmt: skip
    for i, (label, x) in enumerate(rows):
        bottom = 1 - (above + (i + 1) * each) / height
        place = (left / width, bottom, 0.52 * len(x) / width, each / height)
        axes = figure.add_axes(place)
        strip, gray = sheet(x)
        axes.imshow(strip, cmap="gray" if gray else None, vmin=0, vmax=1, interpolation="nearest")
        axes.set_axis_off()
        centre = bottom + each / height / 2
        figure.text((left - 0.06) / width, centre, label, ha="right", va="center", fontsize=9)
    save(figure, path)


def _scatter_panels(path: Path, rows: list[tuple[str, Tensor]], title: str) -> None:
    plane = Plane.of(rows[-1][1])
    figure = new_figure(2.1 * len(rows), 2.7)
    for i, (label, x) in enumerate(rows):
        axes = figure.add_subplot(1, len(rows), i + 1)
        points = plane.project(x[:POINTS])
        colour = GRAY if label == "real data" else INK
        axes.scatter(points[:, 0], points[:, 1], s=1.2, color=colour, alpha=0.5, linewidths=0)
        plane.show(axes)
        axes.set(xticks=[], yticks=[])
        axes.set_title(label, fontsize=10, color=INK)
        for spine in axes.spines.values():
            spine.set_color(FAINT)
    figure.suptitle(title, fontsize=11, color=INK, x=0.02, ha="left", parse_math=False)
    save(figure, path)


def trajectories(path: Path, trajectory: Tensor, plane: Plane, title: str = "") -> None:
    """Draw paths [T+1, B, *D] from source to target in a plane, darker towards the target.

    With the plane of the data, paths of all rounds have the same axes and can be compared.
    """
    from matplotlib.collections import LineCollection

    x = torch.stack([plane.project(at[:PATHS]) for at in trajectory])
    figure = new_figure(5.2, 5.4)
    axes = figure.add_subplot()
    pieces = torch.stack([x[:-1], x[1:]], dim=2).transpose(0, 1).flatten(0, 1)
    shade = torch.linspace(0.25, 0.85, len(x) - 1).repeat(x.shape[1])
    lines = LineCollection(list(pieces.numpy()), array=shade.numpy(), cmap="Greys", linewidths=0.9)
    lines.set(clim=(0, 1), alpha=0.7)
    axes.add_collection(lines)
    axes.scatter(x[0, :, 0], x[0, :, 1], s=7, color=FAINT, label="source (t = 1)", zorder=3)
    axes.scatter(x[-1, :, 0], x[-1, :, 1], s=9, color=INK, label="target (t = 0)", zorder=3)
    axes.set_xlabel(plane.names[0], color=INK)
    axes.set_ylabel(plane.names[1], color=INK)
    axes.legend(frameon=False, fontsize=9, loc="upper right", ncols=2)
    heading(axes, title)
    plain_axes(axes)
    plane.show(axes)
    save(figure, path)


def scan_of_weights(path: Path, values: Mapping[str, float], name: str, title: str = "") -> None:
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
        gray, marker = f"{0.2 + 0.55 * i / len(found):.3f}", "osD^v<>"[i % 7]
        axes.errorbar(x, y, errors, fmt=f"{marker}-", color=gray, capsize=3, label=f"NFE {nfe}")
        axes.axhline(values[keys.at_nfe(name, nfe)], color=gray, linestyle="--", linewidth=1)
    axes.set_xlabel("length of the power average (sigma_rel); dashed: train.ema", color=INK)
    axes.set_ylabel(name, color=INK)
    heading(axes, title)
    axes.legend(frameon=False)
    plain_axes(axes)
    save(figure, path)
