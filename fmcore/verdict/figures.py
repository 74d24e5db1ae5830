"""Figures of all rounds of a chain: distance over NFE and over compute, straightness over t."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from fmcore.verdict.comparison import Comparison
from fmcore.verdict.drawing import COLOURS, INK, new_figure, plain_axes, save

if TYPE_CHECKING:
    import pandas as pd


def straightness_over_t(path: Path, gaps: "Mapping[str, pd.DataFrame]") -> None:
    """Draw the mean squared gap of chord and velocity over t (columns gap, t), a line per round."""
    figure = new_figure(6.4, 4.0)
    axes = figure.add_subplot()
    for i, (name, curve) in enumerate(gaps.items()):
        gap, colour = curve["gap"].clip(lower=1e-12), COLOURS[i % len(COLOURS)]
        axes.plot(curve["t"], gap, color=colour, linewidth=2, label=name)
    axes.set_yscale("log")
    axes.set_xlabel("t  (0 = data, 1 = noise)", color=INK)
    axes.set_ylabel("E‖(Z₁ − Z₀) − v‖²", color=INK)
    axes.set_title("Straightness over t: lower is straighter", fontsize=11, color=INK, loc="left")
    axes.legend(frameon=False)
    plain_axes(axes)
    save(figure, path)


def fd_over_nfe(path: Path, found: Comparison) -> None:
    """Draw the distance to real data over NFE for all rounds, with the real-vs-real floor.

    Bars are two standard errors each way. A distance that is no larger than its error is drawn at
    the lower edge of the figure, of a metric that is 0 on average for equal laws.
    """
    figure = new_figure(6.4, 4.0)
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
    plain_axes(axes)
    save(figure, path)


def quality_over_compute(path: Path, table: "pd.DataFrame", found: Comparison) -> None:
    """Draw the distance over all FLOPs that it took: training, pairs and samples.

    A point for each row of samplers.csv, a line through the Euler steps of each round, bars of two
    standard errors. Rows that are no larger than their error are at the lower edge.
    """
    figure, name = new_figure(6.4, 4.0), found.metric
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
    plain_axes(axes)
    save(figure, path)
