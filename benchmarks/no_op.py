"""Measure a run in which nothing changed: `reflow run` and `dvc repro` against DVC alone.

    python benchmarks/no_op.py [ROUNDS ...] [--repeats 5] [--mlflow] [--keep FOLDER]

A chain of two tiny rounds runs for real; longer ones get copies of the outputs of its second round,
and DVC writes their dvc.lock. "DVC alone" is `dvc repro` in a copy of the same project whose stage
`inputs` is frozen: DVC then checks the same stages and files, and nothing checks the code. The
commands take turns, so that other load on the machine affects all of them.
"""

import argparse
import importlib.metadata
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

SOURCE = Path(__file__).resolve().parents[1]
PARAMS = """
seed: 0
compute: {device: cpu, threads: 1}
data: {name: array, path: data.npy}
network: {width: 16, depth: 1, time_features: 8}
yardstick: {features: {kind: identity}, samples: 50, splits: 2}
evaluate: {nfe: [1, 4], solver: {name: euler, steps: 4}, trajectories: 50}
gates: {}
"""
TRAIN = "{steps: 20, batch: 32, lr: 1.0e-3, warmup: 2}"
COUPLE = "{round: %s, pairs: 200, shard: 100, solver: {name: euler, steps: 4}}"


def params(rounds: int) -> str:
    """Return params.yaml of a chain of so many rounds, each trained on what the last one made."""
    names = [f"rf{k}" for k in range(1, rounds + 1)]
    before = dict(zip(names, [("independent", "scratch"), *((n, n) for n in names)], strict=False))
    lines = [f"  {n}: {{coupling: {c}, init: {i}, train: {TRAIN}}}" for n, (c, i) in before.items()]
    made = [f"  {n}: {COUPLE % n}" for n in names[:-1]]
    return "\n".join([PARAMS, "rounds:", *lines, "couplings:", *made, ""])


def sh(root: Path, *command: str) -> None:
    """Run a command in a project; its output is shown only if it fails."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    env = {**os.environ, "PATH": path, "PYTHONPATH": str(root), "HOME": str(root.parent)}
    env |= {"DVC_NO_ANALYTICS": "1", "DVC_SITE_CACHE_DIR": str(root / ".reflow" / "dvc")}
    done = subprocess.run(command, cwd=root, env=env, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(command)}: {done.stdout}{done.stderr}")


def start(root: Path) -> None:
    """Copy the working tree to `root` and run two tiny rounds there."""
    git = ["git", "-C", str(SOURCE), "ls-files", "-co", "--exclude-standard"]
    for name in subprocess.run(git, capture_output=True, text=True, check=True).stdout.splitlines():
        if (SOURCE / name).is_file() and name != "dvc.lock":
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(SOURCE / name, root / name)
    np.save(root / "data.npy", np.random.default_rng(0).normal(size=(200, 2)))
    (root / "params.yaml").write_text(params(2))
    sh(root, "git", "init", "-q")
    sh(root, "dvc", "repro", "-q")


FAKE = """
import shutil, sys
from pathlib import Path
from dvc.repo import Repo
for round_ in (f"rf{k}" for k in range(3, int(sys.argv[1]) + 1)):
    for made in ("models/rf2", "pictures/rf2"):
        shutil.copytree(made, made.replace("rf2", round_))
    for made in Path().glob("*/*/rf2.*"):
        shutil.copy(made, str(made).replace("rf2", round_))
for k in range(2, int(sys.argv[1])):
    shutil.copytree("couplings/rf1", f"couplings/rf{k}")
    shutil.copy("metrics/couple/rf1.json", f"metrics/couple/rf{k}.json")
from flows.dag import inputs
shutil.rmtree("inputs")
inputs.write(Path.cwd())
with Repo() as repo, repo.lock:
    stages = [s for s in repo.index.stages if s.addressing != "compare"]
    for stage in stages:
        stage.save(run_cache=False)
        stage.commit()
    stages[0].dvcfile.dump_stages(stages, update_pipeline=False)
"""


def grow(root: Path, rounds: int) -> None:
    """Make the chain as long as asked, with copies of the second round; then compare for real."""
    (root / "params.yaml").write_text(params(rounds))
    sh(root, sys.executable, "-c", FAKE, str(rounds))
    sh(root, "dvc", "repro", "-q")


def freeze(root: Path) -> None:
    """Freeze the stage `inputs`: DVC checks its outputs, and never runs it."""
    file = root / "dvc.yaml"
    text = file.read_text()
    frozen = text.replace("    always_changed: true\n", "    frozen: true\n", 1)
    assert frozen != text
    file.write_text(frozen)
    sh(root, "dvc", "repro", "-q")


def measure(ours: Path, alone: Path, repeats: int, mlflow: bool) -> dict[str, list[float]]:
    """Return the seconds of each command, run one after another `repeats` times."""
    reflow = [sys.executable, "-m", "flows.cli"]
    run = [*reflow, "run", *([] if mlflow else ["--no-mlflow"])]
    commands = {
        "DVC alone": (alone, ["dvc", "repro"]),
        "dvc repro": (ours, ["dvc", "repro"]),
        "reflow run": (ours, run),
        "reflow plan": (ours, [*reflow, "plan"]),
    }
    took: dict[str, list[float]] = {name: [] for name in commands}
    for _ in range(repeats + 1):  # the first fills the caches of files and is not counted
        for name, (root, command) in commands.items():
            began = time.perf_counter()
            sh(root, *command)
            took[name].append(time.perf_counter() - began)
    return {name: seconds[1:] for name, seconds in took.items()}


def main() -> None:
    """Build the projects, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("rounds", nargs="*", type=int, default=[2, 50])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--mlflow", action="store_true", help="`reflow run` with MLflow's records")
    parser.add_argument("--keep", type=Path, help="build the projects here, and leave them")
    asked = parser.parse_args()
    versions = [f"{n} {importlib.metadata.version(n)}" for n in ("dvc", "ruamel.yaml", "pydantic")]
    print(f"{os.cpu_count()} cores, Python {platform.python_version()}, {', '.join(versions)}")
    with tempfile.TemporaryDirectory() as folder:
        base = asked.keep or Path(folder)
        for rounds in asked.rounds:
            ours, alone = base / f"{rounds}" / "ours", base / f"{rounds}" / "alone"
            if not ours.exists():
                start(ours)
                if rounds > 2:
                    grow(ours, rounds)
                shutil.copytree(ours, alone, symlinks=True)
                freeze(alone)
            took = measure(ours, alone, asked.repeats, asked.mlflow)
            base_line = statistics.median(took["DVC alone"])
            print(f"\n{rounds} rounds: seconds, median (least to most of {asked.repeats})")
            for name, seconds in took.items():
                middle = statistics.median(seconds)
                spread = f"{middle:6.2f} ({min(seconds):.2f} to {max(seconds):.2f})"
                print(f"  {name:<12} {spread}   {middle / base_line:.2f} times DVC alone")


if __name__ == "__main__":
    main()
