"""A latent chain beside pixel chains at equal compute, on 5,000 images of MNIST.

    python -m benchmarks.latents [--codec-steps N] [--steps N] [--quick] [--out FOLDER]

Plain diffusers trains an AutoencoderTiny on the images that no chain holds out. Three chains of two
rounds have one network but for its first and last layer: one learns latents, one learns pixels for
as many operations, one for those of the codec's training as well. Operations are counted by torch.
All are judged on images, by one yardstick: `fd_clf`.
"""

import argparse
import json
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
from fmcore.codec.kinds import DiffusersCodec
from fmcore.couple import Couple, couple
from fmcore.coupling.noise import identities, is_held_out
from fmcore.dataset.public import MNIST5k
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
from fmcore.work.of_diffusers import diffusers
from fmcore.work.work import Work

NFE = (1, 4, 16)
CHANNELS = (24, 24, 24)
"""Channels of the codec at 28, 14 and 7 pixels a side."""
CODEC_BATCH, CODEC_RATE = 32, 2e-3
BATCH, RATE = 128, 1e-3
SECOND = 0.5
"""Steps of the second round, over those of the first."""


def codec(images: torch.Tensor, folder: Path, steps: int) -> float:
    """Train an autoencoder on images [N, 1, H, W] and save it; return its operations."""
    torch.manual_seed(0)
    model: Any = diffusers().AutoencoderTiny(
        in_channels=1, out_channels=1, latent_channels=4,
        encoder_block_out_channels=CHANNELS, decoder_block_out_channels=CHANNELS,
        num_encoder_blocks=(1, 1, 1), num_decoder_blocks=(1, 1, 1),
    )  # fmt: skip
    optimizer = torch.optim.AdamW(model.parameters(), lr=CODEC_RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    draw = torch.Generator().manual_seed(0)

    def step() -> float:
        x = images[torch.randint(len(images), (CODEC_BATCH,), generator=draw)]
        loss = (model.decode(model.encode(x).latents).sample - x).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        return float(loss.detach())

    with FlopCounterMode(display=False) as counted:
        step()
    for i in range(1, steps):
        loss = step()
        if i % 50 == 0 or i == steps - 1:
            print(f"codec {i}: mean square error {loss:.4f}", flush=True)
    model.eval().save_pretrained(folder)
    return float(counted.get_total_flops()) * steps


@dataclass
class Bench:
    """The folders of a run, and what was found so far."""

    root: Path
    out: Path
    few: bool
    found: dict[str, Any]

    def write(self, name: str, value: Any) -> None:
        """Keep and print a value, and write the page anew."""
        self.found[name] = value
        print(f"{name}: {json.dumps(value)}", flush=True)
        self.out.mkdir(parents=True, exist_ok=True)
        (self.out / "latents.json").write_text(json.dumps(self.found, indent=2) + "\n")
        (self.out / "latents.md").write_text(page(self.found))

    def work(self, name: str) -> Work:
        """Return the context of a verb."""
        compute = Compute(device="cpu", threads=1)
        return Work(scratch=self.root / "scratch" / name, device=compute.start(), compute=compute)

    def data(self, name: str, of: DiffusersCodec | None) -> Path:
        """Prepare the images with or without a codec; make a network and a yardstick for them."""
        root = self.root / name
        scale = Standardise(name="standardise") if of else {"name": "none"}
        settings = MNIST5k.model_validate({"name": "mnist_5k", "scale": scale, "codec": of})
        prepare(root / "data", settings, seed=0, metrics=root / "prepare.json", say=print)
        network = MLP(width=16 if self.few else 320, depth=3, time_features=64)
        initialise(root / "data", root / "init", network, seed=0)
        features = FeatureSettings(kind="classifier", epochs=1 if self.few else 4)
        cuts = YardstickSettings(features=features, samples=100 if self.few else 1000, splits=4)
        work = self.work(f"{name}-calibrate")
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
            train(coupling, init, model, *files, settings, name=turn, work=self.work(key))
            cost = json.loads(files[1].read_text())["flops_training"]
            trained = time.process_time() - began
            work = self.work(f"{key}-evaluate")
            own_paths = {n: place / n for n in ("metrics", "fd", "straightness", "out")}
            paths = EvaluatePaths(model, root / "data", coupling, root / "yardstick", **own_paths)
            how = Evaluate(
                nfe=NFE, solver=Solver(name="heun", steps=8), trajectories=256,
                reconstructions=0, weights=(),
            )  # fmt: skip
            values = evaluate(paths, how, work)
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
                couple(*given, pairs, self.work(f"{key}-couple"))
                init = model


def page(found: dict[str, Any]) -> str:
    """Return the table of what was found so far, as Markdown."""
    rows = [
        "| chain | round | steps | TFLOP of training | CPU s of training | fd_clf at NFE "
        + " | ".join(map(str, NFE)) + " | straightness_rel |",
        "|" + "---|" * (6 + len(NFE)),
    ]  # fmt: skip
    for name, values in found.items():
        chain, _, turn = name.partition("/")
        if not turn:
            continue
        scored = [
            with_error(values[f"fd_clf/nfe_{n}"], values.get(f"fd_clf_se/nfe_{n}")) for n in NFE
        ]
        cells = [
            chain, turn, f"{values['steps']:,}", f"{values['flops'] / 1e12:.2f}",
            f"{values['cpu_s']:.0f}", *scored, f"{values['straightness_rel']:.4f}",
        ]  # fmt: skip
        rows.append("| " + " | ".join(cells) + " |")
    words = [f"- {k}: {v}" for k, v in found.items() if "/" not in k]
    return "\n".join([*rows, "", *words]) + "\n"


def main(arguments: Sequence[str] | None = None) -> None:
    """Train the codec, then the three chains."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--codec-steps", type=int, default=400)
    parser.add_argument("--steps", type=int, default=2500, help="of the first round on latents")
    parser.add_argument("--quick", action="store_true", help="a few steps, to see that it runs")
    parser.add_argument("--out", type=Path, default=Path(".reflow/bench/latents"))
    given = parser.parse_args(arguments)
    bench = Bench(given.out / "work", given.out, given.quick, {})
    torch.set_num_threads(1)
    x = MNIST5k(name="mnist_5k").read(0).target
    own = identities(x)
    seen = x[torch.from_numpy(~is_held_out(own, own))]
    bench.write("machine", hardware(torch.device("cpu")))
    began = time.process_time()
    spent = codec(seen, bench.root / "vae", 2 if given.quick else given.codec_steps)
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
    steps = 4 if given.quick else given.steps
    whole = 3 * each[0] * BATCH * steps * (1 + SECOND)  # forward and backward are three evaluations
    alike = max(4, round(steps * each[0] / each[1]))
    more = alike if given.quick else round(alike * (whole + spent) / whole)
    bench.chain("latents", latent, steps)
    bench.chain("pixels", pixel, alike)
    bench.chain("pixels, with the codec's operations", pixel, more)


if __name__ == "__main__":
    main()
