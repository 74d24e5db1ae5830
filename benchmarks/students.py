"""All students of one coupling at equal compute: distance after 1, 2 and 4 steps, over seeds.

    python -m benchmarks.students --data digits|fashion [--minutes M | --steps S] [--seeds N]
        [--small | --quick] [--prepared FOLDER] [--only-prepare] [--fashion FOLDER] [--device cuda]
        [--out FOLDER]

A first round, its coupling and the yardstick are made once, into the folder `--prepared`, or read
from it. Every student starts from that round and learns that coupling for as many floating-point
operations as the others, counted by torch with backward passes and forward-mode products; a seed
decides the draws of the training. Each number is written as soon as it is there. Needs what
`benchmarks.fashion` needs, and for the digits scikit-learn, unless they are prepared.
"""

import argparse
import json
import math
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.gpu import hardware
from fmcore.calibrate import calibrate
from fmcore.choices.multistep import AdamsBashforth
from fmcore.couple import Couple, couple
from fmcore.coupling.compact import Store
from fmcore.coupling.noise import gaussian_noise
from fmcore.coupling.pairs import Pairs
from fmcore.coupling.read import open_coupling, read
from fmcore.dataset.public import Digits, FashionMNIST
from fmcore.features.extractor import FeatureSettings
from fmcore.initialise import initialise
from fmcore.matching.maps import Batch
from fmcore.measure.frechet import GaussianStats, frechet_distance
from fmcore.measure.real import features_of
from fmcore.measure.yardstick import Yardstick, YardstickSettings
from fmcore.measure.yardstick import load as load_yardstick
from fmcore.network.build import with_spans
from fmcore.network.flops import flops_of
from fmcore.network.images import UNet
from fmcore.network.mlp import MLP
from fmcore.network.store import Model, load
from fmcore.prepare import prepare
from fmcore.sampling.flow import Flow
from fmcore.settings import ReflowError, derive_seed
from fmcore.solve.solver import Solver
from fmcore.train import Train, train
from fmcore.training.batch import draw_batch
from fmcore.training.batches import shuffled_batches
from fmcore.training.checkpoint import State
from fmcore.training.fit import batch_rules, clip, map_of, new_state
from fmcore.training.gradient import Shared, network_of
from fmcore.training.processes import ALONE
from fmcore.work.compute import Compute
from fmcore.work.graphs import GraphedGradient
from fmcore.work.work import Work

NFE = (1, 2, 4)
PIECES = 4
"""Pieces of a path whose ends the coupling keeps, of a student that learns each as straight."""
SPANS = 0.5
"""Share of rows with a span, for every flow map."""
ROWS = 32
"""Rows of a batch whose operations are counted."""
STUDENTS: dict[str, dict[str, Any]] = {
    "rf2, continued": {},
    "one_step (point)": {"time": "point"},
    "four_step (grid)": {"time": {"name": "grid", "steps": 4}},
    "four pieces (PeRFlow)": {"pieces": PIECES},
    "four pieces (grid)": {"pieces": PIECES, "time": {"name": "grid", "steps": PIECES}},
    **{
        rule: {"objective": "mean_flow", "map": rule, "spans": SPANS}
        for rule in ("mean_flow", "improved", "shortcut", "consistency", "lagrangian")
    },
}


@dataclass(frozen=True)
class Plan:
    """What a data set is learned with."""

    data: Digits | FashionMNIST
    network: MLP | UNet
    first: int
    pairs: int
    lr: float
    batch: int
    yardstick: YardstickSettings
    solver: Solver | AdamsBashforth


def plan_of(given: argparse.Namespace) -> Plan:
    """Return what the data set that is asked for is learned with; little if quick."""
    few = given.quick
    epochs = 1 if few else (30 if given.data == "digits" else 2)
    features = FeatureSettings(kind="classifier", epochs=epochs)
    if given.data == "digits":
        return Plan(
            Digits(name="digits"),
            MLP(width=16 if few else 160, depth=3, time_features=64, time_frequency=4.0),
            5 if few else 5000, 512 if few else 60_000, 1e-3, given.batch,
            YardstickSettings(features=features, samples=100 if few else 898, splits=4),
            Solver(name="heun", steps=4 if few else 20),
        )  # fmt: skip
    channels, head = ((8, 8), 4) if few else ((64, 128), 32)
    network = UNet(name="unet", channels=channels, head=head, time_scale=10.0)
    if given.small:
        network = UNet(name="unet", patch=2, channels=(32, 64), head=32, time_scale=10.0)
    return Plan(
        FashionMNIST(name="fashion_mnist", root=given.fashion),
        network,
        5 if few else 1500 if given.small else 3000,
        512 if few else 10_000 if given.small else 40_000,
        1e-3 if given.small else 5e-4, given.batch,
        YardstickSettings(
            features=features, samples=100 if few else 1000 if given.small else 2500, splits=4
        ),
        AdamsBashforth(name="ab4", steps=4 if few else 24),
    )  # fmt: skip


@dataclass
class Run:
    """The folders of a run, its numerics, and what was found so far."""

    root: Path
    out: Path
    compute: Compute
    found: dict[str, Any] = field(default_factory=dict)
    began: float = field(default_factory=time.perf_counter)
    recorded: bool = True

    def write(self, name: str, value: Any) -> None:
        """Keep and print a number; write the table anew."""
        self.found[name] = value
        print(f"[{time.perf_counter() - self.began:6.1f}] {name}: {json.dumps(value)}", flush=True)
        (self.out / "students.json").write_text(json.dumps(self.found, indent=2) + "\n")
        (self.out / "students.md").write_text(page(self.found))

    @contextmanager
    def timed(self, verb: str) -> Iterator[Work]:
        """Give a verb its context, and write the seconds that it takes."""
        began, scratch = time.perf_counter(), self.root / "scratch" / verb
        yield Work(scratch=scratch, device=self.compute.start(), compute=self.compute)
        self.write(f"{verb}, s", round(time.perf_counter() - began, 1))


def make(run: Run, plan: Plan) -> None:
    """Make what all students share: the first round, its coupling, the yardstick."""
    root = run.root
    with run.timed("prepare"):
        prepare(root / "data", plan.data, seed=0)
    initialise(root / "data", root / "init", plan.network, seed=0)
    settings = Train(steps=plan.first, batch=plan.batch, lr=plan.lr)
    with run.timed("train@rf1") as work:
        files = (root / "rf1", root / "rf1.csv", root / "rf1.json")
        train(root / "data", root / "init", *files, settings, name="rf1", work=work)
    store = Store(source=False, target="float16", pieces=PIECES)
    with run.timed("couple@rf1") as work:
        settings_of_pairs = Couple(pairs=plan.pairs, solver=plan.solver, batch=2048, store=store)
        pairs = (root / "rf1", root / "data", root / "pairs", root / "pairs.json")
        couple(*pairs, settings_of_pairs, work)
    with run.timed("calibrate") as work:
        calibrate(root / "data", root / "yardstick", plan.yardstick, work)


@dataclass(frozen=True)
class Common:
    """What all students share, in memory."""

    rf1: Model
    pairs: Pairs
    yardstick: Yardstick
    noise: torch.Tensor

    @classmethod
    def of(cls, root: Path) -> "Common":
        """Read a prepared folder."""
        rf1, yardstick = load(root / "rf1"), load_yardstick(root / "yardstick")
        pairs = read(open_coupling(root / "pairs"), split="train")
        ids = np.arange(yardstick.samples)
        return cls(
            rf1, pairs, yardstick, gaussian_noise(derive_seed(0, "evaluate"), ids, rf1.shape)
        )


def settings_of(name: str, steps: int, batch: int, lr: float) -> Train:
    """Return how a student is trained: they differ in what they learn alone."""
    given = {"steps": steps, "batch": batch, "lr": lr, "warmup": min(100, steps // 10)}
    return Train.model_validate({**given, "loss": {"name": "pseudo_huber"}, **STUDENTS[name]})


def state_of(shared: Common, settings: Train, device: torch.device) -> State:
    """Return the state of a student before its first step: the weights of the first round."""
    network = deepcopy(shared.rf1.network)
    if settings.objective == "mean_flow":
        network = with_spans(network)
    return new_state(network.to(device), settings)


def operations(shared: Common, settings: Train) -> float:
    """Return the operations of a step for each row: loss, gradient, forward-mode products."""
    state = state_of(shared, settings, torch.device("cpu"))
    some = shared.pairs.rows(torch.arange(ROWS))
    t = settings.time.spread((torch.arange(ROWS) + 0.5) / ROWS)
    with_span = torch.arange(ROWS) < settings.spans * ROWS
    span = torch.where(with_span, t / 2, 0.0) if settings.objective == "mean_flow" else None
    batch = Batch(some.target, some.source, t, span=span)
    gradient = network_of(state.network, settings, Compute(), ALONE)
    return flops_of(lambda: gradient.gradients(batch)) / ROWS


def steps_of(
    run: Run, shared: Common, state: State, settings: Train, seed: int
) -> Iterator[torch.Tensor]:
    """Take the steps of a training on a GPU's recorded passes; yield the loss [] of each."""
    gradient: Shared = network_of(state.network, settings, run.compute, ALONE)
    device = gradient.weights[0].device
    if run.compute.cuda_graphs:
        replayed = GraphedGradient(gradient.of_batch, gradient.weights)
        gradient = replace(gradient, whole=replayed if run.recorded else None)
    rules = batch_rules(settings, 0)
    stream = shuffled_batches(shared.pairs, batch=settings.batch, seed=seed)
    for pairs in islice(stream, settings.steps):
        batch = draw_batch(pairs, rules, seed=seed, step=state.step, device=device)
        error, gradients = gradient.gradients(batch)
        clip(gradients, settings.clip)
        state.optimizer.step()
        state.ema.update_parameters(state.network)
        state.to_step(state.step + 1)
        yield error


def seconds_of(run: Run, shared: Common, settings: Train) -> float:
    """Return the seconds of a step, after some that are not counted."""
    device, took = run.compute.start(), []
    state = state_of(shared, settings, device)
    for error in steps_of(run, shared, state, settings, seed=0):
        float(error)  # waits for the device
        took.append(time.perf_counter())
    return (took[-1] - took[len(took) // 2]) / (len(took) - 1 - len(took) // 2)


def distances(shared: Common, state: State, settings: Train, compute: Compute) -> dict[str, float]:
    """Return the mean Frechet distance over the cuts of the yardstick, by steps of Euler."""
    network: Any = state.ema.module.eval().requires_grad_(False)
    about = {**shared.rf1.config, "objective": settings.objective, **map_of(settings)}
    flow, found = Flow.of(Model(network, about, ""), _without_graphs(compute)), {}
    n = int(shared.yardstick.about["n"])
    for nfe in NFE:
        x = flow.sample(shared.noise, Solver(name="euler", steps=nfe), batch=2048).x
        groups = flow.scale.inverse(x).split(n)
        each = [
            frechet_distance(
                GaussianStats.from_features(features_of(shared.yardstick.extractor, own)), cut.stats
            )
            for own, cut in zip(groups, shared.yardstick.cuts, strict=True)
        ]
        found[str(nfe)] = statistics.fmean(each)
    return found


def _without_graphs(compute: Compute) -> Compute:
    """Return the numerics of sampling: a few calls are not worth a recording."""
    return compute.model_copy(update={"cuda_graphs": False})


def budget_of(run: Run, shared: Common, given: argparse.Namespace, lr: float) -> dict[str, int]:
    """Return the steps of each student: equal operations, in the minutes that are given."""
    costs, seconds = {}, {}
    for name in STUDENTS:
        settings = settings_of(name, 6 if given.quick else 12, given.batch, lr)
        costs[name] = operations(shared, settings)
        try:
            seconds[name] = seconds_of(run, shared, settings)
        except (ReflowError, RuntimeError) as error:  # a forward-mode product may not be recorded
            if not run.compute.cuda_graphs or not run.recorded:
                raise
            run.recorded = False
            run.write("no step is recorded, for all alike", f"{name}: {str(error)[:300]}")
            return budget_of(run, shared, given, lr)
    run.write("operations of a step, a row", costs)
    run.write("seconds of a step, probed", seconds)
    each = given.minutes * 60 / given.seeds / sum(seconds[n] / costs[n] for n in STUDENTS)
    if given.steps:
        each = given.steps * costs["rf2, continued"]
    steps = {name: max(2, math.floor(each / costs[name])) for name in STUDENTS}
    run.write("steps", steps)
    return steps


def students(run: Run, shared: Common, given: argparse.Namespace, lr: float) -> None:
    """Train and measure every student with each seed, a whole seed after the other."""
    state = state_of(shared, settings_of("rf2, continued", 1, given.batch, lr), run.compute.start())
    run.write("rf1", distances(shared, state, Train(steps=1), run.compute))
    steps = budget_of(run, shared, given, lr)
    for seed in range(given.seeds):
        for name in STUDENTS:
            settings = settings_of(name, steps[name], given.batch, lr)
            state, began = state_of(shared, settings, run.compute.start()), time.perf_counter()
            try:
                losses = list(steps_of(run, shared, state, settings, seed))
                loss = float(torch.stack(losses[-50:]).mean())
                took = time.perf_counter() - began
                found: dict[str, Any] = distances(shared, state, settings, run.compute)
                found |= {"loss": loss, "seconds": round(took, 2)}
            except ReflowError as error:  # samples that are not finite, or a call not recorded
                found = {"failed": str(error)}
            run.write(f"{name}/{seed}", found)


def page(found: dict[str, Any]) -> str:
    """Return the table as Markdown, of the seeds that are there."""
    lines = ["| student | n | " + " | ".join(f"NFE {n}" for n in NFE) + " | steps | s |"]
    lines.append("|---" * (len(NFE) + 4) + "|")
    if rf1 := found.get("rf1"):
        lines.append("| rf1 | 1 | " + " | ".join(f"{rf1[str(n)]:.2f}" for n in NFE) + " | | |")
    for name in STUDENTS:
        own = [v for k, v in found.items() if k.rpartition("/")[0] == name and "failed" not in v]
        if own:
            values = [_mean([v[str(n)] for v in own]) for n in NFE]
            took = statistics.fmean(v["seconds"] for v in own)
            row = [name, str(len(own)), *values, f"{found['steps'][name]:,}", f"{took:.1f}"]
            lines.append("| " + " | ".join(row) + " |")
    return "\n".join(lines) + "\n"


def _mean(values: list[float]) -> str:
    """Return mean ± standard error; the mean alone of one value."""
    mean = statistics.fmean(values)
    if len(values) < 2:
        return f"{mean:.2f}"
    return f"{mean:.2f} ± {statistics.stdev(values) / math.sqrt(len(values)):.2f}"


def main() -> None:
    """Make what is missing, train all students, and write what was found into a folder."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", choices=("digits", "fashion"), required=True)
    parser.add_argument("--minutes", type=float, default=5.0, help="of all trainings together")
    parser.add_argument("--steps", type=int, help="of rf2, in place of minutes")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--small", action="store_true", help="a U-Net for two cores of a CPU")
    parser.add_argument("--quick", action="store_true", help="small networks, few steps and pairs")
    parser.add_argument("--prepared", type=Path, help="folder of what all students share")
    parser.add_argument("--only-prepare", action="store_true")
    parser.add_argument("--fashion", help="folder with the files of Fashion-MNIST")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--threads", type=int, default=8)
    parser.add_argument("--out", type=Path, default=Path("students"))
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    compute = Compute(device=given.device, threads=given.threads)
    if given.device == "cuda":
        compute = compute.model_copy(update={"precision": "bf16", "cuda_graphs": True})
    run = Run(given.prepared or given.out / "prepared", given.out, compute)
    run.write("hardware", hardware(compute.start()))
    plan = plan_of(given)
    if not (run.root / "yardstick").exists():
        make(run, plan)
    if not given.only_prepare:
        students(run, Common.of(run.root), given, plan.lr)


if __name__ == "__main__":
    main()
