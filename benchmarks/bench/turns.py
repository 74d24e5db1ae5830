"""Measurements that take turns, their ratios, and the sizes of a run."""

import statistics
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

Point = dict[str, float | str]
"""A point of a curve."""


@dataclass(frozen=True)
class Row:
    """One line of the results: `values` are ratios, or whatever `unit` says, one a turn.

    Without values, it shows `without`, and `note` says why.
    """

    part: str
    case: str
    what: str
    values: list[float] = field(default_factory=list)
    unit: str = ""
    note: str = ""
    without: str = "not measured"

    def text(self) -> str:
        """Return the median with the least and the greatest."""
        if not self.values:
            return self.without
        middle = f"**{statistics.median(self.values):.3g}**"
        if len(self.values) == 1:
            return f"{middle}{self.unit}"
        return f"{middle} ({min(self.values):.3g}-{max(self.values):.3g}){self.unit}"

    def record(self) -> dict[str, Any]:
        """Return the line for the JSON file."""
        return asdict(self)


@dataclass(frozen=True)
class Sizes:
    """How large everything is: the defaults are a full run, QUICK takes some minutes."""

    turns: int = 5
    """How often each measurement is taken, A and B in turn."""
    few: int = 3
    """The same for what is slow and hardly varies: the longest couplings, evaluations."""
    once: int = 1
    """The same for memory, which does not vary."""
    coupled: Mapping[str, int] = field(
        default_factory=lambda: {"2-D MLP": 131_072, "digits MLP": 32_768, "small U-Net": 4_096}
    )
    """Pairs of a coupling, by network: 128 calls of it, of which one is audited, as of many."""
    slow_steps: int = 2
    """Steps of heun with which the small U-Net makes them; others have the default solver."""
    batches: tuple[int, ...] = (32, 64, 128, 256, 512, 1024, 2048, 4096)
    """Rows of a bare forward pass, of which the fastest size is taken."""
    steps: int = 800
    """Training steps that are timed."""
    trained: Mapping[str, tuple[int, ...]] = field(
        default_factory=lambda: {"2-D MLP": (30_000, 2_000_000), "digits MLP": (30_000,),
                                 "MLP on 784": (200_000,)}
    )  # fmt: skip
    """Pairs on disk that are trained on, by network."""
    fitted: int = 3000
    """Training steps of the flows on which solvers are compared."""
    points: Mapping[str, int] = field(
        default_factory=lambda: {"eight Gaussians": 4096, "digits": 256, "MNIST": 16}
    )
    """Pairs whose error is measured, by flow."""
    nfe: tuple[int, ...] = (6, 9, 12, 16, 20, 24, 28, 32, 36, 48, 64, 96, 128)
    """Evaluations that solvers on a grid are tried with."""
    euler: tuple[int, ...] = (100, 300, 1000)
    tolerances: tuple[float, ...] = (1e-2, 1e-3, 1e-4, 1e-5, 1e-6)
    wanted: tuple[float, ...] = (1e-2, 3e-3, 1e-3, 5e-4)
    """Errors that the solver `auto` is asked for."""
    exact_steps: int = 400
    """Steps of rk4 in float64 that the errors are measured against."""
    shared_pairs: int = 32_768
    """Pairs that one and two workers sample."""
    executors: tuple[str, ...] = ("processes", "ray", "dask")
    """The kinds of workers; of Ray and Dask those that are installed."""
    lengths: tuple[int, ...] = (1_000, 10_000, 100_000, 1_000_000)
    """Pairs of the couplings whose cost is drawn."""
    growth: tuple[int, ...] = (1, 10, 100)
    """Factors by which the data of the memory measurements grow."""
    memory_base: Mapping[str, int] = field(
        default_factory=lambda: {"prepare 784": 1_000, "couple 2-D": 10_000, "couple 784": 1_000,
                                 "verify 2-D": 20_000, "verify 784": 2_000,
                                 "train 2-D": 20_000, "train 784": 2_000, "train-64 784": 2_000,
                                 "calibrate digits": 450, "evaluate digits": 450}
    )  # fmt: skip
    """Pairs at factor 1; of the digits, samples in each half."""
    judged: int = 898
    """Samples of a cut in the evaluation of the digits."""
    cuts: int = 8
    evaluated_nfe: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64)
    many: int = 50_000
    """Samples of the large evaluation; 0 is none."""

    def of(self, cases: Collection[str]) -> "Sizes":
        """Return the sizes with the cases named alone: networks, flows, executors, memories.

        Raises ValueError for a name that no case has.
        """
        keyed = ("coupled", "trained", "points", "memory_base")
        known = {*self.executors, *(case for name in keyed for case in getattr(self, name))}
        if odd := set(cases) - known:
            raise ValueError(f"expected cases of {sorted(known)}, got {sorted(odd)}")
        left: dict[str, Any] = {
            k: {c: n for c, n in getattr(self, k).items() if c in cases} for k in keyed
        }
        return replace(self, **left, executors=tuple(e for e in self.executors if e in cases))

    def for_images(self) -> "Sizes":
        """Return the sizes for the error of pairs of a U-Net, whose evaluations take long."""
        return replace(
            self, fitted=self.fitted // 8, few=1, nfe=(16, 28, 48, 56, 64, 80, 96, 128),
            euler=self.euler[:1], tolerances=self.tolerances[1:], wanted=self.wanted[::2],
        )  # fmt: skip


QUICK = Sizes(
    turns=2,
    few=1,
    coupled={"2-D MLP": 8192, "digits MLP": 4096, "small U-Net": 64},
    slow_steps=1,
    batches=(32, 128, 512, 1024),
    steps=100,
    trained={"2-D MLP": (10_000,), "digits MLP": (10_000,)},
    fitted=400,
    points={"eight Gaussians": 512, "digits": 256},
    nfe=(12, 48),
    euler=(100,),
    tolerances=(1e-3, 1e-5),
    wanted=(1e-3,),
    exact_steps=60,
    shared_pairs=8_192,
    executors=("processes",),
    lengths=(1_000, 10_000),
    growth=(1, 10),
    memory_base={"couple 2-D": 2_000, "train 784": 1_000},
    judged=200,
    cuts=4,
    evaluated_nfe=(1, 4),
    many=0,
)


def in_turn(works: Mapping[str, Callable[[], float]], turns: int) -> dict[str, list[float]]:
    """Return what each work returns, called one after the other, `turns` times."""
    found: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(turns):
        for name, work in works.items():
            found[name].append(work())
    return found


def over(a: list[float], b: list[float]) -> list[float]:
    """Return a / b, turn by turn."""
    return [x / y for x, y in zip(a, b, strict=True)]


@contextmanager
def clock() -> Iterator[Callable[[], float]]:
    """Yield a function that returns the seconds since the start."""
    began = time.perf_counter()
    yield lambda: time.perf_counter() - began


def repeated(work: Callable[[], Any], least: float) -> float:
    """Return the calls per second of a work that is repeated for at least that many seconds."""
    done = 0
    with clock() as spent:
        while True:
            work()
            done += 1
            if (took := spent()) >= least:
                return done / took


def best_batch(
    network: Callable[..., torch.Tensor],
    shape: tuple[int, ...],
    batches: tuple[int, ...],
    *,
    one_time: bool = False,
) -> tuple[int, Callable[[float], float]]:
    """Return the fastest size of a bare forward pass, and its rows per second over some seconds.

    Every row has a t, as a plain loop has it; with `one_time` t is an expanded scalar, which our
    networks embed once.
    """

    def rate(rows: int, least: float) -> float:
        x, t = torch.randn(rows, *shape), torch.full((rows,), 0.5)
        t = torch.tensor(0.5).expand(rows) if one_time else t
        with torch.no_grad():
            network(x, t)
            return rows * repeated(lambda: network(x, t), least)

    best, most = batches[0], 0.0
    for rows in batches:
        found = rate(rows, 0.2)
        if found > most:
            best, most = rows, found
        elif found < 0.8 * most:  # larger ones only get slower, and take long
            break
    return best, lambda least: rate(best, least)


def fresh(root: Path) -> Path:
    """Return a new empty folder below `root`."""
    folder = root / f"{len(list(root.iterdir()))}"
    folder.mkdir()
    return folder
