"""A repository whose two stages make real, tiny couplings in seconds: for tests of the library.

The model that the coupling rf1 is sampled from is an untrained one that git keeps.
"""

import shutil
from pathlib import Path

from fmcore.network.mlp import MLP
from tests.chains import scratch_model
from tests.conftest import Project
from tests.real_chain import Chain

DAG = """
stages:
  prepare:
    cmd: python -m flows.stage prepare out=couplings/independent metrics=metrics/prepare.json
    params: [seed, data]
    outs: [couplings/independent]
  couple:
    foreach: ${couplings}
    do:
      cmd: >-
        python -m flows.stage couple ${key} model=models/${item.round}
        data=couplings/independent out=couplings/${key} metrics=metrics/couple/${key}.json
      params: [seed, "couplings.${key}"]
      deps: ["models/${item.round}", couplings/independent]
      outs: ["couplings/${key}"]
      metrics: ["metrics/couple/${key}.json": {cache: false}]
"""
PARAMS = """
seed: 0
compute: {device: cpu, threads: 1}
data: {name: gaussian, mean: [1.0], std: [1.0], samples: 100}
network: {width: 8, depth: 1, time_features: 2}
yardstick: {features: {kind: identity}, samples: 50, splits: 2}
evaluate: {nfe: [1], solver: {name: heun, steps: 2}}
gates: {endpoint_shift: {}, solver_gap_rel: {}}
rounds:
  rf1: {coupling: independent, init: scratch, train: {steps: 1, lr: 1.0e-3}}
couplings:
  rf1: {round: rf1, pairs: 300, solver: {name: heun, steps: 4}, shard: 100}
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
    scratch_model(root / "models/rf1", dim=1, network=MLP(width=8, depth=1, time_features=2))
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
