"""The share of `evaluate` that is not sampling, in CPU seconds of the process."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.bench.cases import RESIDUAL
from benchmarks.bench.turns import Row, Sizes, fresh
from fmcore.calibrate import YardstickSettings, calibrate
from fmcore.dataset.arrays import Array
from fmcore.dataset.kinds import Dataset
from fmcore.dataset.public import Digits
from fmcore.evaluate import Evaluate, EvaluatePaths, evaluate
from fmcore.features.extractor import FeatureSettings
from fmcore.initialise import initialise
from fmcore.prepare import prepare
from fmcore.sampling.flow import Flow
from fmcore.train import Train, train
from fmcore.work.work import Work


@contextmanager
def sampling() -> Iterator[Callable[[], float]]:
    """Yield a function that returns the CPU seconds spent in sampling flows, either way.

    CPU seconds, since other processes on the machine lengthen all parts, each by another factor.
    """
    spent, kept = 0.0, {name: getattr(Flow, name) for name in ("sample", "invert")}

    def timed(method: Callable[..., Any]) -> Callable[..., Any]:
        def call(*given: Any, **named: Any) -> Any:
            nonlocal spent
            began = time.process_time()
            found = method(*given, **named)
            spent += time.process_time() - began
            return found

        return call

    try:
        for name, method in kept.items():
            setattr(Flow, name, timed(method))
        yield lambda: spent
    finally:
        for name, method in kept.items():
            setattr(Flow, name, method)


class Evaluation:
    """A round of the digits' network on some data, ready to be evaluated again and again."""

    def __init__(self, root: Path, data: Dataset, yardstick: YardstickSettings) -> None:
        self.root, self.yardstick = root, root / "yardstick"
        self.data, self.model, start = root / "data", root / "model", root / "init"
        prepare(self.data, data, seed=0)
        work = Work(scratch=root / "scratch")
        calibrate(self.data, self.yardstick, yardstick, work)
        initialise(self.data, start, RESIDUAL, seed=0)
        files = self.model, root / "curve.csv", root / "train.json"
        train(self.data, start, *files, Train(steps=200), name="rf1", work=work)

    def share(self, settings: Evaluate) -> float:
        """Evaluate; return the share of the time that is not sampling."""
        out = fresh(self.root)
        paths = EvaluatePaths(
            self.model, self.data, self.data, self.yardstick,
            out / "m.json", out / "fd.csv", out / "gap.csv", out / "pictures",
        )  # fmt: skip
        with sampling() as sampled:
            began = time.process_time()
            evaluate(paths, settings, Work(scratch=out / "scratch"))
            return 1 - sampled() / (time.process_time() - began)


def many_digits(folder: Path, n: int) -> Array:
    """Return n digits with a little noise, so that no two are the same, in a file of the folder."""
    samples = Digits(name="digits").read(0)
    assert samples.label is not None
    draw = torch.Generator().manual_seed(0)
    rows = torch.randint(len(samples.target), (n,), generator=draw)
    x = samples.target[rows] + 0.05 * torch.randn(n, 1, 8, 8, generator=draw)
    file = folder / "many.npz"
    np.savez(file, target=x.clamp(-1, 1).numpy(), label=samples.label[rows].numpy())
    return Array(name="array", path=str(file), layout="nchw")


def share(root: Path, sizes: Sizes) -> Iterator[Row]:
    """Yield the share of the verb `evaluate` beyond sampling."""
    what = "share of `evaluate` that is not sampling"
    settings = Evaluate(nfe=sizes.evaluated_nfe)
    features = FeatureSettings(kind="classifier", epochs=5)
    scale = YardstickSettings(features=features, samples=sizes.judged, splits=sizes.cuts)
    made = Evaluation(fresh(root), Digits(name="digits"), scale)
    note = f"{sizes.judged * sizes.cuts:,} samples at each NFE of {list(sizes.evaluated_nfe)}"
    shares = [made.share(settings) for _ in range(sizes.few)]
    yield Row("evaluation", "digits", what, shares, note=note)
    if sizes.many:
        data = many_digits(fresh(root), 2 * sizes.many // sizes.cuts + 1000)
        scale = scale.model_copy(update={"samples": sizes.many // sizes.cuts})
        made = Evaluation(fresh(root), data, scale)
        note = f"{sizes.many:,} samples at each NFE, once"
        yield Row("evaluation", "digits with noise", what, [made.share(settings)], note=note)
