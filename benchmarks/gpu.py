"""Measure sampling and training on a GPU, as ratios taken in one run.

    python benchmarks/gpu.py [--device cuda] [--quick] [--out FILE.json]

Needs no project, and of packages only what fmcore imports. Every number is the median of repeats;
the settings that are compared take turns.
"""

import argparse
import itertools
import json
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fmcore.couple import Couple, couple
from fmcore.coupling.write import About, finish, table, write_shard
from fmcore.network.build import VelocityNetwork, build
from fmcore.network.images import UNet
from fmcore.network.mlp import MLP
from fmcore.network.store import save
from fmcore.solve.solver import Solver
from fmcore.tensors import independent
from fmcore.training.batches import shuffled_batches
from fmcore.training.fit import Train, fit, new_state
from fmcore.work.compute import Compute
from fmcore.work.work import Work

SHAPES = {"mlp": (64,), "unet": (1, 28, 28)}
NUMERICS = {
    "fp32": Compute(device="cuda"),
    "bf16": Compute(device="cuda", precision="bf16"),
    "bf16, compiled": Compute(device="cuda", precision="bf16", compile=True),
}


def made(kind: str, quick: bool) -> VelocityNetwork:
    """Return the network of params/digits.yaml or of params/fashion_mnist.yaml."""
    if kind == "mlp":
        return build(MLP(width=320, depth=3, time_features=64), SHAPES[kind], seed=0)
    sizes = (8, 16) if quick else (64, 128, 128)
    unet = UNet(name="unet", channels=sizes, blocks=1 if quick else 2, attend=(len(sizes) - 1,))
    return build(unet.model_copy(update={"head": 8 if quick else 32}), SHAPES[kind], seed=0)


def seconds(work: Callable[[], Any], device: torch.device, least: float) -> float:
    """Return the seconds of one call, from calls that together last for `least` seconds."""
    done, begun = 0, time.perf_counter()
    while True:
        work()
        done += 1
        if device.type == "cuda":
            torch.cuda.synchronize()
        if (spent := time.perf_counter() - begun) > least:
            return spent / done


def in_turn(
    works: dict[str, Callable[[], Any]], device: torch.device, least: float
) -> dict[str, list[float]]:
    """Return for each work the median seconds of a call, and the spread, over five turns."""
    for work in works.values():
        seconds(work, device, 0.0)
    found: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(5):
        for name, work in works.items():
            found[name].append(seconds(work, device, least))
    return {n: [statistics.median(s), min(s), max(s)] for n, s in found.items()}


def forward(kind: str, device: torch.device, quick: bool) -> dict[str, Any]:
    """Return samples per second of bare forward passes, by numerics and by rows of a call."""
    network = made(kind, quick).eval().requires_grad_(False).to(device)
    rates: dict[str, Any] = {}
    for name, compute in NUMERICS.items():
        if quick and compute.compile:
            continue
        call = compute.running(network)
        for rows in (256, 1024) if compute.compile else (64, 256, 512, 1024, 2048, 4096):
            x = torch.randn(rows, *SHAPES[kind], device=device)
            t = torch.full((rows,), 0.5, device=device)
            with torch.no_grad():
                took = in_turn({"call": partial(call, x, t, None)}, device, 0.05)
            rates[f"{name}, {rows} rows"] = rows / took["call"][0]
    return rates


def same_rows(kind: str, device: torch.device, quick: bool) -> dict[str, bool]:
    """Say for each size of a call whether a row's bytes equal those in a call of 4,096 rows."""
    network = made(kind, quick).eval().requires_grad_(False).to(device)
    x, t = torch.randn(4096, *SHAPES[kind], device=device), torch.full((4096,), 0.5, device=device)
    with torch.no_grad():
        whole = network(x, t, None)
        return {
            str(rows): bool((network(x[:rows], t[:rows], None) == whole[:rows]).all())
            for rows in (64, 256, 1000, 1024, 2048)
        }


def training(kind: str, device: torch.device, quick: bool) -> dict[str, Any]:
    """Return seconds of a training step at batch 256, by numerics and by deterministic or not."""
    pairs = independent(torch.randn(8192, *SHAPES[kind]))

    def steps(compute: Compute, exact: bool, tf32: bool) -> Callable[[], Any]:
        state = new_state(made(kind, quick).to(device), Train(steps=1_000_000, batch=256))
        stream = shuffled_batches(pairs, batch=256, seed=0)
        made_steps: Iterator[Any] = fit(
            state, stream, Train(steps=1_000_000, batch=256), seed=0, compute=compute
        )

        def ten() -> None:
            torch.use_deterministic_algorithms(exact, warn_only=True)
            torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = tf32
            for _ in itertools.islice(made_steps, 10):
                pass

        return ten

    works = {
        f"{name}{', any order' if not exact else ''}{', tf32' if tf32 else ''}": steps(
            c, exact, tf32
        )
        for name, c in NUMERICS.items()
        for exact, tf32 in ((True, False), (False, False), (False, True))
        if not (quick and c.compile) and (not tf32 or name == "fp32")
    }
    found = in_turn(works, device, 0.2)
    return {name: [s / 10 for s in took] for name, took in found.items()}


def coupling(kind: str, device: torch.device, quick: bool) -> dict[str, Any]:
    """Return samples per second of the verb `couple`, as evaluations, by batch and numerics."""
    rates: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        root, shape = Path(folder), SHAPES[kind]
        target = torch.randn(64, *shape)
        about = About(kind="independent", shape=list(shape), image=len(shape) > 1, pairs=64, seed=0)
        write_shard(root / "data", 0, table(about, np.arange(64), target))
        finish(root / "data", about, 1)
        save(root / "model", made(kind, quick).eval(), about={"round": "rf1"})
        pairs = 2000 if quick else 200_000 if kind == "mlp" else 16_384
        for name, batch in itertools.product(("fp32", "bf16"), (1024, 4096)):
            settings = Couple(
                pairs=pairs, shard=8192, batch=batch, solver=Solver(name="heun", steps=8)
            )
            out = root / f"{name}{batch}"
            work = Work(scratch=root / f"scratch{name}{batch}", device=device)
            work = Work(scratch=work.scratch, device=device, compute=NUMERICS[name])
            begun = time.perf_counter()
            couple(root / "model", root / "data", out, root / "m.json", settings, work)
            rates[f"{name}, batch {batch}"] = pairs * 16 / (time.perf_counter() - begun)
    return rates


def main() -> None:
    """Measure and print all parts, one line of JSON each."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    device = torch.device(given.device)
    gpu = torch.cuda.get_device_name() if device.type == "cuda" else platform.processor()
    found: dict[str, Any] = {"device": gpu, "torch": torch.__version__}
    print(json.dumps(found), flush=True)
    for kind, part in itertools.product(SHAPES, (same_rows, forward, training, coupling)):
        begun = time.perf_counter()
        try:
            result: Any = part(kind, device, given.quick)
        except Exception as error:  # one part that fails must not hide the others
            result = f"{type(error).__name__}: {error}"
        found[f"{part.__name__} {kind}"] = result
        print(f"{part.__name__} {kind} ({time.perf_counter() - begun:.1f} s)", flush=True)
        print(json.dumps(result), flush=True)
        if given.out:
            given.out.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
