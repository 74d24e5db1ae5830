"""Estimate the cost of a chain: run its networks and solvers for seconds on this machine."""

import math
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from rich.table import Table

from flows.cli.load import clock
from flows.cli.probe_data import some_data
from flows.dag import graph
from flows.dag.graph import prepared
from flows.params.adopted import teacher_of
from flows.params.load import FILE, Params, Round, load
from flows.stage.adopted import adopt_round
from flows.stage.imports import pairs_of
from fmcore.choices.multistep import AdamsBashforth
from fmcore.coupling.noise import gaussian_noise
from fmcore.coupling.read import open_coupling
from fmcore.network.build import VelocityNetwork, fitting
from fmcore.network.store import load as load_model
from fmcore.outside.imported import Imported, importer_of
from fmcore.sampling.flow import Flow
from fmcore.sampling.pairs import Couple
from fmcore.sampling.probe import Auto
from fmcore.sampling.sampler import sampler_of
from fmcore.solve.adaptive import Adaptive
from fmcore.training.batches import batches
from fmcore.training.fit import Train, fit, new_state
from fmcore.training.start import network_to_train
from fmcore.work.compute import Compute, rows_of_call
from fmcore.work.work import Work

SECONDS = 1.0
"""How long each probe takes, after a first call that is not counted."""


@dataclass(frozen=True)
class Cost:
    """The cost of one stage: `rate` is pairs or steps a second of one worker, `nfe` is per pair."""

    stage: str
    unit: str
    amount: int
    nfe: float | None
    rate: float
    hours: float
    bytes: int | None


def estimate(
    root: Path,
    *,
    pairs: int | None = None,
    seconds: float = SECONDS,
    begin: Callable[[str], object] = str,
    compute: Compute | None = None,
    params: Params | None = None,
) -> list[Cost]:
    """Return the cost of every training and coupling of params.yaml; runs no stage.

    `pairs` replaces the size of every coupling. Networks that are not trained yet are as fast as
    trained ones, except under an adaptive solver, whose NFE depends on the field. `begin` is
    called with the name of each stage before its probe. `compute` replaces that of params.yaml.
    With `params`, those of another file, nothing that the project has made is used.
    """
    stages = graph.read(root) if params is None else {}
    params = params or load(root / FILE)
    if compute is not None:
        params = params.model_copy(update={"compute": compute})
    params.compute.start()
    found: list[Cost] = []
    with tempfile.TemporaryDirectory(prefix="reflow-") as folder:
        data = some_data(root, params, prepared(stages), Path(folder) / "data")
        for name, round_ in params.rounds.items():
            if round_.train:
                begin(f"train@{name}")
                network = network_of(root, params, stages, name, data)
                found.append(_training(network, name, round_.train, data, params.compute, seconds))
            for key, coupling in params.couplings.items():
                if coupling.round == name and coupling.import_ is None:
                    begin(f"couple@{key}")
                    model, _ = model_of(root, params, stages, name, data, Path(folder) / name)
                    wanted = coupling.pairs if pairs is None else pairs
                    found.append(_coupling(params, key, coupling, model, data, wanted, seconds))
        for key, coupling in params.couplings.items():
            if coupling.import_ is not None:
                begin(f"couple@{key}")
                found.append(_import(root, params, key, data, pairs, seconds))
    return found


def model_of(
    root: Path,
    params: Params,
    stages: Mapping[str, graph.Stage],
    name: str,
    data: Path,
    folder: Path,
) -> tuple[Path, bool]:
    """Return the model of a round, and whether it is trained; else one is made in `folder`."""
    if trained := _trained(root, stages, name):
        return trained, True
    if teacher := teacher_of(params, name):  # its own network, as heavy as it is
        if lent := _trained(root, stages, teacher):
            return lent, False
        paths = {key: folder / key for key in ("out", "curve", "metrics")}
        adopt_round(root, params, teacher, {**paths, "coupling": data}, folder)
        return paths["out"], False
    return _untrained(params, params.rounds[name], data, folder), False


def _trained(root: Path, stages: Mapping[str, graph.Stage], name: str) -> Path | None:
    """Return the model of a round if dvc.yaml has the round and the model exists."""
    stage = stages.get(f"train@{name}")
    path = stage.paths.get("out") if stage else None
    return root / path if path and (root / path).is_dir() else None


def _untrained(params: Params, round_: Round, data: Path, folder: Path) -> Path:
    from fmcore.network.store import save

    given = open_coupling(data)
    about = given.about
    network = fitting(params.network, given.conditions, tuple(about.shape), seed=0)
    assert round_.train is not None
    interpolant = round_.train.interpolant.model_dump()
    said = {"round": folder.name, "interpolant": interpolant, **about.carried()}
    save(folder, network, about=said)
    return folder


def _training(
    network: VelocityNetwork,
    name: str,
    settings: Train,
    data: Path,
    compute: Compute,
    seconds: float,
) -> Cost:
    step, share = one_step(network, settings, data, compute)
    rate = share / _seconds_each(step, seconds, compute.start())
    hours = settings.steps / rate / 3600
    return Cost(f"train@{name}", "steps", settings.steps, None, rate, hours, None)


def network_of(
    root: Path, params: Params, stages: Mapping[str, graph.Stage], name: str, data: Path
) -> VelocityNetwork:
    """Return an untrained network for a round, or that of the teacher that it starts from."""
    if teacher_of(params, name) is None:
        given = open_coupling(data)
        return fitting(params.network, given.conditions, tuple(given.about.shape), seed=0)
    with tempfile.TemporaryDirectory(prefix="reflow-") as folder:
        model, _ = model_of(root, params, stages, name, data, Path(folder) / name)
        return load_model(model).network


def one_step(
    network: VelocityNetwork, settings: Train, data: Path, compute: Compute
) -> tuple[Callable[[], float], float]:
    """Return a training step as a function, and the share of the round's batch that it takes."""
    device = compute.start()
    network = network_to_train(network, settings, seed=0)
    batch = settings.batch // settings.processes
    # On a CPU a step takes a time proportional to its rows: some of them are enough.
    rows = min(batch, network.tile) if device.type == "cpu" else batch
    whole = {"accumulate": 1} if device.type == "cpu" else {}
    idle = {"drop_longest": 0.0, "pieces": 1}  # the data have no pairs, and no states of paths
    some = settings.model_copy(update={**idle, "steps": 10**9, "batch": rows, **whole})
    stream = batches(open_coupling(data), batch=rows, seed=0, memory=settings.memory_mb << 20)
    steps = fit(new_state(network.to(device), some), stream, some, seed=0, compute=compute)
    return lambda: float(next(steps).loss), rows / batch


USUALLY_CHOSEN = AdamsBashforth(name="ab4", steps=31)
"""What stands for solver auto before a round is trained (benchmarks/2026-11_pair_solvers.md)."""


def _coupling(
    params: Params, key: str, settings: Couple, model: Path, data: Path, pairs: int, seconds: float
) -> Cost:
    device = params.compute.start()
    work = Work(scratch=model, device=device, compute=params.compute)
    if isinstance(settings.solver, Auto):  # a probe of untrained weights says nothing
        settings = settings.model_copy(update={"solver": USUALLY_CHOSEN})
    sampler = sampler_of(model, data, settings, work)
    flow: Flow = sampler.flow
    rows = rows_of_call(flow.tile, device)
    noise = gaussian_noise(0, np.arange(rows), tuple(sampler.about.shape))
    label = torch.zeros(rows, dtype=torch.int64) if flow.classes else None
    solver = sampler.solver
    fixed = not isinstance(solver, Adaptive)
    if not isinstance(solver, Adaptive):
        solver = solver.model_copy(update={"steps": min(solver.steps, 2), "times": None})
    spent: list[float] = []

    def carry() -> None:
        found = flow.sample(
            noise, solver, device=device, batch=rows, label=label, guidance=settings.guidance
        )
        own = found.evaluations
        spent.append(found.nfe if own is None else float(own.double().mean()))

    each = _seconds_each(carry, seconds, device)
    nfe = float(sampler.about.nfe) if fixed and sampler.about.nfe else spent[-1]
    calls = -(-pairs // rows)
    audits = -(-calls // settings.audit_every)  # their pairs are solved again, in twice the steps
    rate = rows / (each * nfe / spent[-1] * (1 + 2 * audits / calls))
    vectors = settings.store.width(math.prod(sampler.about.shape), settings.mix.get("inverted", 0))
    size = round(pairs * (vectors + 12 + 8 * bool(flow.classes)))
    return Cost(f"couple@{key}", "pairs", pairs, nfe, rate, pairs / rate / 3600, size)


def _import(
    root: Path, params: Params, key: str, data: Path, pairs: int | None, seconds: float
) -> Cost:
    settings = pairs_of(root, params, key)
    assert isinstance(settings, Imported)
    importer = importer_of(data, settings, compared=False)  # the data may be noise in their place
    rows, wanted = len(settings.ids(0)), min(pairs or settings.count, settings.count)
    shard = importer.shard(0)
    rate = rows / _seconds_each(lambda: importer.packed(0), seconds, importer.device)
    size = round(shard.nbytes / rows * wanted)
    return Cost(f"couple@{key}", "pairs", wanted, None, rate, wanted / rate / 3600, size)


def _seconds_each(call: Callable[[], object], seconds: float, device: torch.device) -> float:
    """Return the seconds that a call takes: the mean over about `seconds` of calls."""
    call()
    now = clock(device.type, torch.get_num_threads())
    began, start, calls = time.perf_counter(), now(), 0
    while not calls or time.perf_counter() - began < seconds:
        call()
        calls += 1
    return (now() - start) / calls


def cost_table(costs: list[Cost]) -> Table:
    """Return the costs as a table: a row per stage."""
    shown = Table("stage", *("size", "NFE", "rate", "time", "disk"), show_footer=False)
    for column in shown.columns[1:]:
        column.justify = "right"
    for cost in costs:
        shown.add_row(
            cost.stage,
            f"{cost.amount:,} {cost.unit}",
            "" if cost.nfe is None else f"{cost.nfe:g}",
            f"{cost.rate:.3g} {cost.unit}/s",
            duration(cost.hours),
            "" if cost.bytes is None else f"{cost.bytes / 1e6:,.3g} MB",
        )
    return shown


def duration(hours: float) -> str:
    """Format a time for people.

    >>> duration(0.001), duration(0.5), duration(30)
    ('4 s', '30 min', '30 h')
    """
    if hours < 1 / 60:
        return f"{3600 * hours:.0f} s"
    if hours < 2:
        return f"{60 * hours:.0f} min"
    return f"{hours:.0f} h" if hours < 96 else f"{hours / 24:.0f} days"
