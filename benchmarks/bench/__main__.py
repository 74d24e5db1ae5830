"""Measure all parts, or those named, and write the results.

    python -m benchmarks.bench [PART ...] [--case CASE ...] [--turns N] [--quick]
                               [--out FILE.md] [--pictures FOLDER]

`make bench` makes the environment of the peers first, and writes benchmarks/YEAR-MONTH_bench.md.
`make bench-quick` takes some minutes; it and a run of some parts write to .reflow/bench. Results
are written after each part; a part that fails is reported, and the rest goes on.
"""

import argparse
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterable
from dataclasses import replace
from datetime import date
from importlib import import_module
from pathlib import Path
from typing import cast

from benchmarks.bench.turns import QUICK, Point, Row, Sizes

Curves = dict[str, list[Point]]
Part = Callable[[Path, Sizes, Curves], Iterable[Row]]


def _error(root: Path, sizes: Sizes, curves: Curves) -> Iterable[Row]:
    from benchmarks.bench import errors

    for flow in sizes.points:
        curves.setdefault("error", []).extend(errors.curve(flow, sizes))
    return errors.table(curves["error"])


def _cost(root: Path, sizes: Sizes, curves: Curves) -> Iterable[Row]:
    from benchmarks.bench import coupling

    rows, curves["cost"] = coupling.cost(root, sizes)
    return rows


def _of(module: str, function: str) -> Part:
    """Return a part that has no curves; a worker imports this file, so it loads no others."""

    def run(root: Path, sizes: Sizes, _: Curves) -> Iterable[Row]:
        found = getattr(import_module(f"benchmarks.bench.{module}"), function)
        return cast(Iterable[Row], found(root, sizes))

    return run


PARTS: dict[str, Part] = {
    "coupling": _of("coupling", "throughput"),
    "training": _of("training", "speed"),
    "error": _error,
    "workers": _of("coupling", "workers"),
    "cost": _cost,
    "memory": _of("memory", "growth"),
    "evaluation": _of("evaluation", "share"),
}


def measure(
    parts: Iterable[str],
    sizes: Sizes,
    say: Callable[[str], None],
    keep: Callable[[list[Row], Curves], None] = lambda rows, curves: None,
) -> tuple[list[Row], Curves]:
    """Measure the parts one after another; return the lines of the tables, and the curves.

    `keep` is called with both after each part.
    """
    rows: list[Row] = []
    curves: Curves = {}
    for part in parts:
        began = time.perf_counter()
        say(f"{part} ...")
        with tempfile.TemporaryDirectory() as folder:
            try:
                for row in PARTS[part](Path(folder), sizes, curves):
                    rows.append(row)
                    say(f"  {row.case}: {row.what}: {row.text()} {row.note}")
            except Exception as error:  # one part that fails must not hide the others
                traceback.print_exc(file=sys.stderr)
                rows.append(Row(part, part, "all", note=f"{type(error).__name__}: {error}"))
        keep(rows, curves)
        say(f"{part}: {time.perf_counter() - began:.0f} s")
    return rows, curves


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", help=f"of {', '.join(PARTS)}; all by default")
    parser.add_argument("--case", action="append", help="only this network, flow or executor")
    parser.add_argument("--turns", type=int, help="how often each measurement is taken")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--pictures", type=Path)
    given = parser.parse_args()
    if unknown := set(given.parts) - set(PARTS):
        parser.error(f"unknown parts {sorted(unknown)}; choose of {', '.join(PARTS)}")

    import torch

    from benchmarks.bench import report

    torch.set_num_threads(given.threads)
    today, kept = date.today(), report.SOURCE / ".reflow" / "bench"
    page, images = (
        report.SOURCE / f"benchmarks/{today:%Y-%m}_bench.md",
        report.SOURCE / "docs/images",
    )
    some = given.parts or given.case or given.turns
    if given.quick or some:  # what is recorded is a whole run
        page, images = kept / "bench.md", kept
    page, images = given.out or page, given.pictures or images
    words = [*given.parts, *(f"--case '{case}'" for case in given.case or ())]
    words += [f"--turns {given.turns}"] if given.turns else []
    words += ["--quick"] if given.quick else []  # no path of this machine
    began, command = time.perf_counter(), ["python -m benchmarks.bench", *words]

    def keep(rows: list[Row], curves: Curves) -> None:
        minutes = f"{(time.perf_counter() - began) / 60:.1f}"
        about = {"date": str(today), "command": " ".join(command), "minutes": minutes}
        report.write(page, images, {**about, **report.machine()}, rows, curves)

    sizes = QUICK if given.quick else Sizes()
    if given.turns:
        sizes = replace(sizes, turns=given.turns, few=given.turns)
    if given.case:
        try:
            sizes = sizes.of(given.case)
        except ValueError as error:
            parser.error(f"--case: {error}")
    measure(given.parts or PARTS, sizes, lambda text: print(text, flush=True), keep)
    print(f"written: {page}, {page.with_suffix('.json')}, pictures in {images}")


if __name__ == "__main__":
    main()
