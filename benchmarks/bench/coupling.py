"""The verb `couple` over bare forward passes; workers; cost over the number of pairs."""

import importlib.util
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

import torch

import fmcore
from benchmarks.bench.cases import NETWORKS, model_and_data, network
from benchmarks.bench.turns import Point, Row, Sizes, best_batch, clock, fresh, in_turn, over
from fmcore.choices.solvers import sampler_name
from fmcore.couple import Couple, couple
from fmcore.sampling.pairs import SolverOfPairs
from fmcore.sampling.probe import Auto
from fmcore.work.executor import IN_PROCESS, Executor
from fmcore.work.work import Work

ONE_STEP = fmcore.Solver(name="euler", steps=1)
"""The cheapest solver, for what does not depend on the network."""


class Coupler:
    """A model whose coupling is sampled again and again, each time into a new folder."""

    def __init__(self, root: Path, name: str) -> None:
        self.root = root
        self.model, self.data = model_and_data(fresh(root), name)

    def run(self, settings: Couple, executor: Executor = IN_PROCESS) -> tuple[float, float, float]:
        """Return seconds, evaluations of the pairs, and pairs per second once all workers run."""
        folder, told = fresh(self.root), []

        def log(_: dict[str, float], done: int) -> None:
            told.append((time.perf_counter(), done))

        work = Work(scratch=folder / "scratch", log=log, executor=executor)
        out, metrics = folder / "out", folder / "metrics.json"
        with clock() as spent:
            couple(self.model, self.data, out, metrics, settings, work)
            took = spent()
        evaluations = settings.pairs * json.loads(metrics.read_text())["nfe"]
        shutil.rmtree(folder)
        folder.mkdir()  # the number of folders names the next one
        return took, evaluations, rate(told, executor.workers or 1)


def rate(told: list[tuple[float, int]], workers: int) -> float:
    """Return pairs per second from the first round of the workers' shards to the end.

    `told` has (seconds, pairs that are written) after each shard. Workers in step write a round of
    shards almost at once, so counting begins with the last shard of the first round.
    """
    (first, before), (last, after) = told[min(workers, len(told)) - 1], told[-1]
    return (after - before) / max(last - first, 1e-9)


def throughput(root: Path, sizes: Sizes) -> Iterator[Row]:
    """Yield evaluations per second of `couple` over those of bare forward passes."""
    for name, pairs in sizes.coupled.items():
        settings = Couple(pairs=pairs, shard=min(pairs, 4096))
        if name == "small U-Net":  # as its parameter file has it, for the shard
            solver = fmcore.Solver(name="heun", steps=sizes.slow_steps)
            settings = Couple(pairs=pairs, shard=min(pairs, 512), solver=solver)
        yield from _throughput(Coupler(fresh(root), name), name, settings, sizes)


def _throughput(coupler: Coupler, name: str, settings: Couple, sizes: Sizes) -> Iterator[Row]:
    net, shape = network(name), NETWORKS[name][1]
    rows, bare = best_batch(net, shape, sizes.batches)
    _, shared = best_batch(net, shape, sizes.batches, one_time=True)
    coupler.run(Couple(pairs=8, solver=ONE_STEP))  # what a first call loads is not timed
    took = 1.0

    def ours() -> float:
        nonlocal took
        took, evaluations, _ = coupler.run(settings)
        return evaluations / took

    def forward(rate: Callable[[float], float]) -> Callable[[], float]:
        return lambda: rate(min(took, 5.0))  # as long as ours took

    works = {"couple": ours, "bare": forward(bare), "shared": forward(shared)}
    found = in_turn(works, sizes.turns)
    what = "evaluations/s of `couple`, files, audit and checks included, over bare forwards"
    solver = None if settings.solver is None else _named(settings.solver)
    note = (
        f"{settings.pairs:,} pairs, solver {solver or 'by default'}; bare at {rows} rows, its best"
    )
    yield Row("coupling", name, what, over(found["couple"], found["bare"]), note=note)
    what = "the same over bare forwards that embed one t for all rows, as `couple` does"
    yield Row("coupling", name, what, over(found["couple"], found["shared"]))


def _named(solver: SolverOfPairs) -> str:
    return solver.name if isinstance(solver, Auto) else sampler_name(solver)


def workers(root: Path, sizes: Sizes) -> Iterator[Row]:
    """Yield the speed of two workers of one thread over that of one, by executor.

    Workers of every kind are started anew for each coupling, so the start-up is in the first ratio.
    """
    if (os.cpu_count() or 1) < 2 or torch.get_num_threads() > 1:
        yield Row("workers", "digits MLP", "2 workers over 1", note="needs 2 cores, 1 thread each")
        return
    coupler = Coupler(fresh(root), "digits MLP")
    settings = Couple(pairs=sizes.shared_pairs, shard=max(1, sizes.shared_pairs // 16))
    for kind, module in KINDS.items():
        if kind not in sizes.executors:
            continue
        case = f"digits MLP, {kind}"
        if module and importlib.util.find_spec(module) is None:
            yield Row("workers", case, "2 workers over 1", note=f"{module} is not installed")
            continue
        runs: dict[int, list[tuple[float, float, float]]] = {1: [], 2: []}
        for _ in range(sizes.few):
            for count, found in runs.items():
                found.append(coupler.run(settings, Executor(kind=kind, workers=count)))
        whole = over([r[0] for r in runs[1]], [r[0] for r in runs[2]])
        steady = over([r[2] for r in runs[2]], [r[2] for r in runs[1]])
        note = f"{settings.pairs:,} pairs in 16 shards, 1 thread a worker"
        yield Row("workers", case, "2 workers over 1, start-up included", whole, note=note)
        yield Row("workers", case, "2 workers over 1, after the first round of shards", steady)


KINDS: dict[Literal["processes", "ray", "dask"], str] = {
    "processes": "",
    "ray": "ray",
    "dask": "distributed",
}
"""The kinds of workers, and what has to be installed for them."""


def cost(root: Path, sizes: Sizes) -> tuple[list[Row], list[Point]]:
    """Return the cost of a pair by the number of pairs, over that of the second length."""
    coupler, base = Coupler(fresh(root), "2-D MLP"), sizes.lengths[1]
    settings = {n: Couple(pairs=n, solver=ONE_STEP) for n in sizes.lengths}
    works = {str(n): lambda s=s: coupler.run(s)[0] / s.pairs for n, s in settings.items()}
    found = in_turn(works, sizes.few)
    points: list[Point] = []
    rows = []
    for n in sizes.lengths:
        ratios = over(found[str(n)], found[str(base)])
        points += [{"pairs": n, "ratio": ratio} for ratio in ratios]
        if n != base:
            what = f"seconds a pair at {n:,} pairs over those at {base:,}"
            rows.append(Row("cost", "2-D MLP, one step of Euler", what, ratios))
    return rows, points
