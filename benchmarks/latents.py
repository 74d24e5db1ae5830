"""A latent chain beside pixel chains at equal compute, on MNIST or Fashion-MNIST, over seeds.

    python -m benchmarks.latents [--data mnist_5k|fashion_mnist] [--samples N] [--fashion FOLDER]
        [--seeds N] [--codec-steps N] [--steps N] [--quick] [--out FOLDER]

For each seed, an AutoencoderTiny is trained on the images that no chain holds out.
Three chains of two rounds have one network but for its first and last layer: one learns latents,
one learns pixels for as many operations, one for those of the codec's training as well. Operations
are counted by torch. All are judged on images, by one yardstick: `fd_clf`. A seed decides the
codec, the networks, the batches and the pairs.
"""

import argparse
import json
import math
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.gpu import hardware
from fmcore.calibrate import calibrate
from fmcore.choices.multistep import AdamsBashforth
from fmcore.codec.kinds import DiffusersCodec, TrainedCodec
from fmcore.codec.trained import train_codec
from fmcore.couple import Couple, couple
from fmcore.coupling.noise import identities, is_held_out
from fmcore.dataset.public import FashionMNIST, MNIST5k
from fmcore.evaluate import EvaluatePaths, evaluate
from fmcore.features.extractor import FeatureSettings
from fmcore.initialise import initialise
from fmcore.measure.harness import Evaluate
from fmcore.measure.yardstick import YardstickSettings
from fmcore.measure.yardstick import load as load_yardstick
from fmcore.network.flops import flops_per_evaluation
from fmcore.network.mlp import MLP
from fmcore.network.store import load
from fmcore.prepare import prepare
from fmcore.scale import Standardise
from fmcore.solve.solver import Solver
from fmcore.train import Train, train
from fmcore.verdict.errors import with_error
from fmcore.work.compute import Compute
from fmcore.work.work import Work

NFE = (1, 4, 16)
CHANNELS = (24, 24, 24)
"""Channels of the codec at 28, 14 and 7 pixels a side."""
CODEC_BATCH, CODEC_RATE = 32, 2e-3
BATCH, RATE = 128, 1e-3
SECOND = 0.5
"""Steps of the second round, over those of the first."""


def codec(images: torch.Tensor, folder: Path, steps: int, seed: int) -> float:
    """Train an autoencoder on images [N, 1, H, W] and save it; return its operations."""
    settings = TrainedCodec(
        name="trained", channels=CHANNELS, steps=steps, batch=CODEC_BATCH, lr=CODEC_RATE
    )

    def trained(settings: TrainedCodec) -> None:
        train_codec(
            settings, images, torch.arange(len(images)), folder,
            seed=seed, device=torch.device("cpu"), scratch=None,
            log=lambda values, step: print(f"codec {step}: {values}", flush=True),
        )  # fmt: skip

    with FlopCounterMode(display=False) as counted:
        trained(settings.model_copy(update={"steps": 1}))
    trained(settings)
    return float(counted.get_total_flops()) * steps


@dataclass
class Bench:
    """The data, the folders of one seed, and what all seeds found so far."""

    settings: MNIST5k | FashionMNIST
    root: Path
    out: Path
    seed: int
    few: bool
    found: dict[str, Any]

    def write(self, name: str, value: Any) -> None:
        """Keep and print a value of this seed, and write the page anew."""
        self.found[f"{self.seed}/{name}"] = value
        print(f"seed {self.seed}, {name}: {json.dumps(value)}", flush=True)
        self.out.mkdir(parents=True, exist_ok=True)
        (self.out / "latents.json").write_text(json.dumps(self.found, indent=2) + "\n")
        (self.out / "latents.md").write_text(page(self.found))

    def work(self, name: str, seed: int) -> Work:
        """Return the context of a verb."""
        compute = Compute(device="cpu", threads=1)
        scratch = self.root / "scratch" / name
        return Work(scratch=scratch, seed=seed, device=compute.start(), compute=compute)

    def data(self, name: str, of: DiffusersCodec | None) -> Path:
        """Prepare the images with or without a codec; make a network and a yardstick for them.

        The split and the yardstick are those of seed 0, so that seeds are judged alike.
        """
        root = self.root / name
        scale = Standardise(name="standardise") if of else {"name": "none"}
        known = self.settings.model_dump() | {"scale": scale, "codec": of}
        settings = type(self.settings).model_validate(known)
        prepare(root / "data", settings, seed=0, metrics=root / "prepare.json", say=print)
        network = MLP(width=16 if self.few else 320, depth=3, time_features=64)
        initialise(root / "data", root / "init", network, seed=self.seed)
        features = FeatureSettings(kind="classifier", epochs=1 if self.few else 4)
        cuts = YardstickSettings(features=features, samples=100 if self.few else 1000, splits=4)
        work = self.work(f"{name}-calibrate", seed=0)
        calibrate(root / "data", root / "yardstick", cuts, work, say=print, warn=print)
        return root

    def chain(self, name: str, root: Path, steps: int) -> None:
        """Train two rounds, measure both, and keep what they cost and score."""
        coupling, init = root / "data", root / "init"
        for turn, own in (("rf1", steps), ("rf2", max(2, round(SECOND * steps)))):
            began, place = time.process_time(), root / name / turn
            second: dict[str, Any] = {"time": {"name": "beta", "a": 1.5, "b": 0.5}}
            settings = Train.model_validate(
                {"steps": own, "batch": BATCH, "lr": RATE, "warmup": min(100, own // 10)}
                | ({"loss": {"name": "pseudo_huber"}, **second} if turn == "rf2" else {})
            )
            key, model = f"{name}-{turn}", place / "model"
            files = (place / "curve.csv", place / "train.json")
            work = self.work(key, self.seed)
            train(coupling, init, model, *files, settings, name=turn, work=work)
            cost = json.loads(files[1].read_text())["flops_training"]
            trained = time.process_time() - began
            own_paths = {n: place / n for n in ("metrics", "fd", "straightness", "out")}
            paths = EvaluatePaths(model, root / "data", coupling, root / "yardstick", **own_paths)
            how = Evaluate(
                nfe=NFE, solver=Solver(name="heun", steps=8), trajectories=256,
                reconstructions=0, weights=(),
            )  # fmt: skip
            values = evaluate(paths, how, self.work(f"{key}-evaluate", self.seed))
            kept = {k: v for k, v in values.items() if k.startswith("fd_clf")}
            kept |= {"steps": own, "flops": cost, "cpu_s": trained}
            kept |= {"straightness_rel": values["straightness_rel"]}
            self.write(f"{name}/{turn}", {**kept, "all_cpu_s": time.process_time() - began})
            if turn == "rf1":
                pairs = Couple(
                    pairs=64 if self.few else 8000,
                    solver=AdamsBashforth(name="ab4", steps=23, shift=0.5),
                )
                coupling = place / "pairs"
                given = (model, root / "data", coupling, place / "pairs.json")
                couple(*given, pairs, self.work(f"{key}-couple", self.seed))
                init = model


def page(found: dict[str, Any]) -> str:
    """Return the table of what was found so far, as Markdown: means over seeds."""
    rows = [
        "| chain | round | seeds | steps | TFLOP of training | CPU s of training | fd_clf at NFE "
        + " | ".join(map(str, NFE)) + " | straightness_rel |",
        "|" + "---|" * (7 + len(NFE)),
    ]  # fmt: skip
    chains: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for name, values in found.items():
        _, chain, turn = [*name.split("/"), ""][:3]
        if turn:
            chains.setdefault((chain, turn), []).append(values)
    for place, all_of in chains.items():

        def mean(key: str, scale: float = 1.0, of: Sequence[dict[str, Any]] = all_of) -> float:
            return statistics.fmean(v[key] for v in of) / scale

        scored = [_score(all_of, n) for n in NFE]
        cells = [
            *place, str(len(all_of)), f"{mean('steps'):,.0f}", f"{mean('flops', 1e12):.2f}",
            f"{mean('cpu_s'):.0f}", *scored, f"{mean('straightness_rel'):.4f}",
        ]  # fmt: skip
        rows.append("| " + " | ".join(cells) + " |")
    words = [f"- {k}: {v}" for k, v in found.items() if k.count("/") == 1]
    return "\n".join([*rows, "", *words]) + "\n"


def _score(seeds: Sequence[dict[str, Any]], nfe: int) -> str:
    """Return the distance with its standard error: over seeds, or of one seed over its cuts."""
    values = [v[f"fd_clf/nfe_{nfe}"] for v in seeds]
    if len(values) < 2:
        return with_error(values[0], seeds[0].get(f"fd_clf_se/nfe_{nfe}"))
    return with_error(statistics.fmean(values), statistics.stdev(values) / math.sqrt(len(values)))


def one_seed(bench: Bench, given: argparse.Namespace) -> None:
    """Train the codec, then the three chains."""
    x = bench.settings.read(0).target
    own = identities(x)
    seen = x[torch.from_numpy(~is_held_out(own, own))]
    began = time.process_time()
    spent = codec(seen, bench.root / "vae", 2 if bench.few else given.codec_steps, bench.seed)
    bench.write("codec, CPU s of training", round(time.process_time() - began))
    bench.write("codec, TFLOP of training", round(spent / 1e12, 3))
    latent = bench.data("latents", DiffusersCodec(name="diffusers", path=str(bench.root / "vae")))
    pixel = bench.data("pixels", None)
    measure = load_yardstick(latent / "yardstick")
    floor = measure.floor
    bench.write("floor", with_error(floor["fd_clf"], floor.get("fd_clf_se")))
    again = measure.reconstruction
    said = with_error(again["fd_clf/reconstruction"], again.get("fd_clf_se/reconstruction"))
    bench.write("reconstruction", said)
    prepared = json.loads((latent / "prepare.json").read_text())
    bench.write("reconstruction_rel", round(prepared["reconstruction_rel"], 4))
    each = [flops_per_evaluation(load(root / "init")) for root in (latent, pixel)]
    steps = 4 if bench.few else given.steps
    whole = 3 * each[0] * BATCH * steps * (1 + SECOND)  # forward and backward are three evaluations
    alike = max(4, round(steps * each[0] / each[1]))
    more = alike if bench.few else round(alike * (whole + spent) / whole)
    bench.chain("latents", latent, steps)
    bench.chain("pixels", pixel, alike)
    bench.chain("pixels, with the codec's operations", pixel, more)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one seed after another."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", choices=("mnist_5k", "fashion_mnist"), default="mnist_5k")
    parser.add_argument("--samples", type=int, help="of Fashion-MNIST, the first ones")
    parser.add_argument("--fashion", help="folder with the files of Fashion-MNIST")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--codec-steps", type=int, default=400)
    parser.add_argument("--steps", type=int, default=2500, help="of the first round on latents")
    parser.add_argument("--quick", action="store_true", help="a few steps, to see that it runs")
    parser.add_argument("--out", type=Path, default=Path(".reflow/bench/latents"))
    given = parser.parse_args(arguments)
    data: MNIST5k | FashionMNIST = MNIST5k(name="mnist_5k")
    if given.data == "fashion_mnist":
        data = FashionMNIST(name="fashion_mnist", root=given.fashion, samples=given.samples)
    torch.set_num_threads(1)
    found: dict[str, Any] = {}
    for seed in range(given.seeds):
        root = given.out / "work" / str(seed)
        bench = Bench(data, root, given.out, seed, given.quick, found)
        if seed == 0:
            bench.write("machine", hardware(torch.device("cpu")))
        one_seed(bench, given)


if __name__ == "__main__":
    main()
