"""A two-round chain on Fashion-MNIST by the verbs alone: quality, seconds of each verb, pictures.

    python -m benchmarks.fashion [--device cuda] [--quick] [--fashion FOLDER] [--out FOLDER]

Started in the root of the sources; needs what `benchmarks.gpu` needs, diffusers, and the files of
Fashion-MNIST. A quick run has the digits of scikit-learn and a few steps, to try the script. Each
number is written as soon as it is there; the yardstick is fitted while round 1 trains.
"""

import argparse
import json
import shutil
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu import hardware
from fmcore.calibrate import calibrate
from fmcore.choices.laws import Beta
from fmcore.choices.multistep import AdamsBashforth
from fmcore.couple import Couple, couple
from fmcore.dataset.public import Digits, FashionMNIST
from fmcore.evaluate import Evaluate, EvaluatePaths, evaluate
from fmcore.features.extractor import FeatureSettings
from fmcore.initialise import initialise
from fmcore.matching.loss import Loss
from fmcore.measure.yardstick import YardstickSettings
from fmcore.network.images import UNet
from fmcore.prepare import prepare
from fmcore.solve.solver import Solver
from fmcore.train import Train, train
from fmcore.work.compute import Compute
from fmcore.work.work import Work

NETWORK = UNet(name="unet", channels=(64, 128, 128), blocks=2, attend=(2,), head=32)
LATE = Beta(name="beta", a=1.5, b=0.5)
PAIRS_BY = AdamsBashforth(name="ab4", steps=20, shift=0.5)


@dataclass
class Chain:
    """The folder of a chain, its numerics, and what was found so far."""

    root: Path
    out: Path
    compute: Compute
    quick: bool
    began: float = field(default_factory=time.perf_counter)
    found: dict[str, Any] = field(default_factory=dict)

    def write(self, name: str, value: Any) -> None:
        """Keep and print a number."""
        self.found[name] = value
        print(f"[{time.perf_counter() - self.began:6.1f}] {name}: {json.dumps(value)}", flush=True)
        (self.out / "fashion.json").write_text(json.dumps(self.found, indent=2) + "\n")

    @contextmanager
    def timed(self, verb: str) -> Iterator[Work]:
        """Give a verb its context, and write the seconds that it takes."""
        began = time.perf_counter()
        scratch = self.root / "scratch" / verb
        yield Work(scratch=scratch, device=self.compute.start(), compute=self.compute)
        self.write(f"{verb}, s", round(time.perf_counter() - began, 1))


def yardstick(root: Path, quick: bool) -> float:
    """Fit the yardstick of the data in `root`, on CPU cores beside the GPU; return its seconds."""
    torch.set_num_threads(1 if quick else 8)
    began, most = time.perf_counter(), 100 if quick else 2500
    features = FeatureSettings(kind="classifier", epochs=1 if quick else 2)
    settings = YardstickSettings(features=features, samples=most, splits=4)
    calibrate(root / "data", root / "yardstick", settings, Work(scratch=root / "calibrate"))
    return time.perf_counter() - began


def trained(chain: Chain, number: int, coupling: str, settings: Train) -> None:
    """Train round `number` on a coupling, from the model before it."""
    root, name = chain.root, f"rf{number}"
    files = (root / name, root / f"{name}.csv", root / f"{name}_train.json")
    before = root / (f"rf{number - 1}" if number > 1 else "init")
    with chain.timed(f"train@{name}") as work:
        train(root / coupling, before, *files, settings, name=name, work=work)
    chain.write(f"train@{name}", json.loads(files[2].read_text()))
    shutil.copy(files[1], chain.out)


def measured(chain: Chain, number: int, coupling: str, settings: Evaluate) -> None:
    """Evaluate round `number`, and keep its table and samples."""
    root, name = chain.root, f"rf{number}"
    tables = (root / f"{name}.json", root / f"{name}_fd.csv", root / f"{name}_gap.csv")
    given = (root / name, root / "data", root / coupling, root / "yardstick")
    paths = EvaluatePaths(*given, *tables, root / f"{name}_pictures")
    with chain.timed(f"evaluate@{name}") as work:
        chain.write(f"evaluate@{name}", evaluate(paths, settings, work))
    shutil.copy(paths.out / "samples.png", chain.out / f"{name}_samples.png")


def run(chain: Chain, data: FashionMNIST | Digits) -> None:
    """Run the chain: two rounds, and the yardstick beside the first."""
    few, root = chain.quick, chain.root
    network = UNet(name="unet", channels=(8, 8), head=4) if few else NETWORK
    with chain.timed("prepare"):
        prepare(root / "data", data, seed=0)
    initialise(root / "data", root / "init", network, seed=0)
    steps, batch = ((5, 5), 32) if few else ((4000, 3500), 256)
    common: dict[str, Any] = {"batch": batch, "warmup": 200, "ema": 0.999}
    first = Train(steps=steps[0], lr=5e-4, **common)
    second = Train(steps=steps[1], lr=3e-4, time=LATE, loss=Loss(name="pseudo_huber"), **common)
    nfe = (1, 2) if few else (1, 2, 4, 8, 16, 32)
    shown = Evaluate(
        nfe=nfe, solver=Solver(name="heun", steps=16), trajectories=64 if few else 2048,
        reconstructions=16 if few else 512, weights=(), batch=2048,
    )  # fmt: skip
    with ProcessPoolExecutor(1, get_context("spawn")) as beside:
        fitting = beside.submit(yardstick, root, few)
        trained(chain, 1, "data", first)
        with chain.timed("couple@rf1") as work:
            pairs = Couple(pairs=64 if few else 40_000, solver=PAIRS_BY, batch=2048)
            couple(root / "rf1", root / "data", root / "pairs", root / "pairs.json", pairs, work)
        chain.write("couple@rf1", json.loads((root / "pairs.json").read_text()))
        chain.write("calibrate beside training, s", round(fitting.result(), 1))
    measured(chain, 1, "data", shown)
    trained(chain, 2, "pairs", second)
    measured(chain, 2, "pairs", shown)


def main() -> None:
    """Run the chain, and write what was found into a folder."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--quick", action="store_true", help="digits and few steps")
    parser.add_argument("--out", type=Path, default=Path("fashion"))
    parser.add_argument("--fashion", help="folder with the files of Fashion-MNIST")
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    fast: dict[str, Any] = {} if given.quick else {"precision": "bf16", "cuda_graphs": True}
    compute = Compute(device=given.device, threads=1 if given.quick else 8, **fast)
    data = FashionMNIST(name="fashion_mnist", root=given.fashion)
    with tempfile.TemporaryDirectory() as folder:
        chain = Chain(Path(folder), given.out, compute, given.quick)
        chain.write("hardware", hardware(compute.start()))
        run(chain, Digits(name="digits") if given.quick else data)


if __name__ == "__main__":
    main()
