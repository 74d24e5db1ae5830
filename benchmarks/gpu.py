"""The GPU suite: what has to be equal, and how fast it is, as ratios taken in one run.

    python -m benchmarks.gpu [PART ...] [--device cuda] [--quick] [--kinds mlp unet] [--turns 5]
                             [--out FOLDER]

Started in the root of the sources; needs torch, numpy, pandas, pyarrow, pydantic and safetensors.
The U-Net also needs diffusers, and is left out without it. Numbers are medians of the turns with
the least and the greatest; what is compared takes turns. FOLDER gets gpu.json and gpu.md.
"""

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import date
from functools import partial
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor, nn

from fmcore.couple import Couple, couple
from fmcore.coupling.read import open_coupling, read
from fmcore.coupling.write import About, finish, table, write_shard
from fmcore.network.build import VelocityNetwork, build
from fmcore.network.images import UNet
from fmcore.network.mlp import MLP
from fmcore.network.store import load, save
from fmcore.solve.solver import Solver
from fmcore.tensors import independent
from fmcore.train import Train, train
from fmcore.training.batches import shuffled_batches
from fmcore.training.fit import fit, new_state
from fmcore.work.compute import Compute, rows_of_call
from fmcore.work.work import Work
from fmcore.work.workers import start_workers

SHAPES = {"mlp": (64,), "unet": (1, 28, 28)}
ROWS = {"mlp": (1024, 4096, 16384), "unet": (1024, 4096)}
TURNS = 5
COUPLING_SECONDS = 6
NFE = 16
SHORT = Couple(pairs=1000, shard=300, solver=Solver(name="heun", steps=NFE // 2))
Found = dict[str, Any]
Results = Iterator[tuple[str, Any]]


class Killed(BaseException):
    """Stands for SIGKILL."""


@dataclass
class Suite:
    """One run: its device, whether it is a quick one, and a folder for files."""

    device: torch.device
    quick: bool
    root: Path
    turns: int = TURNS
    made: int = field(default=0, init=False)

    def numerics(self, kind: str) -> dict[str, Compute]:
        """Return the settings that are compared; a quick run compiles nothing."""
        plain = Compute(device="cuda" if self.device.type == "cuda" else "cpu", threads=1)
        found: dict[str, Any] = {"fp32": {}, "bf16": {"precision": "bf16"}}
        if kind == "unet":
            found["bf16, channels last"] = {"precision": "bf16", "channels_last": True}
        found["fp32, graphs"] = {"cuda_graphs": True}
        found["bf16, graphs"] = {"precision": "bf16", "cuda_graphs": True}
        if not self.quick:
            found["bf16, compiled"] = {"precision": "bf16", "compile": True}
        return {name: plain.model_copy(update=update) for name, update in found.items()}

    def network(self, kind: str) -> VelocityNetwork:
        """Return the network of params/digits.yaml or of params/fashion_mnist.yaml."""
        if kind == "mlp":
            mlp = MLP(width=320, depth=3, time_features=64)
            small = MLP(width=16, depth=1, time_features=8)
            return build(small if self.quick else mlp, SHAPES[kind], seed=0)
        return build(self.unet(), SHAPES[kind], seed=0)

    def unet(self) -> UNet:
        """Return the settings of the U-Net."""
        if self.quick:
            return UNet(name="unet", channels=(8, 8), head=4)
        return UNet(name="unet", channels=(64, 128, 128), blocks=2, attend=(2,), head=32)

    def folder(self) -> Path:
        """Return a new empty folder."""
        self.made += 1
        path = self.root / str(self.made)
        path.mkdir()
        return path

    def start(self, kind: str, rows: int) -> Path:
        """Return a folder with data of noise and a model whose weights are not those of a start."""
        root, shape = self.folder(), SHAPES[kind]
        draw = torch.Generator().manual_seed(0)
        about = About(
            kind="independent", shape=list(shape), image=len(shape) > 1, pairs=rows, seed=0
        )
        target = torch.randn(rows, *shape, generator=draw)
        write_shard(root / "data", 0, table(about, np.arange(rows), target))
        finish(root / "data", about, 1)
        network = self.network(kind).eval()
        with torch.no_grad():
            for p in network.parameters():
                p.add_(torch.randn(p.shape, generator=draw), alpha=0.02)
        save(root / "model", network, about={"round": "rf1"})
        return root

    def seconds(self, work: Callable[[], Any], least: float) -> float:
        """Return the seconds of one call, from calls that together last for `least` seconds."""
        done, began = 0, time.perf_counter()
        while True:
            work()
            done += 1
            if self.device.type == "cuda":
                torch.cuda.synchronize()
            if (spent := time.perf_counter() - began) > least:
                return spent / done

    def in_turn(
        self, works: Mapping[str, Callable[[], Any]], least: float, *, first: bool = True
    ) -> dict[str, list[float]]:
        """Return for each work the seconds of a call in each turn; a first one does not count."""
        for work in works.values() if first else ():
            self.seconds(work, 0.0)
        found: dict[str, list[float]] = {name: [] for name in works}
        for _ in range(2 if self.quick else self.turns):
            for name, work in works.items():
                found[name].append(self.seconds(work, 0.02 if self.quick else least))
        return found


def sampled(
    suite: Suite, root: Path, compute: Compute, *, kill_at: int = 0, behind: bool | None = None,
    seen: Callable[[int], object] = lambda _: None, **settings: Any,
) -> dict[str, bytes]:  # fmt: skip
    """Return the files of a coupling of the model in `root`; `seen` is called after each shard."""

    def log(values: dict[str, float], done: int) -> None:
        seen(done)
        if kill_at and done >= kill_at:
            raise Killed

    out = suite.folder()
    small = {"pairs": 120, "shard": 50} if suite.quick else {}
    given = SHORT.model_copy(update=small | settings)
    work = Work(scratch=out / "scratch", device=compute.start(), compute=compute, log=log)
    files = (root / "model", root / "data", out / "coupling", out / "metrics.json")
    with patch("fmcore.couple.start_workers", partial(start_workers, behind=behind)):
        try:
            couple(*files, given, work)
        except Killed:
            couple(*files, given, Work(scratch=work.scratch, device=work.device, compute=compute))
    return {p.name: p.read_bytes() for p in files[2].iterdir()}


def trained(suite: Suite, root: Path, compute: Compute, *, kill_at: int = 0) -> dict[str, Tensor]:
    """Return the averaged weights after some steps of training."""

    def log(values: dict[str, float], step: int) -> None:
        if kill_at and step >= kill_at and "loss" in values:
            raise Killed

    out, few = suite.folder(), 20 if suite.quick else 60
    given = Train(steps=few, batch=64, log_every=5, checkpoint_every=10, memory_mb=256)
    work = Work(scratch=out / "scratch", device=compute.start(), compute=compute, log=log)
    files = (root / "data", root / "model", out / "model", out / "curve.csv", out / "metrics.json")
    try:
        train(*files, given, name="rf1", work=work)
    except Killed:
        again = Work(scratch=work.scratch, device=work.device, compute=compute)
        train(*files, given, name="rf1", work=again)
    return {n: p.detach() for n, p in load(files[2]).network.named_parameters()}


def equal(suite: Suite, kind: str) -> Results:
    """Say what gives the same bytes again, and how far the device is from the CPU."""
    root = suite.start(kind, 500)
    cpu, named = Compute(device="cpu", threads=1), suite.numerics(kind)
    weights, plain = trained(suite, root, named["fp32"]), sampled(suite, root, named["fp32"])

    def same(other: dict[str, Tensor]) -> bool:
        return all(torch.equal(weights[name], other[name]) for name in weights)

    yield "training again: the same bytes", same(trained(suite, root, named["fp32"]))
    killed = trained(suite, root, named["fp32"], kill_at=15)
    yield "training after a kill: the same bytes", same(killed)
    for name, compute in named.items():
        whole = plain if name == "fp32" else sampled(suite, root, compute)
        for what, other in {
            "again": sampled(suite, root, compute),
            "after a kill": sampled(suite, root, compute, kill_at=100 if suite.quick else 300),
            "in batches of 257": sampled(suite, root, compute, batch=257),
            "written behind sampling": sampled(suite, root, compute, behind=True),
            "written in turn": sampled(suite, root, compute, behind=False),
        }.items():
            yield f"coupling, {name}, {what}: the same bytes", whole == other
    there = trained(suite, root, cpu)
    apart = max(_apart(weights[n], there[n]) for n in there)
    yield "weights, furthest tensor from the CPU's", apart
    ends = {n: _target(suite, root, c) for n, c in {"cpu": cpu, **named}.items()}
    for name in named:
        yield f"targets, {name}, from those of the CPU", _apart(ends[name], ends["cpu"])


def _target(suite: Suite, root: Path, compute: Compute) -> Tensor:
    sampled(suite, root, compute, pairs=100)
    return read(open_coupling(suite.root / str(suite.made) / "coupling")).target


def _apart(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm().clamp(min=1e-12))


def forward(suite: Suite, kind: str) -> Found:
    """Return evaluations a second of bare forward passes, by numerics and rows of a call."""
    network = suite.network(kind).eval().requires_grad_(False).to(suite.device)
    works, rows_of = {}, {}
    for name, compute in suite.numerics(kind).items():
        call = compute.sampling(network)
        for rows in (32, 64) if suite.quick else ROWS[kind]:
            x = torch.randn(rows, *SHAPES[kind], device=suite.device)
            t = torch.full((1,), 0.5, device=suite.device).expand(rows)
            works[f"{name}, {rows} rows"] = partial(torch.no_grad()(call), x, t, None)
            rows_of[f"{name}, {rows} rows"] = rows
    # Each number of rows gets kernels of its own, as in a process that calls with one only.
    with torch._dynamo.config.patch(automatic_dynamic_shapes=False):
        took = suite.in_turn(works, 0.1)
    return {name: _shown([rows_of[name] / s for s in took[name]]) for name in works}


def coupling(suite: Suite, kind: str) -> Results:
    """Yield evaluations a second of `couple` over bare forward passes with the same numerics.

    Those of the fastest bare passes of this run, and float32. From the start of the verb to the
    last of its files; audit and checks are not counted as evaluations. Kernels are compiled before.
    """
    rates = forward(suite, kind)
    for name, rate in rates.items():
        yield f"evaluations/s of bare forwards, {name}", rate
    best = max(rates, key=lambda name: float(rates[name][0]))
    yield "fastest bare forward", best
    root, numerics, shard = suite.start(kind, 64), suite.numerics(kind), 4096
    for name in dict.fromkeys((best.rpartition(", ")[0], "fp32")):
        bare = max(float(rates[n][0]) for n in rates if n.rpartition(", ")[0] == name)
        shards = max(2, round(bare * COUPLING_SECONDS / NFE / shard))
        pairs, shard = (100, 50) if suite.quick else (shards * shard, shard)
        run = partial(sampled, suite, root, numerics[name], batch=4096, shard=shard)
        run(pairs=shard)
        turns = {
            what: partial(run, behind=behind, pairs=pairs)
            for what, behind in (("behind", True), ("in turn", False))
        }
        for what, seconds in suite.in_turn(turns, 0.0, first=False).items():
            ratios = [pairs * NFE / s / bare for s in seconds]
            yield f"{name}, {pairs} pairs, written {what}, over bare", _shown(ratios)


def large(suite: Suite, kind: str) -> Results:
    """Yield evaluations a second of large couplings over bare passes: compiled, bf16, CUDA graphs.

    Whole, and from the third shard to the last: what starts and ends a coupling falls with its
    size. What bare passes take is measured before, in calls of as many rows.
    """
    compute = suite.numerics(kind)["bf16"].model_copy(
        update={"cuda_graphs": True, "compile": not suite.quick}
    )
    network = suite.network(kind).eval().requires_grad_(False).to(suite.device)
    rows = rows_of_call(network.tile, suite.device)
    call, x = compute.sampling(network), torch.randn(rows, *SHAPES[kind], device=suite.device)
    t = torch.full((1,), 0.5, device=suite.device).expand(rows)
    bare = suite.in_turn({"bare": partial(torch.no_grad()(call), x, t, None)}, 1.0)["bare"]
    rate = rows / statistics.median(bare)
    yield f"ms of a bare call of {rows} rows", _shown([1000 * s for s in bare])
    root, shard = suite.start(kind, 64), 50 if suite.quick else 4096
    run = partial(sampled, suite, root, compute, batch=shard, shard=shard)
    run(pairs=shard)
    for shards, behind in ((4, True),) if suite.quick else ((16, True), (16, False), (64, True)):
        times: list[float] = []
        began = time.perf_counter()
        run(pairs=shards * shard, behind=behind, seen=lambda _: times.append(time.perf_counter()))  # noqa: B023
        took = time.perf_counter() - began
        middle = (len(times) - 3) * shard / (times[-1] - times[2])
        what = f"{shards * shard} pairs, written {'behind' if behind else 'in turn'}"
        yield f"{what}, over bare", round(shards * shard * NFE / took / rate, 3)
        yield f"{what}, over bare without start and end", round(middle * NFE / rate, 3)
        yield f"{what}, seconds to the first shard", round(times[0] - began, 2)


def training(suite: Suite, kind: str) -> Results:
    """Yield steps a second of `fit` over a bare loop with the same numerics, and its seconds."""
    pairs = independent(
        torch.randn(4096, *SHAPES[kind], generator=torch.Generator().manual_seed(1))
    )
    batch = 32 if suite.quick else 256
    for name, compute in suite.numerics(kind).items():
        compute.start()
        settings = Train(steps=10**6, batch=batch, ema=0.999)
        state = new_state(suite.network(kind).to(suite.device), settings)
        stream = shuffled_batches(pairs, batch=batch, seed=0)
        steps = fit(state, stream, settings, seed=0, compute=compute)

        def ours(steps: Any = steps) -> None:
            for _ in islice(steps, 10):
                pass

        works = {"fit": ours, "bare": bare(suite, kind, compute, batch)}
        took = suite.in_turn(works, 0.5)
        ratios = [b / a for a, b in zip(took["fit"], took["bare"], strict=True)]
        yield f"{name}, steps/s over a bare loop", _shown(ratios)
        yield f"{name}, ms a step", _shown([100 * s for s in took["fit"]])


def bare(suite: Suite, kind: str, compute: Compute, batch: int) -> Callable[[], None]:
    """Return ten steps with nothing but the step: data on the device, fused AdamW, clip, EMA."""
    network = suite.network(kind).to(suite.device).train()
    mine = list(network.parameters())
    values: list[Tensor] = list(mine)
    kept = [p.detach().clone() for p in mine]
    optimizer = torch.optim.AdamW(mine, lr=1e-3, weight_decay=0.0, fused=True)
    x = torch.randn(4096, *SHAPES[kind], device=suite.device)
    call, wide = compute.running(network), (-1, *[1] * len(SHAPES[kind]))

    def ten() -> None:
        for _ in range(10):
            rows = torch.randint(len(x), (batch,), device=suite.device)
            target, source = x[rows], torch.randn_like(x[:batch])
            t = torch.rand(batch, device=suite.device)
            at = torch.lerp(target, source, t.reshape(wide))
            loss = nn.functional.mse_loss(call(at, t, None), source - target)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(mine, 1.0, foreach=True)
            optimizer.step()
            with torch.no_grad():
                torch._foreach_lerp_(kept, values, 0.001)

    return ten


def profile(suite: Suite, kind: str) -> Results:
    """Yield where the time of a coupling, and of a step, goes: operations that take longest."""
    root, compute = suite.start(kind, 64), suite.numerics(kind)["bf16"]
    few = suite.quick
    couples = partial(sampled, suite, root, compute, pairs=100 if few else 8192, batch=4096)
    runs: dict[str, Callable[[], Any]] = {
        "coupling": couples,
        "ten steps": bare(suite, kind, compute, 32 if few else 256),
    }
    for name, run in runs.items():
        for what, spent in _longest(suite, run):
            yield f"{name}: {what}", spent


def _longest(suite: Suite, run: Callable[[], Any]) -> Results:
    """Yield the eight operations of a second call that take longest."""
    run()
    activities = [torch.profiler.ProfilerActivity.CPU]
    if suite.device.type == "cuda":
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=activities) as seen:
        run()

    def own(event: Any) -> float:
        return float(event.self_device_time_total or event.self_cpu_time_total)

    events = sorted(seen.key_averages(), key=own, reverse=True)[:8]
    for e in events:
        yield e.key[:60], f"{own(e) / 1e3:.3g} ms in {e.count} calls"


PARTS = {
    "equal": equal,
    "coupling": coupling,
    "large": large,
    "training": training,
    "profile": profile,
}


def _shown(values: list[float]) -> list[float]:
    """Return the median, the least and the greatest."""
    return [float(f"{v:.4g}") for v in (statistics.median(values), min(values), max(values))]


def hardware(device: torch.device) -> Found:
    """Return what the numbers belong to."""
    found = {"date": str(date.today()), "python": platform.python_version()}
    found |= {"torch": torch.__version__, "cores": str(os.cpu_count()), "device": str(device)}
    if device.type == "cuda":
        one = torch.cuda.get_device_properties(device)
        found["gpu"] = f"{one.name}, {one.total_memory / 2**30:.0f} GiB, {one.major}.{one.minor}"
        found["cuda"] = str(torch.version.cuda)
    return found


def page(found: Found) -> str:
    """Return the results as Markdown."""
    lines = ["# The GPU suite", ""]
    for part, values in found.items():
        lines += [f"## {part}", "", "| what | found |", "|---|---|"]
        for what, value in values.items() if isinstance(values, dict) else [("", values)]:
            shown = (
                f"**{value[0]:g}** ({value[1]:g}-{value[2]:g})"
                if isinstance(value, list)
                else value
            )
            lines.append(f"| {what} | {shown} |")
        lines.append("")
    return "\n".join(lines)


def main() -> None:
    """Measure the parts and write the page after each number, as a run may be cut short."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", help=f"of {', '.join(PARTS)}; all by default")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--quick", action="store_true", help="small sizes, to try the script")
    parser.add_argument("--out", type=Path, default=Path("gpu"))
    parser.add_argument("--turns", type=int, default=TURNS, help="of each measurement")
    parser.add_argument("--kinds", nargs="*", choices=SHAPES, default=list(SHAPES))
    given = parser.parse_args()
    device = torch.device(given.device)
    found: Found = {"hardware": hardware(device)}
    given.out.mkdir(parents=True, exist_ok=True)
    kinds = [k for k in given.kinds if k != "unet" or find_spec("diffusers")]
    if kinds != given.kinds:
        found["unet"] = "left out: diffusers is not installed"
    for kind in kinds:
        for part in given.parts or PARTS:
            began, mine = time.perf_counter(), found.setdefault(f"{part} {kind}", {})
            with tempfile.TemporaryDirectory() as folder:
                suite = Suite(device, given.quick, Path(folder), given.turns)
                for what, value in _without_stopping(PARTS[part](suite, kind)):
                    mine[what] = value
                    print(f"{part} {kind}: {what}: {json.dumps(value)}", flush=True)
                    (given.out / "gpu.json").write_text(json.dumps(found, indent=2) + "\n")
                    (given.out / "gpu.md").write_text(page(found))
            print(f"{part} {kind} took {time.perf_counter() - began:.0f} s", flush=True)


def _without_stopping(results: Results) -> Results:
    """Yield the results, and the error that ends them: one part must not hide the others."""
    try:
        yield from results
    except Exception as error:
        yield "error", f"{type(error).__name__}: {error}".splitlines()[0]


if __name__ == "__main__":
    main()
