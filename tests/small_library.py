"""A repository whose stages write real, tiny couplings in a second: for tests of the library."""

import shutil
from pathlib import Path

from tests.conftest import Project
from tests.real_chain import Chain

DAG = """
stages:
  prepare:
    cmd: python src/write.py out=couplings/independent
    params: [seed, data]
    deps: [src/write.py]
    outs: [couplings/independent]
  couple:
    foreach: ${couplings}
    do:
      cmd: python src/write.py out=couplings/${key} metrics=metrics/couple/${key}.json
      params: [seed, "couplings.${key}"]
      deps: [couplings/independent, src/write.py]
      outs: ["couplings/${key}"]
      metrics: ["metrics/couple/${key}.json": {cache: false}]
"""
PARAMS = """
seed: 0
compute: {device: cpu, threads: 1}
data: {name: gaussian, mean: [1.0], std: [1.0], samples: 100}
network: {width: 8, depth: 1}
yardstick: {features: {kind: identity}, samples: 50, splits: 2}
evaluate: {nfe: [1], solver: {name: heun, steps: 2}}
gates: {}
rounds:
  rf1: {coupling: independent, init: scratch, train: {steps: 1, lr: 1.0e-3}}
couplings:
  rf1: {round: rf1, pairs: 300, solver: {name: heun, steps: 4}, shard: 100}
"""
WRITE = """
import json, sys
from pathlib import Path

import numpy as np
from ruamel.yaml import YAML

from fmcore.coupling.noise import gaussian_noise
from fmcore.coupling.write import About, finish, table, write_shard

words = dict(word.split("=") for word in sys.argv[1:])
params = YAML(typ="safe").load(Path("params.yaml").read_text())
out = Path(words["out"])
made = params["couplings"].get(out.name)
pairs = made["pairs"] if made else params["data"]["samples"]
kind = "generated" if made else "independent"
about = About(kind=kind, shape=[1], pairs=pairs, seed=params["seed"])
for index, first in enumerate(range(0, pairs, 100)):
    ids = np.arange(first, min(first + 100, pairs))
    noise = gaussian_noise(about.seed, ids, (1,))
    gap = np.full(len(ids), 0.25, np.float32)
    more = {"source": noise, "solver_gap": gap} if made else {}
    write_shard(out, index, table(about, ids, noise + 1, **more))
finish(out, about, -(-pairs // 100))
if "metrics" in words:
    file = Path(words["metrics"])
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps({"pairs": pairs, "solver_gap_rms": 0.25, "solver_gap_rel": 0.5}))
"""


def start(root: Path) -> Chain:
    """Make the repository with two committed versions of the coupling rf1: 300 and 200 pairs.

    Two folders in its home are remotes: `near`, the default one, has all of it, `far` nothing.
    """
    root.mkdir()
    library = Chain(root)
    library.sh("git", "init", "-q", "-b", "main")
    library.sh("dvc", "init", "-q")
    library.sh("dvc", "remote", "add", "-q", "-d", "near", "~/near")
    library.sh("dvc", "remote", "add", "-q", "far", "~/far")
    library.write(".gitignore", "/.reflow/\n/couplings/*/\n")
    library.write("params.yaml", PARAMS)
    library.write("dvc.yaml", DAG)
    library.write("src/write.py", WRITE)
    library.repro()
    library.commit("300 pairs")
    library.sh("git", "tag", "first")
    library.edit("params.yaml", "pairs: 300", "pairs: 200")
    library.repro()
    library.commit("200 pairs")
    library.sh("dvc", "push", "-q", "--all-commits")
    return library


def copy(library: Project, folder: Path) -> Chain:
    """Copy the repository, its cache and its remotes to another folder."""
    shutil.copytree(library.root.parent, folder, symlinks=True)
    return Chain(folder / library.root.name)
