"""Pictures of rounds: samples by NFE, trajectories, and curves of all rounds in one figure.

Bytes are a function of the numbers: no dates, no versions in the files.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fmcore.verdict import keys

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from fmcore.verdict.comparison import Comparison

COLOURS = ("#b8433a", "#2f6db3", "#3f8f5f", "#8a5fb0", "#c98a1b", "#4a4a4a")
INK, FAINT = "#333333", "#c8c8c8"
POINTS, PATHS = 2000, 128


def _figure(width: float, height: float, *, layout: str | None = "constrained") -> "Figure":
    """Return an empty figure, in inches; matplotlib is imported by the stages that draw."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout=layout)  # type: ignore[arg-type]


def _save(figure: "Figure", path: Path) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    FigureCanvasAgg(figure)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130, metadata={"Software": None})


def _plain(axes: "Axes") -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="#ececec", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=INK, labelsize=9)


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
    figure = _figure(0.9 + 0.52 * widest, 0.56 * len(rows) * ratio + 0.1, layout=None)
    for i, (label, x) in enumerate(rows):
        height = 1 / len(rows)
        left = 0.9 / (0.9 + 0.52 * widest)
        axes = figure.add_axes((left, 1 - (i + 1) * height, (1 - left) * len(x) / widest, height))
        strip, gray = _grid(x)
        axes.imshow(strip, cmap="gray" if gray else None, vmin=0, vmax=1, interpolation="nearest")
        axes.set_axis_off()
        centre = 1 - (i + 0.5) * height
        figure.text(left - 0.01, centre, label, ha="right", va="center", fontsize=9, color=INK)
    _save(figure, path)


def _scatter_panels(path: Path, rows: list[tuple[str, Tensor]]) -> None:
    plane = rows[-1][1].flatten(1)[:, :2]
    low, high = plane.quantile(0.001, dim=0), plane.quantile(0.999, dim=0)
    away = bool(((low > 0) | (high < 0)).any())  # from the origin: a centre of its own
    middle = (low + high) / 2 if away else torch.zeros(plane.shape[1])
    span = float((plane - middle).abs().quantile(0.999)) * 1.15
    left, below = float(middle[0]) - span, (float(middle[1]) if len(middle) > 1 else 0.0) - span
    limits = {"xlim": (left, left + 2 * span), "ylim": (below, below + 2 * span)}
    figure = _figure(2.1 * len(rows), 2.4)
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
    _save(figure, path)


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
    figure = _figure(5.2, 5.2)
    axes = figure.add_subplot()
    for i in range(x.shape[1]):
        axes.plot(x[:, i, 0], x[:, i, 1], color=COLOURS[1], alpha=0.35, linewidth=0.8)
    axes.scatter(x[0, :, 0], x[0, :, 1], s=7, color=FAINT, label="source (t = 1)", zorder=3)
    axes.scatter(x[-1, :, 0], x[-1, :, 1], s=7, color=COLOURS[0], label="target (t = 0)", zorder=3)
    axes.set_xlabel(names[0], color=INK)
    axes.set_ylabel(names[1], color=INK)
    axes.legend(frameon=False, fontsize=9, loc="best")
    _plain(axes)
    _save(figure, path)


def straightness_over_t(path: Path, gaps: "Mapping[str, pd.DataFrame]") -> None:
    """Draw the mean squared gap of chord and velocity over t (columns gap, t), a line per round."""
    figure = _figure(6.4, 4.0)
    axes = figure.add_subplot()
    for i, (name, curve) in enumerate(gaps.items()):
        gap, colour = curve["gap"].clip(lower=1e-12), COLOURS[i % len(COLOURS)]
        axes.plot(curve["t"], gap, color=colour, linewidth=2, label=name)
    axes.set_yscale("log")
    axes.set_xlabel("t  (0 = data, 1 = noise)", color=INK)
    axes.set_ylabel("E‖(Z₁ − Z₀) − v‖²", color=INK)
    axes.set_title("Straightness over t: lower is straighter", fontsize=11, color=INK, loc="left")
    axes.legend(frameon=False)
    _plain(axes)
    _save(figure, path)


def fd_over_nfe(path: Path, found: "Comparison") -> None:
    """Draw the distance to real data over NFE for all rounds, with the real-vs-real floor.

    Bars are two standard errors each way. A distance that is no larger than its error is drawn at
    the lower edge of the figure, of a metric that is 0 on average for equal laws.
    """
    figure = _figure(6.4, 4.0)
    axes = figure.add_subplot()
    positive = [d for r in found.rounds for d in r.distances.values() if d > 0]
    edge = min(positive, default=1e-12) / 2
    for i, r in enumerate(found.rounds):
        nfes = sorted(r.distances)
        values = [max(r.distances[n], edge) for n in nfes]
        errors = [2 * (r.error(n) or 0.0) for n in nfes]
        low = [min(e, v - edge / 2) for v, e in zip(values, errors, strict=True)]
        colour = COLOURS[i % len(COLOURS)]
        axes.errorbar(
            nfes, values, yerr=[low, errors], fmt="o-", color=colour, linewidth=2, markersize=5,
            elinewidth=1, capsize=2, label=r.name,
        )  # fmt: skip
    if found.floor > edge / 2:
        name, both = "real vs real (floor)", 2 * (found.floor_se or 0.0)
        axes.axhline(found.floor, color=INK, linestyle="--", linewidth=1, label=name)
        bottom = max(found.floor - both, edge / 2)
        axes.axhspan(bottom, found.floor + both, color=INK, alpha=0.12, linewidth=0)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xticks(found.nfes, [str(n) for n in found.nfes])
    axes.set_xlabel("NFE (Euler steps from noise to data)", color=INK)
    axes.set_ylabel(f"{found.metric} ± 2 standard errors", color=INK)
    axes.set_title("Distance to real data: lower is better", fontsize=11, color=INK, loc="left")
    axes.legend(frameon=False)
    _plain(axes)
    _save(figure, path)


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
    figure = _figure(6.4, 4.0)
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
    _plain(axes)
    _save(figure, path)


def quality_over_compute(path: Path, table: "pd.DataFrame", found: "Comparison") -> None:
    """Draw the distance over all FLOPs that it took: training, pairs and samples.

    A point for each row of samplers.csv, a line through the Euler steps of each round, bars of two
    standard errors. Rows that are no larger than their error are at the lower edge.
    """
    figure, name = _figure(6.4, 4.0), found.metric
    axes = figure.add_subplot()
    rows = [row for row in table.to_dict("records") if row["flops_total"] > 0]  # NaN is not
    edge = min((row[name] for row in rows if row[name] > 0), default=1e-12) / 2
    for i, round_ in enumerate(dict.fromkeys(row["round"] for row in rows)):
        own = [row for row in rows if row["round"] == round_]
        for euler, style in ((True, "o-"), (False, "D")):
            some = [row for row in own if str(row["sampler"]).startswith("euler_") == euler]
            x = [row["flops_total"] for row in some]
            y = [max(row[name], edge) for row in some]
            errors = [2 * float(row.get(f"{name}_se", 0)) for row in some]
            low = [min(e, v - edge / 2) for v, e in zip(y, errors, strict=True)]
            axes.errorbar(
                x, y, yerr=[low, errors], fmt=style, color=COLOURS[i % len(COLOURS)], linewidth=2,
                markersize=5, elinewidth=1, capsize=2, label=str(round_) if euler else None,
            )  # fmt: skip
            for j, (row, a, b) in enumerate(zip(some, x, y, strict=True)):
                word = f"{row['nfe']:.3g}" if euler else str(row["sampler"])
                at = (5, 4) if euler else (5, -9 - 9 * (j % 2))
                axes.annotate(word, (a, b), at, textcoords="offset points", fontsize=7)
    if found.floor > edge / 2:
        label = "real vs real (floor)"
        axes.axhline(found.floor, color=INK, linestyle="--", linewidth=1, label=label)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("FLOPs of training, pairs and samples, ancestors included", color=INK)
    axes.set_ylabel(f"{name} ± 2 standard errors", color=INK)
    axes.set_title("Quality over compute; numbers are NFE", fontsize=11, color=INK, loc="left")
    axes.legend(frameon=False)
    _plain(axes)
    _save(figure, path)
