"""A whole chain of one round, so small that its stages run in this process in seconds."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from flows.project import environment
from flows.stage.__main__ import main
from tests.conftest import SOURCE, Project

PARAMS = """
seed: 0
compute: {device: cpu, threads: 1}
data: {name: gaussian, mean: [2.0, -1.0], std: [1.0, 1.0], samples: 200}
network: {width: 8, depth: 1, time_features: 4}
yardstick: {features: {kind: identity}, samples: 50, splits: 2}
evaluate: {nfe: [1, 2], solver: {name: heun, steps: 2}, trajectories: 50}
gates:
  endpoint_shift: {}
  solver_gap_rel: {}
  held_out_ratio: {}
rounds:
  rf1:
    coupling: independent
    init: scratch
    train: {steps: 40, batch: 32, lr: 1.0e-3, warmup: 2, checkpoint_every: 10, log_every: 10}
couplings:
  rf1: {round: rf1, pairs: 100, solver: {name: heun, steps: 4}, shard: 40}
"""


@contextmanager
def in_this_process(root: Path, params: str = PARAMS) -> Iterator[Project]:
    """Give the chain, committed in `root`, where this process works meanwhile."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("DVC_SITE_CACHE_DIR", "PREFECT_HOME", "MLFLOW_TRACKING_URI"):
            patch.setenv(name, "")  # so that what configure sets is undone afterwards
            patch.delenv(name)
        patch.chdir(root)
        patch.setenv("PYTHONPATH", str(SOURCE))
        environment.configure(root)
        project = build(root, params)
        for words in (["add", "-A"], ["commit", "-q", "-m", "a chain"]):
            project.sh("git", *words)
        yield project


def build(root: Path, params: str = PARAMS) -> Project:
    """Run every stage in this process, in the folder `root`, and let DVC record the outputs."""
    from dvc.repo import Repo

    from flows.dag import graph

    project = Project(root)
    project.sh("git", "init", "-q", "-b", "main")
    project.sh("dvc", "init", "-q")
    shutil.copy2(SOURCE / "dvc.yaml", root / "dvc.yaml")
    project.write("params.yaml", params)
    project.write(".gitignore", "/.reflow/\n")
    for name, stage in graph.read(root).items():
        words = stage.cmd.removeprefix("python -m flows.stage ").split()
        assert main(words) == 0, name
        with Repo(str(root)) as repo:
            repo.commit(name, force=True)
    return project
