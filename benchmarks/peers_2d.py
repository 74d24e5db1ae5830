"""The peers' 2-D tasks over several seeds: tables of OT-CFM and of DSBM, and Liu's toy.

`python benchmarks/peers_2d.py [--task NAME]... [--seeds 3] [--first 0] [--steps 2000]
[--reflow-steps 1000] [--pairs 20000] [--points 2000] [--large 10000] [--picture FILE]` prints a
line of JSON for each run, then mean and standard deviation over seeds: W2 (exact assignment) of
samples to new data by Euler steps, the same of data to data (the floor), path energy, NPE,
straightness. `--large` adds W2 of so many points at 20 steps, and its floor, by POT's network
simplex (40 s of a core each for 10,000); `--picture` draws the paths of rf1 and rf2 of the last
run.
"""

import argparse
import json
import math
from collections.abc import Callable
from functools import partial
from statistics import fmean, stdev

import numpy as np
import torch
from torch import Tensor

import fmcore
from fmcore.dataset.densities import EightGaussians, TwoMoons
from fmcore.measure.straightness import normalised_path_energy, path_energy, straightness
from fmcore.measure.transport import w2
from fmcore.settings import derive_seed
from fmcore.training.batch import Optimal

SHOWN = ("w2_nfe_1", "w2_nfe_20", "w2_nfe_100", "w2_floor", "energy", "npe", "straightness")
NETWORK = fmcore.MLP(width=64, depth=2, time_features=32, norm="none")


def noise(n: int, seed: int) -> Tensor:
    """Return n points [n, 2] of N(0, I)."""
    return torch.randn(n, 2, generator=torch.Generator().manual_seed(seed))


def ring(n: int, seed: int, radius: float, std: float) -> Tensor:
    """Return n points [n, 2] of eight Gaussians on a circle."""
    law = EightGaussians(name="eight_gaussians", samples=n, radius=radius, std=std)
    return law.read(seed).target


def moons(n: int, seed: int, size: float, std: float, centre: tuple[float, float]) -> Tensor:
    """Return n points [n, 2] of two moons, the noise before the factor `size`."""
    law = TwoMoons(name="two_moons", samples=n, size=size, std=std)
    return law.read(seed).target + torch.tensor(centre)


def slanted_moons(n: int, seed: int) -> Tensor:
    """Return n points [n, 2] of torchdyn's moons, times 3, minus 1.

    Their noise is uniform in [0, 0.2] and the same in both coordinates.
    """
    law = TwoMoons(name="two_moons", samples=n, size=1, std=0)
    points = law.read(seed).target + torch.tensor((0.5, 0.25))
    shift = torch.rand(n, 1, generator=torch.Generator().manual_seed(derive_seed(seed, "noise")))
    return 3 * (points + 0.2 * shift) - 1


def s_curve(n: int, seed: int) -> Tensor:
    """Return n points [n, 2] of scikit-learn's S-curve from the side: noise 0.05, times 1.5."""
    rng = np.random.default_rng(seed)
    t = 3 * math.pi * (rng.uniform(size=n) - 0.5)
    points = np.stack([np.sin(t), np.sign(t) * (np.cos(t) - 1)], axis=1)
    points += 0.05 * rng.standard_normal(points.shape)
    return torch.tensor(1.5 * points, dtype=torch.float32)


def triangle(n: int, seed: int, up: float) -> Tensor:
    """Return n points [n, 2] of Liu's three Gaussians: variance 0.3, far from the centre."""
    rng = np.random.default_rng(seed)
    wide = 10 * math.sqrt(3) / 2
    centres = np.array([[wide, 5 * up], [-wide, 5 * up], [0, -wide * up]])
    points = centres[rng.integers(3, size=n)] + math.sqrt(0.3) * rng.standard_normal((n, 2))
    return torch.tensor(points, dtype=torch.float32)


WIDE = 7 / 0.723
"""The factor that gives all coordinates of moons with noise 0.1 together a deviation of 7."""
Law = Callable[[int, int], Tensor]
LAWS: dict[str, Law] = {
    "noise": noise,
    # the package torchcfm: sample_8gaussians, sample_moons
    "ring": partial(ring, radius=5, std=0.1**0.25),
    "slanted moons": slanted_moons,
    "thick moons": partial(moons, size=3, std=0.2, centre=(0.5, -0.25)),  # the noise read as normal
    # the runner in the repository of torchcfm: moons, twodim
    "small moons": partial(moons, size=2, std=0.05, centre=(0, 0.5)),
    "s-curve": s_curve,
    "wide moons": partial(moons, size=WIDE, std=0.1, centre=(0.125 * WIDE, -0.125 * WIDE)),
    "wide ring": partial(ring, radius=12, std=1.5),
    # the notebook of rectified flow
    "triangle": partial(triangle, up=1),
    "triangle upside down": partial(triangle, up=-1),
}
TASKS = {
    "N -> 8 Gaussians": ("noise", "ring"),
    "8 Gaussians -> moons": ("ring", "slanted moons"),
    "8 Gaussians -> thick moons": ("ring", "thick moons"),
    "N -> moons": ("noise", "small moons"),
    "N -> S-curve": ("noise", "s-curve"),
    "moons -> 8 Gaussians": ("wide moons", "wide ring"),
    "Liu's toy": ("triangle", "triangle upside down"),
}


def large_w2(a: Tensor, b: Tensor) -> float:
    """Return the exact W2 of two large point sets, by the solver of the published protocols."""
    import ot

    cost = torch.cdist(a.double(), b.double()).square().numpy()
    return math.sqrt(float(ot.emd2([], [], cost, numItermax=10**7)))


class Test:
    """New samples of both sides of a task, for all its flows, and W2 of the laws themselves."""

    def __init__(self, task: str, seed: int, points: int, large: int) -> None:
        source, target = (LAWS[name] for name in TASKS[task])
        self.source = source(points, derive_seed(seed, "test", 0))
        self.target = target(points, derive_seed(seed, "test", 1))
        other = target(points, derive_seed(seed, "test", 2))
        far = source(points, derive_seed(seed, "test", 3))
        self.of_laws = {"w2_floor": w2(other, self.target), "w2_squared": w2(far, other) ** 2}
        if large:
            self.many = source(large, derive_seed(seed, "large", 0))
            self.others = target(large, derive_seed(seed, "large", 1))
            more = target(large, derive_seed(seed, "large", 2))
            self.of_laws["w2_floor_large"] = large_w2(more, self.others)

    def scores(self, flow: fmcore.Flow) -> dict[str, float]:
        """Measure a flow."""
        fine = flow.sample(self.source, fmcore.Solver(steps=100), keep_trajectory=True)
        coarse = {n: flow.sample(self.source, fmcore.Solver(steps=n)).x for n in (1, 20)}
        path = fine.trajectory
        assert path is not None
        found = {
            **{f"w2_nfe_{steps}": w2(x, self.target) for steps, x in coarse.items()},
            "w2_nfe_100": w2(fine.x, self.target),
            "npe": normalised_path_energy(path, self.of_laws["w2_squared"])[0],
            "straightness": straightness(path),
            "energy": float(path_energy(path).mean()),
            **self.of_laws,
        }
        if "w2_floor_large" in found:
            samples = flow.sample(self.many, fmcore.Solver(steps=20)).x
            found["w2_large"] = large_w2(samples, self.others)
        return found


def train(task: str, seed: int, given: argparse.Namespace) -> tuple[dict[str, fmcore.Flow], Tensor]:
    """Train a first round, the second on its pairs, and one on minibatch optimal pairs."""
    torch.manual_seed(seed)
    source, target = TASKS[task]
    x = LAWS[target](given.pairs, derive_seed(seed, "target"))
    y = LAWS[source](given.pairs, derive_seed(seed, "source"))
    pairs = fmcore.independent(x, source=None if source == "noise" else y)
    first = fmcore.Train(steps=given.steps, batch=256, lr=5e-3, warmup=100, ema=0.995)
    optimal = first.model_copy(update={"pairing": Optimal(name="optimal")})
    second = first.model_copy(update={"steps": given.reflow_steps, "lr": 2e-3})
    rf1 = fmcore.fit_flow(pairs, first, network=NETWORK, seed=seed)
    made = fmcore.rectify(rf1, y, fmcore.Solver(name="rk4", steps=12))
    flows = {
        "rf1": rf1,
        "rf2": fmcore.fit_flow(made, second, init=rf1, seed=seed),
        "minibatch OT": fmcore.fit_flow(pairs, optimal, network=NETWORK, seed=seed),
    }
    return flows, y


def draw_paths(flows: dict[str, fmcore.Flow], source: Tensor, file: str) -> None:
    """Draw the paths from the sources by rf1 in 100 steps, and by rf2 in 100 and in one."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 3, figsize=(9, 3.2), sharex=True, sharey=True)
    for axis, (name, steps) in zip(axes, (("rf1", 100), ("rf2", 100), ("rf2", 1)), strict=True):
        path = flows[name].sample(source, fmcore.Solver(steps=steps), keep_trajectory=True)
        assert path.trajectory is not None
        axis.plot(*path.trajectory.permute(2, 0, 1).numpy(), color="tab:gray", lw=0.3)
        axis.scatter(*source.T, s=3, color="tab:blue", zorder=2, label="source")
        axis.scatter(*path.x.T, s=3, color="tab:orange", zorder=2, label="sample")
        axis.set_title(f"{name}, {steps} Euler step{'s' * (steps > 1)}", fontsize=10)
        axis.set_aspect("equal")
    axes[0].legend(fontsize=7, loc="upper right")
    figure.tight_layout()
    figure.savefig(file, dpi=110)


def table(found: dict[tuple[str, str], list[dict[str, float]]]) -> str:
    """Return mean and standard deviation over seeds of each flow of each task, as markdown."""
    shown = [
        name
        for name in (*SHOWN, "w2_large", "w2_floor_large")
        if name in next(iter(found.values()))[0]
    ]
    lines = [f"| task | flow | {' | '.join(shown)} |", f"|{'---|' * (len(shown) + 2)}"]
    for (task, flow), rows in found.items():
        cells = [[row[metric] for row in rows] for metric in shown]
        texts = [f"{fmean(c):.3f} ± {stdev(c) if len(c) > 1 else 0:.3f}" for c in cells]
        lines.append(f"| {task} | {flow} | {' | '.join(texts)} |")
    return "\n".join(lines)


def main() -> None:
    """Run the tasks with every seed; print each run, then the table."""
    parser = argparse.ArgumentParser()
    numbers = {"seeds": 3, "first": 0, "steps": 2000, "reflow-steps": 1000, "pairs": 20000}
    for name, default in {**numbers, "points": 2000, "large": 0}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--task", choices=TASKS, action="append")
    parser.add_argument("--picture")
    given = parser.parse_args()
    found: dict[tuple[str, str], list[dict[str, float]]] = {}
    for task in given.task or TASKS:
        for seed in range(given.first, given.first + given.seeds):
            flows, source = train(task, seed, given)
            test = Test(task, seed, given.points, given.large)
            for name, flow in flows.items():
                values = test.scores(flow)
                found.setdefault((task, name), []).append(values)
                print(json.dumps({"task": task, "seed": seed, "flow": name, **values}), flush=True)
    print(table(found))
    if given.picture:
        draw_paths(flows, source[:300], given.picture)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
