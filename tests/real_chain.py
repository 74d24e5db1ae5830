"""A copy of this repository that runs a real, small chain with real engines."""

import json
import shutil
import subprocess
from pathlib import Path

from ruamel.yaml import YAML

from tests.conftest import SOURCE, Project

PARAMS = """
seed: 0
compute: {device: cpu, threads: 1}
data: {name: gaussian, mean: [2.0, -1.0], std: [1.0, 1.0], samples: 4000}
network: {width: 32, depth: 1, time_features: 16}
yardstick: {features: {kind: identity}, samples: 500, splits: 2}
evaluate: {nfe: [1, 4, 16], solver: {name: heun, steps: 16}, trajectories: 500}
gates: {}

rounds:
  rf1:
    coupling: independent
    init: scratch
    train: {steps: 500, batch: 256, lr: 1.0e-2, ema: 0.98, warmup: 20, checkpoint_every: 200}
  rf2:
    coupling: rf1
    init: rf1
    train: {steps: 200, batch: 256, lr: 3.0e-3, ema: 0.98, warmup: 20}
couplings:
  rf1: {round: rf1, pairs: 2000, shard: 512, solver: {name: rk4, steps: 8}}
"""
PROXY = "http://127.0.0.1:9"
OUTPUTS = ("models", "couplings", "curves", "metrics", "pictures", "yardstick", "comparison")


def real_stages(project: Project, *names: str) -> None:
    """Give a project the code of this repository, and some stages of its dvc.yaml."""
    for package in ("fmcore", "flows"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(SOURCE / package, project.root / package, ignore=ignored)
    stages = YAML(typ="safe").load(SOURCE / "dvc.yaml")["stages"]
    with (project.root / "dvc.yaml").open("w") as file:
        YAML(typ="safe").dump({"stages": {name: stages[name] for name in names}}, file)


class Chain(Project):
    """The copy of the repository, and what the tests ask of it."""

    REFLOW = ("python", "-m", "flows.cli")

    def env(self):
        clean = {k: v for k, v in super().env().items() if not k.startswith(("PREFECT", "MLFLOW"))}
        home = self.root.parent / "home"
        home.mkdir(exist_ok=True)
        source = self.root if (self.root / "flows").is_dir() else SOURCE
        more = {"HOME": str(home), "PYTHONPATH": str(source), "COLUMNS": "200"}
        return {**clean, **more}

    def reflow(self, *words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        return self.sh(*self.REFLOW, *words, check=check)

    def lock(self) -> str:
        return (self.root / "dvc.lock").read_text()

    def commit(self, message: str) -> str:
        self.sh("git", "add", "-A")
        self.sh("git", "commit", "-q", "-m", message)
        return self.sh("git", "rev-parse", "HEAD").stdout.strip()

    def plan(self) -> dict[str, str]:
        return {p["stage"]: p["state"] for p in json.loads(self.reflow("plan", "--json").stdout)}

    def mlflow(self, code: str) -> str:
        head = (
            "from pathlib import Path; from flows.tracking.client import Tracker;"
            "t = Tracker(Path.cwd()); "
        )
        return self.sh("python", "-W", "ignore", "-c", head + code).stdout.strip()


def copied(root: Path) -> Path:
    """Copy the working tree, uncommitted changes included, to `root` as a git repository."""
    files = subprocess.run(
        ["git", "-C", str(SOURCE), "ls-files", "-co", "--exclude-standard"],
        capture_output=True, text=True, check=True,
    ).stdout.splitlines()  # fmt: skip
    for name in files:
        made = name.split("/")[0] in OUTPUTS or name == "dvc.lock"
        if (SOURCE / name).is_file() and not made:
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(SOURCE / name, root / name)
    Chain(root).sh("git", "init", "-q")
    Chain(root).commit("start")
    return root


def start(root: Path) -> Chain:
    """Run a small chain in a copy of the working tree."""
    chain = Chain(copied(root))
    chain.write("params.yaml", PARAMS)
    chain.commit("small")
    # Behind a proxy that does not answer: nothing that the chain needs is reached through it.
    proxies = [f"{name}={PROXY}" for name in ("HTTP_PROXY", "https_proxy")]
    done = chain.sh("env", *proxies, "python", "-m", "flows.cli", "run")
    chain.write(".reflow/run.log", done.stdout + done.stderr)
    chain.commit("two rounds")
    return chain
