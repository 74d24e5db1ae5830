"""Figures of all rounds of a chain: distance over NFE and over compute, straightness over t."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from fmcore.verdict.comparison import Comparison
from fmcore.verdict.drawing import (
    GRAY,
    INK,
    heading,
    legend,
    looks,
    new_figure,
    plain_axes,
    save,
    titled,
)

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes


def straightness_over_t(path: Path, gaps: "Mapping[str, pd.DataFrame]", data: str = "") -> None:
    """Draw the mean squared gap of chord and velocity over t (columns gap, t), a line per round.

    The title names the data, here and below.
    """
    figure = new_figure(6.4, 4.0)
    axes = figure.add_subplot()
    drawn = looks(dict.fromkeys(gaps))
    for name, curve in gaps.items():
        gap = curve["gap"].clip(lower=1e-12)
        own = drawn[name]
        axes.plot(
            curve["t"], gap, color=own.colour, linestyle=own.dashes, linewidth=2, label=name
        )  # fmt: skip
    axes.set_yscale("log")
    axes.set_xlabel("t  (0 = data, 1 = noise)", color=INK)
    axes.set_ylabel("E‖(Z₁ − Z₀) − v‖²", color=INK)
    heading(axes, titled("Straightness over t (lower is straighter)", data))
    legend(axes)
    plain_axes(axes)
    save(figure, path)


def fd_over_nfe(path: Path, found: Comparison, data: str = "") -> None:
    """Draw the distance to real data over NFE for all rounds, with the real-vs-real floor.

    Bars are two standard errors each way. A distance that is no larger than its error is drawn at
    the lower edge of the figure, of a metric that is 0 on average for equal laws.
    """
    figure = new_figure(6.4, 4.0)
    axes = figure.add_subplot()
    positive = [d for r in found.rounds for d in r.distances.values() if d > 0]
    edge = min(positive, default=1e-12) / 2
    for r in found.rounds:
        nfes = sorted(r.distances)
        values = [max(r.distances[n], edge) for n in nfes]
        errors = [2 * (r.error(n) or 0.0) for n in nfes]
        low = [min(e, v - edge / 2) for v, e in zip(values, errors, strict=True)]
        own = found.looks[r.name]
        axes.errorbar(
            nfes, values, yerr=[low, errors], color=own.colour, linestyle=own.dashes, linewidth=2,
            marker=own.marker, markersize=5, elinewidth=1, capsize=2, label=r.name,
        )  # fmt: skip
    _floor(axes, found, edge / 10)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xticks(found.nfes, [str(n) for n in found.nfes])
    axes.set_xlabel("NFE (Euler steps from noise to data)", color=INK)
    axes.set_ylabel(f"{found.metric} ± 2 standard errors", color=INK)
    heading(axes, titled("Distance to real data over NFE (lower is better)", data))
    legend(axes)
    plain_axes(axes)
    save(figure, path)


def quality_over_compute(
    path: Path, table: "pd.DataFrame", found: Comparison, data: str = ""
) -> None:
    """Draw the distance over all FLOPs that it took: training, pairs and samples.

    A point for each row of samplers.csv, a line through the Euler steps of each round, bars of two
    standard errors. Rows that are no larger than their error are at the lower edge.
    """
    from matplotlib.ticker import LogLocator, NullLocator

    figure, name = new_figure(6.4, 4.0), found.metric
    axes = figure.add_subplot()
    rows = [row for row in table.to_dict("records") if row["flops_total"] > 0]  # NaN is not
    edge = min((row[name] for row in rows if row[name] > 0), default=1e-12) / 2
    for round_ in dict.fromkeys(str(row["round"]) for row in rows):
        own = found.looks[round_]
        for euler, dashes, marker in ((True, own.dashes, own.marker), (False, "", "D")):
            of = (row for row in rows if row["round"] == round_)
            some = [row for row in of if str(row["sampler"]).startswith("euler_") == euler]
            x = [row["flops_total"] for row in some]
            y = [max(row[name], edge) for row in some]
            errors = [2 * float(row.get(f"{name}_se", 0)) for row in some]
            low = [min(e, v - edge / 2) for v, e in zip(y, errors, strict=True)]
            axes.errorbar(
                x, y, yerr=[low, errors], color=own.colour, linestyle=dashes, linewidth=2,
                marker=marker, markersize=5, elinewidth=1, capsize=2,
                label=round_ if euler else None,
            )  # fmt: skip
            for j, (row, a, b) in enumerate(zip(some, x, y, strict=True)):
                word = f"{row['nfe']:.3g}" if euler else str(row["sampler"])
                at = (5, 4) if euler else (5, -9 - 9 * (j % 2))
                axes.annotate(word, (a, b), at, textcoords="offset points", fontsize=7)
    _floor(axes, found, edge / 10)
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 1.5, 2.0, 3.0, 5.0)))
    axes.xaxis.set_major_formatter(lambda x, _: f"{x:.2g}")
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_yscale("log")
    axes.set_xlabel("FLOPs of training, pairs and samples, ancestors included", color=INK)
    axes.set_ylabel(f"{name} ± 2 standard errors", color=INK)
    heading(axes, titled("Quality over compute; numbers are NFE", data))
    legend(axes)
    plain_axes(axes)
    save(figure, path)


def _floor(axes: "Axes", found: Comparison, least: float) -> None:
    """Draw the floor and two standard errors around it: no round, so in gray.

    One below `least` is left out, which would take most of an axis of powers.
    """
    if found.floor <= least:
        return
    both = 2 * (found.floor_se or 0.0)
    axes.axhline(
        found.floor, color=GRAY, linestyle="--", linewidth=1.2, label="floor: real vs real"
    )
    bottom = max(found.floor - both, found.floor / 2)
    axes.axhspan(bottom, found.floor + both, color=GRAY, alpha=0.15, linewidth=0)
