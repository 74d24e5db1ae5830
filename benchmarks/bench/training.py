"""The verb `train`, from disk, over a bare loop in memory, and over a loop as torchcfm shows it."""

import copy
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import fmcore
from benchmarks.bench.cases import BATCH, NETWORKS, pairs_in_memory
from benchmarks.bench.peers import missing
from benchmarks.bench.turns import Row, Sizes, clock, fresh, in_turn, over
from fmcore.network.build import build
from fmcore.network.store import save
from fmcore.train import Train, train
from fmcore.work.work import Work

DECAY = 0.999


class Verb:
    """The verb `train` on a coupling that was written to disk."""

    def __init__(self, root: Path, name: str, pairs: fmcore.Pairs, settings: Train) -> None:
        self.root, self.settings = root, settings
        self.coupling, self.init = root / "coupling", root / "init"
        fmcore.write_coupling(self.coupling, pairs)
        network, shape = NETWORKS[name]
        save(self.init, build(network, shape, seed=0), about={"round": "scratch"})
        self.whole = 0.0

    def __call__(self) -> float:
        """Train; return steps per second between the first and the last logged step."""
        folder, told = fresh(self.root), []

        def log(_: dict[str, float], step: int) -> None:
            told.append((time.perf_counter(), step))

        work = Work(scratch=folder / "scratch", log=log)
        files = folder / "model", folder / "curve.csv", folder / "metrics.json"
        with clock() as spent:
            train(self.coupling, self.init, *files, self.settings, name="rf1", work=work)
            self.whole = spent()
        shutil.rmtree(folder)
        (first, begun), (last, done) = told[0], told[-1]
        return (done - begun) / (last - first)


def bare(name: str, pairs: fmcore.Pairs, settings: Train) -> Callable[[], float]:
    """Return a loop with nothing but the step: fused AdamW, clip, EMA by foreach, no files."""

    def run() -> float:
        network = build(*NETWORKS[name], seed=0).train()
        average = copy.deepcopy(network).requires_grad_(False)
        mine = list(network.parameters())
        values: list[Tensor] = list(mine)
        kept: list[Tensor] = list(average.parameters())
        optimizer = torch.optim.AdamW(mine, lr=settings.lr, weight_decay=0.0, fused=True)
        wide = (-1, *[1] * (pairs.target.ndim - 1))
        with clock() as spent:
            for _ in range(settings.steps):
                rows = torch.randint(len(pairs.target), (settings.batch,))
                x, z, t = pairs.target[rows], pairs.source[rows], torch.rand(settings.batch)
                at = torch.lerp(x, z, t.reshape(wide))
                loss = nn.functional.mse_loss(network(at, t), z - x)
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                nn.utils.clip_grad_norm_(mine, settings.clip, foreach=True)
                optimizer.step()
                with torch.no_grad():
                    torch._foreach_lerp_(kept, values, 1 - DECAY)
            return settings.steps / spent()

    return run


def as_torchcfm(name: str, pairs: fmcore.Pairs, settings: Train) -> Callable[[], float]:
    """Return a loop with the parts of torchcfm's CIFAR-10 example, on pairs that are given.

    A DataLoader that is shuffled (in this process, the faster way for rows this small), its
    ConditionalFlowMatcher, Adam, clip, a schedule, and an average over the state dict in Python.
    """
    from torchcfm.conditional_flow_matching import ConditionalFlowMatcher

    def run() -> float:
        network = build(*NETWORKS[name], seed=0).train()
        average = copy.deepcopy(network)
        matcher = ConditionalFlowMatcher(sigma=0.0)
        optimizer = torch.optim.Adam(network.parameters(), lr=settings.lr)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda s: min(s, 100) / 100)
        data = TensorDataset(pairs.source, pairs.target)
        loader = DataLoader(data, batch_size=settings.batch, shuffle=True, drop_last=True)

        def forever() -> Iterator[list[Tensor]]:
            while True:
                yield from loader

        stream = forever()
        with clock() as spent:
            for _ in range(settings.steps):
                optimizer.zero_grad()
                source, target = next(stream)
                t, at, aim = matcher.sample_location_and_conditional_flow(source, target)
                loss = torch.mean((network(at, t) - aim) ** 2)
                loss.backward()
                nn.utils.clip_grad_norm_(network.parameters(), settings.clip)
                optimizer.step()
                schedule.step()
                current = network.state_dict()
                for key, value in average.state_dict().items():
                    value.copy_(value * DECAY + current[key] * (1 - DECAY))
            return settings.steps / spent()

    return run


def speed(root: Path, sizes: Sizes) -> Iterator[Row]:
    """Yield steps per second of the verb over those of both loops, by network."""
    for name, count in ((n, c) for n, counts in sizes.trained.items() for c in counts):
        # Short runs are logged more often: the first point is where the steady rate begins.
        every = max(1, min(50, sizes.steps // 4))
        settings = Train(steps=sizes.steps, batch=BATCH[name], ema=DECAY, log_every=every)
        pairs = pairs_in_memory(name, count)
        verb = Verb(fresh(root), name, pairs, settings)
        wholes: list[float] = []

        def ours(verb: Verb = verb, wholes: list[float] = wholes) -> float:
            rate = verb()
            wholes.append(sizes.steps / verb.whole)
            return rate

        works: dict[str, Callable[[], float]] = {
            "train": ours,
            "bare": bare(name, pairs, settings),
        }
        if not (why := missing("torchcfm")):
            works["torchcfm"] = as_torchcfm(name, pairs, settings)
        found = in_turn(works, sizes.turns)
        note = f"{sizes.steps} steps of {BATCH[name]} of {count:,} pairs"
        what = "steps/s of `train` from disk over a bare loop in memory (fused AdamW, clip, EMA)"
        yield Row("training", name, what, over(found["train"], found["bare"]), note=note)
        what = "the same with the start and the end of the verb: reading, held-out loss, model"
        yield Row("training", name, what, over(wholes, found["bare"]))
        what = "steps/s of `train` over a loop as torchcfm's example has it"
        ratios = [] if why else over(found["train"], found["torchcfm"])
        yield Row("training", name, what, ratios, note=why)
