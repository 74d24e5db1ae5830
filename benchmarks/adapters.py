"""Adapters against whole rounds: how much of round 2's gain at NFE 1 low-rank matrices have.

    python -m benchmarks.adapters [--out FOLDER] [--seeds N] [--ranks 4 16 64] [--lr L ...]
        [--steps N] [--first N] [--pairs N] [--threads N] [--quick]

Digits and a small DiT. Round 1, its coupling and the yardstick are made once and kept in the
folder; each seed then trains round 2 on that coupling, whole and as an adapter of each rank, with
the same draws, and `evaluate` measures them on the same noise. The gain of a rank is (rf1 - its
distance) / (rf1 - that of the whole round), seed by seed. `--lr` are learning rates of adapters;
numbers that are there are not made again.
"""

import argparse
import json
import math
import statistics
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.gpu import hardware
from fmcore.calibrate import calibrate
from fmcore.choices.multistep import AdamsBashforth
from fmcore.couple import Couple, couple
from fmcore.dataset.public import Digits
from fmcore.evaluate import Evaluate, EvaluatePaths, evaluate
from fmcore.features.extractor import FeatureSettings
from fmcore.initialise import initialise
from fmcore.measure.yardstick import YardstickSettings
from fmcore.network.adapter import Lora
from fmcore.network.images import DiT
from fmcore.prepare import prepare
from fmcore.solve.solver import Solver
from fmcore.train import Train, train
from fmcore.work.compute import Compute
from fmcore.work.work import Work

METRIC = "fd_clf"
NFE = (1, 4)
WHOLE = "whole"
LATE = {"time": {"name": "beta", "a": 1.5, "b": 0.5}, "loss": {"name": "pseudo_huber"}}
"""How round 2 is trained, whole or not: as that of params/digits.yaml."""


@dataclass
class Run:
    """The folder of a run, its numerics, and what was found so far."""

    root: Path
    compute: Compute
    found: dict[str, Any] = field(default_factory=dict)

    def work(self, name: str, seed: int = 0) -> Work:
        """Return the context of a verb."""
        return Work(
            scratch=self.root / "scratch" / name,
            seed=seed,
            device=self.compute.start(),
            compute=self.compute,
        )

    def write(self, name: str, value: Any) -> None:
        """Keep and print a number; write the table anew."""
        self.found[name] = value
        print(f"{name}: {json.dumps(value)}", flush=True)
        (self.root / "adapters.json").write_text(json.dumps(self.found, indent=2) + "\n")
        (self.root / "adapters.md").write_text(page(self.found))


def make(run: Run, given: argparse.Namespace) -> None:
    """Make what all rounds share: round 1, its coupling, the yardstick."""
    root, few = run.root, given.quick
    prepare(root / "data", Digits(name="digits"), seed=0)
    network = DiT(name="dit", heads=4, head=2 if few else 16, depth=1 if few else 3, patch=2)
    initialise(root / "data", root / "init", network, seed=0)
    features = FeatureSettings(kind="classifier", epochs=1 if few else 30)
    settings = YardstickSettings(features=features, samples=100 if few else 898, splits=4)
    calibrate(root / "data", root / "yardstick", settings, run.work("calibrate"))
    first = Train(steps=given.first, batch=given.batch, lr=1e-3)
    training(run, "rf1", root / "data", root / "init", first, 0)
    solver = AdamsBashforth(name="ab4", steps=23, shift=0.5)
    pairs = Couple(pairs=given.pairs, solver=solver, batch=2048)
    where = (root / "rf1", root / "data", root / "pairs", root / "pairs.json")
    began = time.perf_counter()
    couple(*where, pairs, run.work("couple"))
    run.write("couple, s", round(time.perf_counter() - began, 1))
    run.write("rf1", measured(run, "rf1"))


def training(run: Run, name: str, data: Path, init: Path, settings: Train, seed: int) -> None:
    """Train a round; write its seconds and weights."""
    began, files = time.perf_counter(), (run.root / f"{name}.csv", run.root / f"{name}.json")
    train(data, init, run.root / name, *files, settings, name=name, work=run.work(name, seed))
    told = json.loads(files[1].read_text())
    kept = ("parameters", "trained_parameters", "loss", "held_out_ratio")
    about = {key: told[key] for key in kept if key in told}
    run.write(f"{name}, training", {**about, "s": round(time.perf_counter() - began, 1)})


def measured(run: Run, name: str) -> dict[str, float]:
    """Return the distance of a round by NFE, with its standard errors, as `evaluate` has it."""
    root = run.root
    settings = Evaluate(
        nfe=NFE,
        trajectories=64,
        reconstructions=0,
        weights=(),
        solver=Solver(name="heun", steps=8),
    )
    paths = EvaluatePaths(
        model=root / name,
        data=root / "data",
        coupling=root / ("data" if name == "rf1" else "pairs"),
        yardstick=root / "yardstick",
        metrics=root / f"{name}-evaluated.json",
        fd=root / f"{name}-fd.csv",
        straightness=root / f"{name}-straightness.csv",
        out=root / f"{name}-plots",
    )
    found = evaluate(paths, settings, run.work(f"evaluate-{name}"))
    return {key: value for key, value in found.items() if key.startswith(METRIC)}


def rounds(given: argparse.Namespace) -> dict[str, Train]:
    """Return how round 2 is trained, by name: whole, and as adapters."""
    plain = {"steps": given.steps, "batch": given.batch, "warmup": given.steps // 10, **LATE}
    found = {WHOLE: Train.model_validate({**plain, "lr": given.whole_lr})}
    for rank in given.ranks:
        for lr in given.lr:
            found[f"rank {rank}, lr {lr:g}"] = Train.model_validate(
                {**plain, "lr": lr, "adapter": Lora(rank=rank)}
            )
    return found


def second_rounds(run: Run, given: argparse.Namespace) -> None:
    """Train and measure what is not there, a seed after the other."""
    for seed in given.seeds:
        for name, settings in rounds(given).items():
            key = f"{name}/{seed}"
            if key in run.found:
                continue
            folder = key.replace(", ", "-").replace(" ", "_").replace("/", "-")
            training(run, folder, run.root / "pairs", run.root / "rf1", settings, seed)
            told = run.found.pop(f"{folder}, training")
            run.write(key, {**measured(run, folder), **told})


def at(found: dict[str, float], nfe: int) -> float:
    """Return the distance at an NFE."""
    return found[f"{METRIC}/nfe_{nfe}"]


def page(found: dict[str, Any]) -> str:
    """Return the table as Markdown, of the seeds that are there."""
    rf1 = found.get("rf1")
    if rf1 is None:
        return ""
    heads = ["round 2", "n", "trained weights", *(f"NFE {n}" for n in NFE), "share of the gain"]
    lines = ["| " + " | ".join([*heads, "s"]) + " |", "|---" * (len(heads) + 1) + "|"]
    own = [f"{at(rf1, n):.1f}" for n in NFE]
    lines.append("| none: rf1 | 1 | | " + " | ".join(own) + " | 0 | |")
    by_name: dict[str, dict[str, Any]] = {}
    for key, value in found.items():
        name, slash, seed = key.rpartition("/")
        if slash:
            by_name.setdefault(name, {})[seed] = value
    whole = by_name.get(WHOLE, {})
    size_of = {name: _size(next(iter(seeds.values()))) for name, seeds in by_name.items()}
    for name, seeds in sorted(by_name.items(), key=lambda item: -size_of[item[0]]):
        distances = [_mean([at(v, n) for v in seeds.values()]) for n in NFE]
        shares = [
            (at(rf1, 1) - at(v, 1)) / (at(rf1, 1) - at(whole[s], 1))
            for s, v in seeds.items()
            if s in whole
        ]
        cells = [name, str(len(seeds)), f"{size_of[name]:,}", *distances, _mean(shares, 3)]
        cells.append(f"{statistics.fmean(v['s'] for v in seeds.values()):.0f}")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _size(one: dict[str, Any]) -> int:
    """Return how many weights a round trained."""
    return int(one.get("trained_parameters", one["parameters"]))


def _mean(values: list[float], digits: int = 1) -> str:
    """Return mean ± standard error; the mean alone of one value."""
    mean = statistics.fmean(values)
    if len(values) < 2:
        return f"{mean:.{digits}f}"
    error = statistics.stdev(values) / math.sqrt(len(values))
    return f"{mean:.{digits}f} ± {error:.{digits}f}"


def main() -> None:
    """Make what is missing in a folder, and write what was found into it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("adapters"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--ranks", type=int, nargs="*", default=[4, 16, 64])
    parser.add_argument("--lr", type=float, nargs="+", default=[4e-3], help="of adapters")
    parser.add_argument("--whole-lr", type=float, default=2e-3)
    parser.add_argument("--first", type=int, default=2000, help="steps of round 1")
    parser.add_argument("--steps", type=int, default=800, help="steps of round 2")
    parser.add_argument("--pairs", type=int, default=20_000)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="a small network, few steps and pairs")
    given = parser.parse_args()
    if given.quick:
        given.first, given.steps, given.pairs = 5, 5, 256
    given.out.mkdir(parents=True, exist_ok=True)
    run = Run(given.out, Compute(device="cpu", threads=given.threads))
    kept = given.out / "adapters.json"
    run.found |= json.loads(kept.read_text()) if kept.exists() else {}
    run.write("hardware", hardware(run.compute.start()))
    if "rf1" not in run.found:
        make(run, given)
    second_rounds(run, given)


if __name__ == "__main__":
    main()
