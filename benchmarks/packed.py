"""Any chain of params.yaml by the verbs alone, on a machine that has neither its data nor DVC.

    python -m benchmarks.packed pack PARAMS FOLDER [--without-gpu] [--prompts FILE]
    python -m benchmarks.packed run FOLDER [--out FOLDER] [--device cuda]

`pack`, where the data is, prepares it into FOLDER and writes params.json beside it, with the
embedded prompts if the data has texts. `run` needs torch, numpy, pandas, pyarrow, pydantic,
safetensors, matplotlib, and what the networks and features need (diffusers; the two packages of
lite0 may lie in FOLDER/site). Each number is written as soon as it is there; the yardstick is
fitted while the first round trains.
"""

import argparse
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from pydantic import TypeAdapter

from fmcore.calibrate import calibrate
from fmcore.conditions import encoders
from fmcore.conditions import table as conditions
from fmcore.couple import Couple, couple
from fmcore.coupling.noise import gaussian_noise
from fmcore.coupling.read import open_coupling
from fmcore.evaluate import Evaluate, EvaluatePaths, evaluate
from fmcore.initialise import Network, initialise
from fmcore.measure.yardstick import YardstickSettings
from fmcore.network.build import table_of
from fmcore.network.store import load
from fmcore.sampling.flow import Flow
from fmcore.settings import derive_seed
from fmcore.solve.solver import Solver
from fmcore.train import Train, train
from fmcore.verdict.pictures import sheet_of_prompts
from fmcore.work.compute import Compute
from fmcore.work.work import Work

SHEET = (1, 4, 16)
"""Steps of Euler of a sheet of prompts."""


def pack(params: Path, folder: Path, *, reduced: bool, prompts: Path | None) -> None:
    """Prepare the data of a parameter file into `folder`, and write its settings beside it."""
    from flows.params.edit import edited
    from flows.params.load import load as load_params
    from flows.params.reduce import reductions
    from fmcore.prepare import prepare

    given = load_params(params)
    if reduced and given.without_gpu:
        with tempfile.TemporaryDirectory() as some:
            file = Path(some) / "params.yaml"
            cut = reductions(given, given.without_gpu)
            file.write_text(edited(params.read_text(), cut))
            given = load_params(file)
    prepare(folder / "data", given.data, given.source, seed=given.seed, say=print, warn=print)
    (folder / "params.json").write_text(given.model_dump_json(indent=1, by_alias=True) + "\n")
    known = open_coupling(folder / "data").conditions
    if prompts is not None and known is not None:
        texts = [line.strip() for line in prompts.read_text().splitlines() if line.strip()]
        found = encoders.beside(texts, known)
        conditions.write(folder / "prompts", found)
        (folder / "prompts" / "about.json").write_text(json.dumps(found.about))


@dataclass
class Chain:
    """The folders of a chain, its settings, its numerics, and what was found so far."""

    packed: Path
    root: Path
    out: Path
    params: dict[str, Any]
    compute: Compute
    began: float = field(default_factory=time.perf_counter)
    found: dict[str, Any] = field(default_factory=dict)

    def folder(self, name: str) -> Path:
        """Return the folder of a model, a coupling or the data."""
        return self.packed / "data" if name == "independent" else self.root / name

    def write(self, name: str, value: Any) -> None:
        """Keep and print a number."""
        self.found[name] = value
        print(f"[{time.perf_counter() - self.began:6.1f}] {name}: {json.dumps(value)}", flush=True)
        (self.out / "found.json").write_text(json.dumps(self.found, indent=2) + "\n")

    @contextmanager
    def timed(self, verb: str, *names: str) -> Iterator[Work]:
        """Give a verb its context, and write the seconds that it takes."""
        began, scratch = time.perf_counter(), self.root / "scratch" / verb
        seed = derive_seed(self.params["seed"], *names) if names else self.params["seed"]
        device = self.compute.start()
        yield Work(scratch=scratch, device=device, compute=self.compute, seed=seed, warn=print)
        self.write(f"{verb}, s", round(time.perf_counter() - began, 1))


def settings(kind: Any, given: Any, *besides: str) -> Any:
    """Return a section of params.json as settings, without the keys `besides`."""
    kept = {k: v for k, v in given.items() if k not in besides}
    return TypeAdapter(kind).validate_json(json.dumps(kept))


def yardstick(packed: Path, root: Path, given: dict[str, Any], seed: int, threads: int) -> float:
    """Fit the yardstick on CPU cores beside the GPU; return its seconds."""
    torch.set_num_threads(threads)
    began, work = time.perf_counter(), Work(scratch=root / "calibrate", seed=seed)
    calibrate(packed / "data", root / "yardstick", settings(YardstickSettings, given), work)
    return time.perf_counter() - began


def trained(chain: Chain, name: str) -> None:
    """Train a round from the model before it."""
    given, root = chain.params["rounds"][name], chain.root
    files = (root / f"model_{name}", root / f"{name}.csv", root / f"{name}_train.json")
    init = root / ("init" if given["init"] == "scratch" else f"model_{given['init']}")
    with chain.timed(f"train@{name}", "train", name) as work:
        how = settings(Train, given["train"])
        train(chain.folder(given["coupling"]), init, *files, how, name=name, work=work)
    chain.write(f"train@{name}", json.loads(files[2].read_text()))
    shutil.copy(files[1], chain.out)


def coupled(chain: Chain, name: str) -> None:
    """Sample a coupling from its round."""
    given, root = chain.params["couplings"][name], chain.root
    with chain.timed(f"couple@{name}", "couple", name) as work:
        how = settings(Couple, given, "round", "seed")
        model, receipt = root / f"model_{given['round']}", root / f"{name}_pairs.json"
        couple(model, chain.packed / "data", root / name, receipt, how, work)
    chain.write(f"couple@{name}", json.loads(receipt.read_text()))


def measured(chain: Chain, name: str) -> None:
    """Evaluate a round, and keep its table, its samples and its sheet of prompts."""
    root, model = chain.root, chain.root / f"model_{name}"
    tables = (root / f"{name}.json", root / f"{name}_fd.csv", root / f"{name}_gap.csv")
    coupling = chain.folder(chain.params["rounds"][name]["coupling"])
    given = (model, chain.packed / "data", coupling, root / "yardstick")
    paths = EvaluatePaths(*given, *tables, root / f"{name}_pictures")
    with chain.timed(f"evaluate@{name}") as work:
        chain.write(
            f"evaluate@{name}", evaluate(paths, settings(Evaluate, chain.params["evaluate"]), work)
        )
    shutil.copy(paths.out / "samples.png", chain.out / f"{name}_samples.png")
    if (chain.packed / "prompts").exists():
        drawn(chain, name, model)


def drawn(chain: Chain, name: str, model: Path) -> None:
    """Draw the sheet of the packed prompts."""
    about = json.loads((chain.packed / "prompts" / "about.json").read_text())
    prompts = conditions.read(chain.packed / "prompts", about)
    loaded = load(model, device=str(chain.compute.start()))
    known, given = table_of(loaded.network), cast(Any, loaded.network)
    assert known is not None
    given.given.take(prompts)  # embedded when they were packed: no encoder is needed here
    flow = replace(Flow.of(loaded, chain.compute), classes=len(prompts))
    noise = gaussian_noise(derive_seed(0, "sample"), np.arange(len(prompts)), loaded.shape)
    label, columns = torch.arange(len(prompts)), {}
    for steps in SHEET:
        made = flow.sample(noise, Solver(name="euler", steps=steps), label=label)
        columns[f"NFE {made.nfe}"] = loaded.scale.inverse(made.x)
    file = chain.out / f"{name}_prompts.png"
    seen = [text + ("" if known.row(text) is not None else " *") for text in prompts.texts]
    sheet_of_prompts(file, seen, columns, title=f"{name}: texts, * not among the data's")


def run(chain: Chain) -> None:
    """Run the chain: each round, its coupling and its measures; the yardstick beside the first."""
    params, root = chain.params, chain.root
    network, seed = settings(Network, params["network"]), params["seed"]
    data, threads = chain.packed / "data", chain.compute.threads
    initialise(data, root / "init", network, seed=derive_seed(seed, "initialise"))
    with ProcessPoolExecutor(1, get_context("spawn")) as beside:
        given = (chain.packed, root, params["yardstick"], seed, threads)
        fitting = beside.submit(yardstick, *given)
        for number, name in enumerate(params["rounds"]):
            trained(chain, name)
            for key, given in params["couplings"].items():
                if given["round"] == name:
                    coupled(chain, key)
            if not number:
                chain.write("calibrate beside training, s", round(fitting.result(), 1))
            measured(chain, name)


def main() -> None:
    """Pack a chain, or run a packed one."""
    parser = argparse.ArgumentParser(description=__doc__)
    verbs = parser.add_subparsers(required=True, dest="verb")
    one = verbs.add_parser("pack")
    one.add_argument("params", type=Path)
    one.add_argument("folder", type=Path)
    one.add_argument("--without-gpu", action="store_true", help="reduced as by `reflow use`")
    one.add_argument("--prompts", type=Path, help="file of texts, one a line")
    two = verbs.add_parser("run")
    two.add_argument("folder", type=Path)
    two.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    two.add_argument("--threads", type=int, default=8)
    two.add_argument("--out", type=Path, default=Path("packed"))
    given = parser.parse_args()
    if given.verb == "pack":
        pack(given.params, given.folder, reduced=given.without_gpu, prompts=given.prompts)
        return
    given.out.mkdir(parents=True, exist_ok=True)
    params = json.loads((given.folder / "params.json").read_text())
    fast = {"precision": "bf16"} if given.device == "cuda" else {"cuda_graphs": False}
    said = {**params["compute"], **fast, "device": given.device, "threads": given.threads}
    sys.path.append(str(given.folder / "site"))
    with tempfile.TemporaryDirectory() as folder:
        chain = Chain(given.folder, Path(folder), given.out, params, settings(Compute, said))
        run(chain)


if __name__ == "__main__":
    main()
