"""Measure what a stage costs around its work: bare verbs, stages run warm, stages run cold.

    python -m benchmarks.stage_start [--repeats 5] [--rounds 2]

One tiny chain is run from nothing, in turn: its verbs one after another in one process that has
imported all (the work itself), `reflow run` with its warm process, without it
(`REFLOW_WARM=0`), and `dvc repro`. Seconds of CPU are those of all processes of a command. The
locks must be equal in each case.
"""

import argparse
import os
import platform
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks.no_op import SOURCE, params

BARE = """
import sys, time
from pathlib import Path
from flows.dag import graph
from flows.params.load import FILE, load
from flows.stage import verbs, warm
from importlib import import_module
for module in warm.MODULES: import_module(module)
root = Path.cwd()
stages = graph.read(root)
cpu, wall = time.process_time(), time.perf_counter()
for name, stage in stages.items():
    verb, _, key = name.partition("@")
    if verb == "inputs": continue
    scratch = root / ".reflow" / "bare" / name
    scratch.mkdir(parents=True)
    paths = {word: Path(path) for word, path in stage.paths.items()}
    verbs.VERBS[verb](load(root / FILE), key, paths, scratch)
print("bare", len(stages) - 1, time.process_time() - cpu, time.perf_counter() - wall)
"""


def prepared(root: Path, rounds: int) -> None:
    """Make a project in which nothing has run."""
    root.mkdir(parents=True)
    for name in ("dvc.yaml", ".dvcignore", ".gitignore", ".dvc/config"):
        if (SOURCE / name).exists():
            (root / name).parent.mkdir(exist_ok=True)
            shutil.copy2(SOURCE / name, root / name)
    np.save(root / "data.npy", np.random.default_rng(0).normal(size=(200, 2)))
    (root / "params.yaml").write_text(params(rounds))
    subprocess.run(["git", "init", "-q"], cwd=root, check=True)


def measured(root: Path, *command: str, **more: str) -> tuple[float, float, str]:
    """Return seconds of CPU and of the clock that a command took, and what it printed."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    env = {**os.environ, "PATH": path, "PYTHONPATH": str(SOURCE), "HOME": str(root.parent)}
    env |= {"DVC_NO_ANALYTICS": "1", "DVC_SITE_CACHE_DIR": str(root / ".reflow" / "dvc"), **more}
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run(command, cwd=root, env=env, capture_output=True, text=True, check=False)
    after, clock = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter() - began
    if done.returncode:
        sys.exit(f"{' '.join(command)}: {done.stdout}{done.stderr}")
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return cpu, clock, done.stdout


def main() -> None:
    """Run the chain each way in turn, print the seconds."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    asked = parser.parse_args()
    run = [sys.executable, "-m", "flows.cli", "run", "--no-prefect", "--no-mlflow"]
    ways: dict[str, tuple[list[str], dict[str, str]]] = {
        "bare verbs": ([sys.executable, "-c", BARE], {}),
        "reflow run, warm": (run, {}),
        "reflow run, cold": (run, {"REFLOW_WARM": "0"}),
        "dvc repro": (["dvc", "repro"], {}),
    }
    took: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    count = 0
    with tempfile.TemporaryDirectory() as folder:
        for number in range(asked.repeats):
            locks = set()
            for name, (command, more) in ways.items():
                root = Path(folder) / f"{number}" / "project"  # one path: it is in no record
                prepared(root, asked.rounds)
                cpu, clock, said = measured(root, *command, **more)
                if name == "bare verbs":
                    words = said.split("bare ")[-1].split()
                    count, cpu, clock = int(words[0]), float(words[1]), float(words[2])
                else:
                    locks.add((root / "dvc.lock").read_text())
                took[name].append((cpu, clock))
                shutil.rmtree(root)
            assert len(locks) == 1, "warm, cold and DVC alone must record the same"
    print(f"{os.cpu_count()} cores, Python {platform.python_version()}; {count} stages")
    base = statistics.median(cpu for cpu, _ in took["bare verbs"])
    for name, pairs in took.items():
        cpus, clocks = (sorted(column) for column in zip(*pairs, strict=True))
        middle = statistics.median(cpus)
        print(
            f"{name:<17} CPU {middle:6.1f} ({cpus[0]:.1f} to {cpus[-1]:.1f})"
            f"  clock {statistics.median(clocks):6.1f} ({clocks[0]:.1f} to {clocks[-1]:.1f})"
            f"  around a stage {(middle - base) / count:5.2f}  over bare {middle / base:.2f}"
        )


if __name__ == "__main__":
    main()
