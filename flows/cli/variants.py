"""Compute settings side by side: the network of params.yaml runs for seconds with each of them."""

import math
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import torch
from rich.table import Table
from torch import Tensor

from flows.cli.estimate import (
    SECONDS,
    Cost,
    duration,
    estimate,
    model_of,
    network_of,
    one_step,
)
from flows.cli.probe_data import some_data
from flows.dag import graph
from flows.params.load import FILE, load
from fmcore.coupling.noise import gaussian_noise
from fmcore.coupling.read import open_coupling
from fmcore.network.store import Model
from fmcore.network.store import load as load_model
from fmcore.sampling.flow import Flow
from fmcore.settings import ReflowError
from fmcore.training.batches import batches
from fmcore.work.compute import Compute, rows_of_call

BOUND = 1e-3
"""Change of the velocity up to which a setting is advised: the error that solver auto has."""
WORTH = 0.95
"""A setting is advised where the chain takes at most this share of the time without it."""
TURNS = 5
"""Measurements of each setting; the settings take turns."""
TIMES = (0.1, 0.3, 0.5, 0.7, 0.9)
"""Times at which velocities are compared."""
PLAIN = {"precision": "fp32", "compile": False, "channels_last": False, "cuda_graphs": False}
Begin = Callable[[str, int, int], object]
"""Called with what comes next, how much is done, and of how much."""


@dataclass(frozen=True)
class Variant:
    """The network with some compute settings: what they cost, and what they change.

    `step` and `call` are the seconds of a training step and of a network call in sampling, `start`
    those that the first of both took more. `change` is the RMS difference of the velocity from that
    of plain float32, over its RMS. `hours` are those of all trainings and couplings. Where the
    settings cannot be used, `refused` says why.
    """

    settings: dict[str, Any]
    start: float = math.nan
    step: float = math.nan
    call: float = math.nan
    change: float = math.nan
    hours: float = math.nan
    refused: str = ""

    @property
    def name(self) -> str:
        """The settings in words.

        >>> Variant({}).name, Variant({"precision": "bf16", "compile": True}).name
        ('plain fp32', 'bf16 + compile')
        """
        words = (key if value is True else str(value) for key, value in self.settings.items())
        return " + ".join(words) or "plain fp32"


@dataclass(frozen=True)
class Comparison:
    """The variants, plain float32 first. `given` is the section `compute` as params.yaml has it."""

    given: dict[str, Any]
    device: str
    model: str
    variants: list[Variant]

    def best(self, bound: float) -> Variant:
        """Return the fastest whose change is at most `bound`; plain where none is worth it."""
        plain = self.variants[0]
        good = [v for v in self.variants if not v.refused and v.change <= bound]
        fastest = min(good, key=lambda v: v.hours, default=plain)
        return fastest if fastest.hours <= WORTH * plain.hours else plain

    def line(self, variant: Variant) -> str:
        """Return the line of params.yaml that sets a variant."""
        kept = {k: v for k, v in self.given.items() if k not in PLAIN} | variant.settings
        shown = (f"{k}: {'true' if v is True else v}" for k, v in kept.items())
        return f"compute: {{{', '.join(shown)}}}"

    def advice(self, bound: float) -> Iterator[str]:
        """Yield where it was measured, what follows, and the line for params.yaml."""
        best = self.best(bound)
        yield f"measured on {self.device} with the weights of {self.model}"
        if best is self.variants[0]:
            yield f"nothing within a change of {bound:g} saves {1 - WORTH:.0%} of the time:"
        else:
            yield f"the fastest within a change of {bound:g} (other bits, so all stages run again):"
        yield self.line(best)

    def record(self, bound: float) -> dict[str, Any]:
        """Return all of it for programs."""
        best = self.best(bound)
        rows = [{"name": v.name, **_without_nan(asdict(v))} for v in self.variants]
        return {
            **{"device": self.device, "model": self.model, "bound": bound, "variants": rows},
            **{"advice": best.name, "line": self.line(best)},
        }


def compare(
    root: Path,
    *,
    pairs: int | None = None,
    seconds: float = SECONDS,
    begin: Begin = lambda what, done, of: None,
) -> Comparison:
    """Measure the network of the first round with each compute setting that may gain here.

    Each turn of a training step and of a network call takes about a fifth of `seconds`. The hours
    are those of `estimate` with plain float32, by these ratios.
    """
    params, stages = load(root / FILE), graph.read(root)
    device, plain = params.compute.start(), params.compute.model_copy(update=PLAIN)
    trainings = [(n, r.train) for n, r in params.rounds.items() if r.train]
    if not trainings:
        raise ReflowError("no round of params.yaml is trained, so no training can be measured")
    name, train = trainings[0]
    with tempfile.TemporaryDirectory(prefix="reflow-") as folder:
        data = some_data(root, params, graph.prepared(stages), Path(folder) / "data")
        model, trained = model_of(root, params, stages, name, data, Path(folder) / name)
        loaded = load_model(model, device=str(device))

        def probe(settings: dict[str, Any]) -> _Probe:
            compute = plain.model_copy(update=settings)
            network = network_of(root, params, stages, name, data)
            step, _ = one_step(network, train, data, compute)
            return _Probe(settings, step, _velocities(loaded, data, compute, device))

        probes = [probe(settings) for settings in worth_trying(loaded, device)]
        total = len(probes) + TURNS + 1
        for done, each in enumerate(probes):
            begin(f"{each.found.name}: first calls", done, total)
            each.first(probes[0])
        for turn in range(TURNS):
            begin(f"turn {turn + 1} of {TURNS}", len(probes) + turn, total)
            for each in probes:
                each.turn(seconds / TURNS)
        begin("the whole chain", total - 1, total)
        costs = estimate(root, pairs=pairs, seconds=seconds, compute=plain)
    return Comparison(
        params.compute.model_dump(exclude_unset=True),
        torch.cuda.get_device_name() if device.type == "cuda" else str(device),
        f"{name}, as trained" if trained else f"{name}, untrained",
        [each.result(probes[0], costs) for each in probes],
    )


def worth_trying(model: Model, device: torch.device) -> list[dict[str, Any]]:
    """Return the settings to be tried, none first: a layout only where there are convolutions."""
    convolves = any(p.ndim == 4 for p in model.network.parameters())
    half, compiled = {"precision": "bf16"}, {"compile": True}
    found: list[dict[str, Any]] = [{}, half, compiled, half | compiled]
    if convolves:
        found += [{"channels_last": True}, half | {"channels_last": True}]
    if device.type == "cuda":
        graphs = {"cuda_graphs": True}
        found += [graphs, half | graphs, half | compiled | graphs]
    return found


class _Probe:
    """One variant being measured: a training step, and a network call that returns velocities."""

    def __init__(
        self, settings: dict[str, Any], step: Callable[[], float], call: Callable[[], Tensor]
    ) -> None:
        self.found, self.step, self.call = Variant(settings), step, call
        self.steps: list[float] = []
        self.calls: list[float] = []
        self.velocity = torch.zeros(())

    def first(self, plain: "_Probe") -> None:
        """Make the first step and call, which compile; note how far the velocity is from plain."""
        began = time.perf_counter()
        try:
            self.step()
            self.velocity = self.call()
        except Exception as error:  # no compiler, an operation without a bfloat16 kernel
            said = str(error).strip().splitlines() or [""]
            self.found = replace(self.found, refused=f"{type(error).__name__}: {said[0]}")
            return
        start = time.perf_counter() - began
        change = float((self.velocity - plain.velocity).norm() / plain.velocity.norm())
        self.found = replace(self.found, start=start, change=change)

    def turn(self, seconds: float) -> None:
        """Measure the step and the call once more."""
        if not self.found.refused:
            self.steps.append(_each(self.step, seconds))
            self.calls.append(_each(self.call, seconds))

    def result(self, plain: "_Probe", costs: list[Cost]) -> Variant:
        """Return what was found; `costs` are those of plain."""
        if self.found.refused:
            return self.found
        step, call = median(self.steps), median(self.calls)
        start = max(0.0, self.found.start - step - call)
        ratio = {"steps": step / median(plain.steps), "pairs": call / median(plain.calls)}
        hours = sum(cost.hours * ratio[cost.unit] + start / 3600 for cost in costs)
        each = call / len(TIMES)
        return replace(self.found, start=start, step=step, call=each, hours=hours)


def _velocities(
    model: Model, data: Path, compute: Compute, device: torch.device
) -> Callable[[], Tensor]:
    """Return a function that calls the network as sampling does, once for each of TIMES.

    The points lie between data and noise. It returns the velocities, which waits for a GPU.
    """
    flow = Flow.of(model, compute)
    rows, target = rows_of_call(flow.tile, device), open_coupling(data)
    known = next(batches(target, batch=rows, seed=0, memory=1 << 28)).target
    x = known.repeat(-(-rows // len(known)), *[1] * (known.ndim - 1))[:rows]
    noise = gaussian_noise(0, torch.arange(rows).numpy(), tuple(x.shape[1:]))
    label = torch.zeros(rows, dtype=torch.int64, device=device) if flow.classes else None
    velocity, points = flow.tiled().velocity(label), []
    for time_ in TIMES:
        t = torch.full((1,), time_)
        a, b = float(flow.interpolant.alpha(t)), float(flow.interpolant.sigma(t))
        points.append(((a * x + b * noise).to(device), t.to(device).expand(rows)))

    def call() -> Tensor:
        with torch.no_grad():
            return torch.cat([velocity(x, t) for x, t in points]).cpu()

    return call


def _each(work: Callable[[], object], seconds: float) -> float:
    """Return the seconds that a call takes, from calls for about `seconds`."""
    began, calls = time.perf_counter(), 0
    while not calls or time.perf_counter() - began < seconds:
        work()
        calls += 1
    return (time.perf_counter() - began) / calls


def _without_nan(values: dict[str, Any]) -> dict[str, Any]:
    return {k: None if isinstance(v, float) and math.isnan(v) else v for k, v in values.items()}


def variant_table(found: Comparison) -> Table:
    """Return the variants as a table: a row for each."""
    plain = found.variants[0]
    shown = Table("compute", "training step", "sampling call", "start", "change", "whole chain")
    for column in shown.columns[1:]:
        column.justify = "right"
    for v in found.variants:
        if v.refused:
            shown.add_row(v.name, f"cannot be used: {v.refused}", "", "", "", "")
            continue
        shown.add_row(
            v.name,
            *(f"{1e3 * a:.3g} ms ({a / b:.2f})" for a, b in
              ((v.step, plain.step), (v.call, plain.call))),
            f"{v.start:.0f} s",
            f"{v.change:.1g}" if v is not plain else "0",
            duration(v.hours),
        )  # fmt: skip
    return shown
