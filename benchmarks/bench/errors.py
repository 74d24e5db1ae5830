"""The error of pairs over evaluations and over time: our solvers and those of other packages."""

import copy
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from statistics import median
from typing import Any, get_args

import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor

import fmcore
from benchmarks.bench import peers
from benchmarks.bench.cases import IMAGES, noise, trained
from benchmarks.bench.turns import Point, Row, Sizes, best_batch, clock
from fmcore.choices.solvers import OdeSolver, solver_of_pairs
from fmcore.sampling import probe
from fmcore.sampling.flow import mean_nfe
from fmcore.solve.solver import solve

GOAL = 1e-3
"""The error that the table asks for, RMS per coordinate in units of the model."""
Run = Callable[[], tuple[Tensor, float]]
"""A solver at work: it returns the endpoints and the NFE."""


def read(**given: Any) -> Any:
    """Return the solver of these settings, or None if there is none."""
    try:
        return TypeAdapter(OdeSolver).validate_python(given)
    except ValidationError:
        return None


def names() -> list[str]:
    """Return the names of all our solvers, of which `custom` is the user's."""
    kinds = get_args(get_args(OdeSolver)[0])
    found = [n for kind in kinds for n in get_args(kind.model_fields["name"].annotation)]
    return [name for name in dict.fromkeys(found) if name != "custom"]


def nfe_of(solver: Any) -> int:
    """Return the evaluations of a solver on a grid, counted."""
    return solve(lambda x, _: x, torch.zeros(1, 1), solver).nfe


def ours(sizes: Sizes) -> Iterator[tuple[str, Any]]:
    """Yield (name of the curve, solver) for every point of our curves."""
    for name in names():
        if (few := read(name=name, steps=8)) and (many := read(name=name, steps=16)):
            each = (nfe_of(many) - nfe_of(few)) / 8
            extra = nfe_of(few) - 8 * each
            steps = {int((nfe - extra) / each) for nfe in sizes.nfe}
            steps |= set(sizes.euler) if name == "euler" else set()
            yield from ((name, read(name=name, steps=n)) for n in sorted(steps) if n > 2)
        else:
            yield from ((name, read(name=name, rtol=e, atol=e)) for e in sizes.tolerances)


def chosen(flow: fmcore.Flow, sizes: Sizes) -> Iterator[tuple[str, Any]]:
    """Yield ("auto", solver) for what the solver `auto` chooses, by a probe of other sources.

    `auto` takes errors relative to the spread of the endpoints; here they are in model units.
    The error that it raises where it finds none takes the place of the solver.
    """
    assert flow.made_of is not None
    shape = flow.made_of[0].shape
    x = noise(probe.probes(math.prod(shape)), shape, seed=4)
    spread = float(flow.sample(x, fmcore.Solver()).x.std())
    for error in sizes.wanted:
        auto = probe.Auto(name="auto", error=min(0.1, error / spread))
        try:
            yield "auto", probe.Probe(flow, x).choose(auto)[0]
        except fmcore.ReflowError as refused:
            yield "auto", refused


def runs(flow: fmcore.Flow, x: Tensor, sizes: Sizes) -> Iterator[tuple[str, str, Run]]:
    """Yield (curve, whose, run) for all points of one flow."""

    def own(solver: Any) -> Run:
        def run() -> tuple[Tensor, float]:
            if isinstance(solver, fmcore.ReflowError):
                raise solver
            found = flow.sample(x, solver)
            return found.x, mean_nfe(found)

        return run

    assert flow.made_of is not None
    network = flow.made_of[0].network

    def theirs(make: Callable[[], peers.Solve]) -> Run:
        def run() -> tuple[Tensor, float]:
            calls = 0

            def v(x: Tensor, t: Tensor) -> Tensor:
                nonlocal calls
                calls += 1
                out: Tensor = network(x, t)
                return out

            with torch.no_grad():
                return make()(v, x), calls

        return run

    for name, solver in (*ours(sizes), *chosen(flow, sizes)):
        yield name, "ours", own(solver)
    yield "default of couple", "ours", own(solver_of_pairs(flow.interpolant))
    for name, package, make in peers.candidates(sizes):
        if not peers.missing(package):
            yield name, "peer", theirs(make)


def exact(flow: fmcore.Flow, x: Tensor, steps: int) -> Tensor:
    """Return the endpoints by rk4 in float64 with many steps."""
    assert flow.made_of is not None
    fine = replace(flow, network=copy.deepcopy(flow.made_of[0].network).double())
    return solve(fine.velocity(), x.double(), fmcore.Solver(name="rk4", steps=steps)).x


def curve(name: str, sizes: Sizes) -> Iterator[Point]:
    """Yield a point for every solver at every setting on the flow `name`, which is trained here.

    `wall` is the time in bare evaluations of all rows at their best batch.
    """
    sizes = sizes.for_images() if name == IMAGES else sizes
    flow = trained(name, sizes.fitted)
    assert flow.made_of is not None
    x = noise(sizes.points[name], flow.made_of[0].shape, seed=3)
    truth = exact(flow, x, sizes.exact_steps)
    _, rate = best_batch(flow.made_of[0].network, flow.made_of[0].shape, sizes.batches)
    walls: dict[int, list[float]] = {}
    points: dict[int, Point] = {}
    made = list(runs(flow, x, sizes))
    for turn in range(sizes.few):
        one = len(x) / rate(0.3)
        for number, (method, whose, run) in enumerate(made):
            if turn and number not in points:
                continue
            try:
                with clock() as spent:
                    end, nfe = run()
                    took = spent()
            except Exception as error:  # one solver that fails must not hide the others
                why = f"{type(error).__name__}: {error}".splitlines()[0]
                yield {"flow": name, "method": method, "whose": whose, "failed": why}
                continue
            walls.setdefault(number, []).append(took / one)
            rms = float((end.double() - truth).square().mean().sqrt())
            points[number] = {"flow": name, "method": method, "whose": whose, "nfe": nfe,
                              "rms": rms, "pairs": len(x), "steps": sizes.fitted}  # fmt: skip
    for number, point in points.items():
        yield {**point, "wall": median(walls[number])}


def table(points: list[Point]) -> list[Row]:
    """Return for each method and flow the least NFE from which on the error is 1e-3 at most."""
    rows = []
    measured = [p for p in points if "rms" in p]
    what = f"NFE from which on the RMS error is at most {GOAL:g}"
    for flow, method in dict.fromkeys((p["flow"], p["method"]) for p in measured):
        own = [p for p in measured if (p["flow"], p["method"]) == (flow, method)]
        own.sort(key=lambda p: p["nfe"])
        case = f"{flow}: {method}{' (ours)' if own[0]['whose'] == 'ours' else ''}"
        beyond = [i for i, p in enumerate(own) if not float(p["rms"]) <= GOAL]
        first = own[beyond[-1] + 1 if beyond else 0 :][:1]
        if first:
            note = f"error {first[0]['rms']:.1e}; wall {first[0]['wall']:.0f} bare evaluations"
            rows.append(Row("error", case, what, [float(first[0]["nfe"])], note=note))
        else:
            last = own[-1]
            note = f"{last['rms']:.1e} at NFE {last['nfe']:.0f}"
            note += f", wall {last['wall']:.0f} bare evaluations"
            rows.append(Row("error", case, what, note=note, without="not reached"))
    for point in points:
        if "failed" in point:
            case = f"{point['flow']}: {point['method']}"
            rows.append(Row("error", case, what, note=str(point["failed"])))
    for package in dict.fromkeys(p for _, p, _ in peers.candidates(Sizes())):
        if why := peers.missing(package):
            rows.append(Row("error", package, what, note=why))
    return rows


def draw(points: list[Point], file: str) -> None:
    """Draw error over NFE and over wall, ours as lines, those of other packages dashed."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.ticker import LogLocator, NullFormatter

    measured = [p for p in points if "rms" in p and math.isfinite(float(p["rms"]))]
    flows = list(dict.fromkeys(p["flow"] for p in measured))
    figure, axes = pyplot.subplots(
        len(flows), 2, figsize=(11, 4.2 * len(flows)), squeeze=False, sharey="row"
    )
    methods = list(dict.fromkeys((p["method"], p["whose"]) for p in measured))
    marks = "osv^D<>P*Xh"
    wheel = pyplot.get_cmap("tab20")
    colours = [wheel(n % 20) for n in (*range(0, 20, 2), *range(1, 20, 2))] * 2
    for row, flow in zip(axes, flows, strict=True):
        for axis, key in zip(row, ("nfe", "wall"), strict=True):
            for number, (method, whose) in enumerate(methods):
                own = [p for p in measured if (p["flow"], p["method"]) == (flow, method)]
                own.sort(key=lambda p: p[key])
                axis.plot(
                    [p[key] for p in own],
                    [p["rms"] for p in own],
                    f"{'-' if whose == 'ours' else '--'}{marks[number % len(marks)]}",
                    color=colours[number],
                    ms=4,
                    lw=1.6 if whose == "ours" else 0.9,
                    label=f"{method}{' (ours)' if whose == 'ours' else ''}",
                )
            axis.axhline(GOAL, color="gray", lw=0.5)
            axis.set_xscale("log")
            axis.set_yscale("log")
            axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axis.xaxis.set_major_formatter("{x:g}")
            axis.xaxis.set_minor_formatter(NullFormatter())
            axis.tick_params(axis="x", labelsize=8)
            axis.set_xlabel("NFE" if key == "nfe" else "time, in bare evaluations of all rows")
        row[0].set_ylabel("RMS error of a pair")
        one = next(p for p in measured if p["flow"] == flow)
        row[0].set_title(f"{flow}: {one['pairs']} pairs, a flow of {one['steps']} steps", size=9)
    figure.legend(*axes[0][0].get_legend_handles_labels(), loc="center right", fontsize=8)
    figure.tight_layout(rect=(0, 0, 0.82, 1))
    figure.savefig(file, dpi=110)
    pyplot.close(figure)
