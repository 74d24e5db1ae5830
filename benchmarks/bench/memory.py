"""Peak memory of verbs as pairs or samples grow, each in a process of its own.

python -m benchmarks.bench.memory VERB NETWORK N FOLDER; the verbs are in `main`.
"""

import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from benchmarks.bench.turns import Row, Sizes, fresh, in_turn, over

NAMES = {"2-D": "2-D MLP", "784": "MLP on 784", "digits": "digits MLP"}
BEFORE = {
    "train": ["make"],
    "train-64": ["make"],
    "verify": ["make"],
    "prepare": ["array"],
    "calibrate": ["digits"],
    "evaluate": ["digits", "judge"],
}
"""What is run once in the folder of a verb, before it is measured."""
SOURCE = Path(__file__).resolve().parents[2]


def peak() -> float:
    """Return the most memory that this process had resident, in MB."""
    status = Path("/proc/self/status")
    if status.exists():  # unlike ru_maxrss it is not that of the process which started this one
        line = next(s for s in status.read_text().splitlines() if s.startswith("VmHWM"))
        return int(line.split()[1]) / 1024
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most / (1 << 20 if sys.platform == "darwin" else 1024)


def make(name: str, pairs: int, folder: Path) -> None:
    """Write a coupling and an untrained network for `train`."""
    import fmcore
    from benchmarks.bench.cases import NETWORKS, pairs_in_memory
    from fmcore.network.build import build
    from fmcore.network.store import save

    fmcore.write_coupling(folder / "coupling", pairs_in_memory(name, pairs))
    save(folder / "init", build(*NETWORKS[name], seed=0), about={"round": "scratch"})


def run_couple(name: str, pairs: int, folder: Path) -> None:
    """Sample a coupling."""
    from benchmarks.bench.coupling import ONE_STEP, Coupler
    from fmcore.couple import Couple

    Coupler(folder, name).run(Couple(pairs=pairs, solver=ONE_STEP))


def run_train(folder: Path, memory_mb: int) -> None:
    """Train some steps on the coupling that `make` wrote, with so much of it in memory."""
    from fmcore.train import Train, train
    from fmcore.work.work import Work

    out = fresh(folder)
    files = out / "model", out / "curve.csv", out / "metrics.json"
    given, work = Train(steps=60, batch=256, memory_mb=memory_mb), Work(scratch=out / "scratch")
    train(folder / "coupling", folder / "init", *files, given, name="rf1", work=work)


def array(name: str, samples: int, folder: Path) -> None:
    """Write data for `prepare`, some rows at a time."""
    import numpy as np

    from benchmarks.bench.cases import NETWORKS

    shape, draw = (samples, *NETWORKS[name][1]), np.random.default_rng(0)
    file = np.lib.format.open_memmap(folder / "data.npy", "w+", np.float32, shape)
    for first in range(0, samples, 1000):
        rows = file[first : first + 1000]
        rows[:] = draw.uniform(-1, 1, rows.shape)
    file.flush()


def run_prepare(folder: Path) -> None:
    """Prepare the array that `array` wrote."""
    from fmcore.dataset.arrays import Array
    from fmcore.prepare import prepare

    settings = Array(name="array", path=str(folder / "data.npy"))
    prepare(fresh(folder) / "data", settings, seed=0)


def run_verify(folder: Path) -> None:
    """Check every byte of the coupling that `make` wrote."""
    from fmcore.coupling.verify import verify

    verify(folder / "coupling")


def digits(samples: int, folder: Path) -> None:
    """Write real data for two halves of `samples`."""
    from benchmarks.bench.evaluation import many_digits
    from fmcore.prepare import prepare

    prepare(folder / "data", many_digits(folder, 2 * samples), seed=0)


def run_calibrate(samples: int, folder: Path, out: Path) -> None:
    """Fit a yardstick of halves of `samples`."""
    from fmcore.calibrate import YardstickSettings, calibrate
    from fmcore.features.extractor import FeatureSettings
    from fmcore.work.work import Work

    features = FeatureSettings(kind="classifier", epochs=1)
    settings = YardstickSettings(features=features, samples=samples, splits=2, floor_cuts=8)
    calibrate(folder / "data", out, settings, Work(scratch=folder / "scratch"))


def judge(samples: int, folder: Path) -> None:
    """Fit a yardstick and write an untrained network for `evaluate`."""
    from benchmarks.bench.cases import network
    from fmcore.network.store import save

    run_calibrate(samples, folder, folder / "yardstick")
    save(folder / "model", network(NAMES["digits"]), about={"round": "rf1"})


def run_evaluate(folder: Path) -> None:
    """Evaluate that network by two solvers."""
    from fmcore.evaluate import Evaluate, EvaluatePaths, evaluate
    from fmcore.work.work import Work

    out, data = fresh(folder), folder / "data"
    paths = EvaluatePaths(
        folder / "model", data, data, folder / "yardstick",
        out / "m.json", out / "fd.csv", out / "gap.csv", out / "pictures",
    )  # fmt: skip
    evaluate(paths, Evaluate(nfe=(1, 2), weights=()), Work(scratch=out / "scratch"))


def child(verb: str, name: str, pairs: int, folder: Path) -> float:
    """Run a verb in a process of its own; return the peak of its memory in MB."""
    words = ["-m", "benchmarks.bench.memory", verb, name, str(pairs), str(folder)]
    command = [sys.executable, *words]
    done = subprocess.run(command, cwd=SOURCE, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(words)}: {done.stderr[-2000:]}")
    return float(done.stdout.split()[-1])


def growth(root: Path, sizes: Sizes) -> Iterator[Row]:
    """Yield the peak at many times the pairs over the peak at once."""
    for case, base in sizes.memory_base.items():
        verb, short = case.split()
        name, folders = NAMES[short], {k: fresh(root) for k in sizes.growth}
        for before in BEFORE.get(verb, []):
            for k, folder in folders.items():
                child(before, name, k * base, folder)
        works = {
            str(k): lambda k=k, f=f, v=verb, n=name, b=base: child(v, n, k * b, fresh_or(f, v))
            for k, f in folders.items()
        }
        found = in_turn(works, sizes.once)
        for k in sizes.growth[1:]:
            ratios = over(found[str(k)], found[str(sizes.growth[0])])
            what = "pairs" if short != "digits" else "samples in each half"
            note = f"{base:,} {what} at 1, there {found['1'][0]:.0f} MB"
            yield Row("memory", case, f"peak at {k} times the pairs over 1 time", ratios, note=note)
        for folder in folders.values():
            shutil.rmtree(folder)
            folder.mkdir()


def fresh_or(folder: Path, verb: str) -> Path:
    """Return a new folder to couple in, or the one that has what the verb reads."""
    return fresh(folder) if verb == "couple" else folder


def main() -> None:
    """Run what is asked for and print the peak."""
    import torch

    torch.set_num_threads(1)
    verb, name, given, place = sys.argv[1:]
    n, folder = int(given), Path(place)
    works: dict[str, Callable[[], None]] = {
        "make": lambda: make(name, n, folder),
        "couple": lambda: run_couple(name, n, folder),
        "array": lambda: array(name, n, folder),
        "prepare": lambda: run_prepare(folder),
        "verify": lambda: run_verify(folder),
        "train": lambda: run_train(folder, 2048),
        "train-64": lambda: run_train(folder, 64),
        "digits": lambda: digits(n, folder),
        "calibrate": lambda: run_calibrate(n, folder, fresh(folder) / "yardstick"),
        "judge": lambda: judge(n, folder),
        "evaluate": lambda: run_evaluate(folder),
    }
    works[verb]()
    print(peak())


if __name__ == "__main__":
    main()
