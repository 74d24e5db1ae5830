"""The results as a dated page, as JSON, and as pictures."""

import json
import os
import platform
import subprocess
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from benchmarks.bench import errors
from benchmarks.bench.turns import Point, Row

SOURCE = Path(__file__).resolve().parents[2]
PACKAGES = (
    "torch", "numpy", "pyarrow", "scipy", "torchcfm", "flow_matching", "rectified-flow",
    "rectified-flow-pytorch", "torchdiffeq", "torchode",
)  # fmt: skip


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor() or platform.machine()


def _commit() -> str:
    def git(*words: str) -> str:
        done = subprocess.run(
            ["git", "-C", str(SOURCE), *words], capture_output=True, text=True, check=False
        )
        return done.stdout.strip()

    own = (":!benchmarks/*_bench.*", ":!docs/images/bench_*")  # what a run writes itself
    changed = ", with changes" if git("status", "--porcelain", "-uno", "--", ".", *own) else ""
    return f"{git('rev-parse', '--short', 'HEAD') or 'unknown'}{changed}"


def machine() -> dict[str, str]:
    """Return hardware and versions."""
    found = {
        "processor": _processor(),
        "cores": str(os.cpu_count()),
        "threads": str(torch.get_num_threads()),
        "python": platform.python_version(),
        "commit": _commit(),
    }
    if hasattr(os, "sysconf"):
        size = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        found["memory"] = f"{size / 2**30:.0f} GiB"
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "absent"
    return found


def page(about: dict[str, str], rows: Iterable[Row], pictures: list[str]) -> str:
    """Return the results as markdown."""
    lines = [
        f"# Bench, {about['date']}: speed, error, memory as ratios",
        "",
        f"`{about['command']}`, {about['minutes']} minutes. "
        + ", ".join(f"{k} {v}" for k, v in about.items() if k not in HEAD),
        "",
        "Each ratio is of two measurements in one run that took turns: **median** (least-greatest)",
        "over the turns. NFE and wall of an error are of one solver at one setting.",
    ]
    part = ""
    for row in rows:
        if row.part != part:
            part = row.part
            lines += ["", f"## {part}", "", "| case | what | result | note |", "|---|---|---|---|"]
        cells = (row.case, row.what, row.text(), row.note)
        lines.append("| " + " | ".join(cell.replace("|", "/") for cell in cells) + " |")
    for picture in pictures:
        lines += ["", f"![{Path(picture).stem}]({picture})"]
    return "\n".join(lines) + "\n"


HEAD = ("date", "command", "minutes")


def draw_cost(points: list[Point], file: Path) -> None:
    """Draw the cost of a pair over the number of pairs."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axis = pyplot.subplots(figsize=(5, 3.2))
    axis.plot([p["pairs"] for p in points], [p["ratio"] for p in points], "o", ms=4)
    axis.axhline(1, color="gray", lw=0.5)
    axis.set_xscale("log")
    axis.set_ylim(bottom=0)
    axis.set_xlabel("pairs in the coupling")
    axis.set_ylabel("seconds a pair, relative")
    figure.tight_layout()
    figure.savefig(file, dpi=110)
    pyplot.close(figure)


def write(
    out: Path,
    pictures: Path,
    about: dict[str, str],
    rows: list[Row],
    curves: dict[str, list[Point]],
) -> None:
    """Write page and JSON to `out`.md and `out`.json, pictures to a folder."""
    out.parent.mkdir(parents=True, exist_ok=True)
    pictures.mkdir(parents=True, exist_ok=True)
    drawn = []
    if any("rms" in point for point in curves.get("error", [])):
        errors.draw(curves["error"], str(pictures / "bench_error.png"))
        drawn.append(pictures / "bench_error.png")
    if curves.get("cost"):
        draw_cost(curves["cost"], pictures / "bench_cost.png")
        drawn.append(pictures / "bench_cost.png")
    links = [Path(os.path.relpath(p, out.parent)).as_posix() for p in drawn]
    found: dict[str, Any] = {"about": about, "rows": [r.record() for r in rows], **curves}
    out.with_suffix(".json").write_text(json.dumps(found, indent=1) + "\n")
    out.with_suffix(".md").write_text(page(about, rows, links))
