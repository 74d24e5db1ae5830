"""Where the CPU seconds of `couple` go, by timers around its parts.

    python -m benchmarks.couple_profile NETWORK PAIRS [--heun STEPS]

NETWORK is one of the bench's, `2-D MLP`, `digits MLP` or `small U-Net`. Each part is less what is
inside it: a solver is its arithmetic without the network's calls.
"""

import argparse
import functools
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import fmcore
from benchmarks.bench.cases import NETWORKS, network
from benchmarks.bench.coupling import ONE_STEP, Coupler
from fmcore import couple as verb
from fmcore.couple import Couple
from fmcore.coupling.source import Source
from fmcore.sampling import pairs as sampling
from fmcore.sampling.pairs import PairSampler

PARTS: dict[str, list[tuple[Any, str]]] = {
    "Arrow table and stream": [(sampling, "table"), (sampling, "packed")],
    "arithmetic of the solver": [(PairSampler, "_solve")],
    "checks": [(verb, "measure")],
    "manifest": [(verb, "finish")],
    "Parquet, hashes, fsync": [(verb, "write_shard")],
}
"""Functions by the part that they are, where `couple` looks them up."""


class Timers:
    """CPU seconds by part; `stack` has those that are inside each part that runs now."""

    def __init__(self) -> None:
        self.spent: defaultdict[str, float] = defaultdict(float)
        self.stack: list[float] = []

    def around(self, owner: Any, name: str, part: str) -> None:
        """Replace a function of `owner` by one that is timed."""
        function: Callable[..., Any] = getattr(owner, name)

        @functools.wraps(function)
        def timed(*given: Any, **named: Any) -> Any:
            began = time.process_time()
            self.stack.append(0.0)
            try:
                return function(*given, **named)
            finally:
                took = time.process_time() - began
                self.spent[part] += took - self.stack.pop()
                if self.stack:
                    self.stack[-1] += took

        setattr(owner, name, timed)


def main() -> None:
    """Sample a coupling with timers, and print the share of each part."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("network", choices=NETWORKS)
    parser.add_argument("pairs", type=int)
    parser.add_argument("--heun", type=int, help="steps of heun in place of the default solver")
    given = parser.parse_args()
    torch.set_num_threads(1)
    timers = Timers()
    for part, places in PARTS.items():
        for owner, name in places:
            timers.around(owner, name, part)
    timers.around(Source, "draw", "drawing noise")
    timers.around(type(network(given.network)), "forward", "network calls")
    solver = fmcore.Solver(name="heun", steps=given.heun) if given.heun else None
    shard = min(given.pairs, 512 if given.heun else 4096)
    with tempfile.TemporaryDirectory() as folder:
        coupler = Coupler(Path(folder), given.network)
        coupler.run(Couple(pairs=8, solver=ONE_STEP))  # what a first call loads is not timed
        timers.spent.clear()
        began = time.process_time()
        coupler.run(Couple(pairs=given.pairs, shard=shard, solver=solver))
        whole = time.process_time() - began
    print(f"{given.network}, {given.pairs:,} pairs: {whole:.2f} s of CPU")
    for part, seconds in sorted(timers.spent.items(), key=lambda item: -item[1]):
        print(f"  {part}: {100 * seconds / whole:.1f} %")
    print(f"  rest: {100 * (whole - sum(timers.spent.values())) / whole:.1f} %")


if __name__ == "__main__":
    main()
