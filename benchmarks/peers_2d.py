"""The peers' 2-D tasks, N -> 8 Gaussians and 8 Gaussians -> moons, over several seeds.

`python benchmarks/peers_2d.py [--seeds 3] [--steps 2000] [--points 2000]` prints a line of JSON for
each run, then mean and standard deviation over seeds: W2 (exact assignment) of samples to new data
by Euler steps, the same of data to data (the floor), path energy, NPE, straightness. The laws are
those of torchcfm: 8 Gaussians of radius 5 and variance sqrt(0.1) (its `eight_normal_sample`), moons
of noise 0.2, times 3, minus 1.
"""

import argparse
import json
from statistics import fmean, stdev

import torch
from torch import Tensor

import fmcore
from fmcore.dataset.densities import EightGaussians, TwoMoons
from fmcore.measure.straightness import normalised_path_energy, straightness
from fmcore.measure.transport import w2
from fmcore.settings import derive_seed
from fmcore.training.batch import Optimal

TASKS = {
    "N -> 8 Gaussians": ("noise", "ring"),
    "8 Gaussians -> moons": ("ring", "moons"),
}
METRICS = ("w2_nfe_1", "w2_nfe_20", "w2_nfe_100", "w2_floor", "energy", "npe", "straightness")
NETWORK = fmcore.MLP(width=64, depth=2, time_features=32, norm="none")


def draw(law: str, n: int, seed: int) -> Tensor:
    """Return n independent points [n, 2] of a law."""
    if law == "ring":
        return EightGaussians(
            name="eight_gaussians", samples=n, radius=5, std=0.1**0.25
        ).read(seed).target  # fmt: skip
    if law == "moons":
        moons = TwoMoons(name="two_moons", samples=n, size=3, std=0.2)
        return moons.read(seed).target + torch.tensor([0.5, -0.25])
    return torch.randn(n, 2, generator=torch.Generator().manual_seed(seed))


def scores(flow: fmcore.Flow, task: str, seed: int, points: int) -> dict[str, float]:
    """Measure a flow on new samples of both sides."""
    source, target, other, far = (
        draw(law, points, derive_seed(seed, "test", i))
        for i, law in enumerate((TASKS[task][0], *[TASKS[task][1]] * 2, TASKS[task][0]))
    )
    fine = flow.sample(source, fmcore.Solver(steps=100), keep_trajectory=True)
    coarse = {n: flow.sample(source, fmcore.Solver(steps=n)).x for n in (1, 20)}
    path = fine.trajectory
    assert path is not None
    squared = w2(far, other) ** 2
    return {
        **{f"w2_nfe_{steps}": w2(x, target) for steps, x in coarse.items()},
        "w2_nfe_100": w2(fine.x, target),
        "w2_floor": w2(other, target),
        "npe": normalised_path_energy(path, squared),
        "straightness": straightness(path),
        "energy": float(((path[:-1] - path[1:]) * (len(path) - 1)).square().sum(-1).mean()),
        "w2_squared": squared,
    }


def runs(task: str, seed: int, steps: int, points: int) -> dict[str, dict[str, float]]:
    """Train a first round, the second on its pairs, and one on minibatch optimal pairs."""
    torch.manual_seed(seed)
    x, y = (
        draw(law, 20000, derive_seed(seed, side))
        for law, side in zip(reversed(TASKS[task]), ("target", "source"), strict=True)
    )
    pairs = fmcore.independent(x, source=None if TASKS[task][0] == "noise" else y)
    first = fmcore.Train(steps=steps, batch=256, lr=5e-3, warmup=100, ema=0.995)
    optimal = first.model_copy(update={"pairing": Optimal(name="optimal")})
    second = first.model_copy(update={"steps": steps // 2, "lr": 2e-3})
    rf1 = fmcore.fit_flow(pairs, first, network=NETWORK, seed=seed)
    made = fmcore.rectify(rf1, y, fmcore.Solver(name="rk4", steps=12))
    flows = {
        "rf1": rf1,
        "rf2": fmcore.fit_flow(made, second, init=rf1, seed=seed),
        "minibatch OT": fmcore.fit_flow(pairs, optimal, network=NETWORK, seed=seed),
    }
    return {name: scores(flow, task, seed, points) for name, flow in flows.items()}


def main() -> None:
    """Run every task with every seed; print each run, then the table."""
    parser = argparse.ArgumentParser()
    for name, default in (("--seeds", 3), ("--steps", 2000), ("--points", 2000), ("--first", 0)):
        parser.add_argument(name, type=int, default=default)
    given = parser.parse_args()
    found: dict[tuple[str, str], list[dict[str, float]]] = {}
    for task in TASKS:
        for seed in range(given.first, given.first + given.seeds):
            for flow, values in runs(task, seed, given.steps, given.points).items():
                found.setdefault((task, flow), []).append(values)
                print(json.dumps({"task": task, "seed": seed, "flow": flow, **values}), flush=True)
    print(f"| task | flow | {' | '.join(METRICS)} |\n|{'---|' * (len(METRICS) + 2)}")
    for (task, flow), rows in found.items():
        cells = [[row[metric] for row in rows] for metric in METRICS]
        shown = [f"{fmean(c):.3f} ± {stdev(c) if len(c) > 1 else 0:.3f}" for c in cells]
        print(f"| {task} | {flow} | {' | '.join(shown)} |")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
