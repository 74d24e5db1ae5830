"""README.md from its first block to its last, in one shell, as a reader would paste them."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from tests import hub
from tests.conftest import SOURCE
from tests.real_chain import Chain, copied
from tests.test_tutorial import faces, merged, smaller

pytestmark = [pytest.mark.slow, pytest.mark.long]
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", (SOURCE / "README.md").read_text(), flags=re.DOTALL)
HERE = "python -W ignore -m tests.test_readme"
INSTEAD = {
    r"make test .*\n": "",  # this is a part of it
    r"(reflow init my-flows && cd my-flows\n)": r"(\n\1",  # a project beside the demo's: left again
    r"(reflow new cats .*\n)": rf"\1{HERE} smaller params/cats.yaml\n",
    r"(reflow estimate\nreflow run\n)": r"\1)\n",
    r"me/pairs": "lab/pairs",  # a user of the hub of the tests
    r"reflow ui .*\n": "timeout -s INT 90 reflow ui > ui.txt || true\ngrep -c http://127 ui.txt\n",
}
"""What a test does otherwise than a reader; each is found once."""
SBATCH = '#!/bin/sh\nfor f; do case $f in *.slurm) exec bash -n "$f";; esac; done\nexit 1\n'
"""In place of a scheduler: the script is there, and bash can read it."""


def script():
    """Return all blocks as one script; a block of YAML is added to params.yaml and run."""
    found = "set -euo pipefail\n"
    for number, (kind, code) in enumerate(BLOCKS):
        if kind == "yaml":
            code = f"{HERE} add {number}\nreflow run\n"
        elif kind == "python":
            code = f"python -W ignore - <<'END'\n{code}END\n"
        found += f"echo '### block {number}: {code.splitlines()[0]}'\n" + code
    for pattern, new in INSTEAD.items():
        found, times = re.subn(pattern, new, found)
        assert times == 1, pattern
    return found


def add(number):
    """Add the rounds and couplings of a block to params.yaml, as a reader would."""
    yaml, file = YAML(), Path("params.yaml")
    params = yaml.load(file)
    merged(params, yaml.load(BLOCKS[number][1]))
    yaml.dump(params, file)


def test_the_blocks_of_the_readme_run_in_their_order(tmp_path):
    chain = Chain(copied(tmp_path / "home" / "reflow-chain"))
    home = tmp_path / "home"
    faces(home / "pictures" / "cats")
    # The environment of the tests stands for the one that `make setup` would make.
    (chain.root / ".venv").mkdir()
    (chain.root / ".venv" / "bin").symlink_to(Path(sys.executable).parent)
    (chain.root / ".venv" / ".installed").touch()
    (home / "bin").mkdir()
    (home / "bin" / "sbatch").write_text(SBATCH)
    (home / "bin" / "sbatch").chmod(0o755)
    env = {k: v for k, v in chain.env().items() if k not in ("VENV", "COLUMNS")}
    env |= {"HOME": str(home), "PATH": f"{home / 'bin'}{os.pathsep}{env['PATH']}"}
    with hub.serving() as serving, (home / "said.txt").open("w+") as said:
        env |= {"HF_ENDPOINT": serving.url, "HF_TOKEN": hub.WRITE, "HF_HUB_DISABLE_XET": "1"}
        done = subprocess.run(
            ["bash", "-c", script()],
            cwd=chain.root, env=env, stdout=said, stderr=subprocess.STDOUT, check=False,
        )  # fmt: skip
        said.seek(0)
        assert done.returncode == 0, said.read()[-6000:]
        assert ("dataset", "lab/pairs") in serving.repos
    assert "train@rf3" in chain.lock()
    assert (chain.root / "my-flows" / "models" / "rf2").is_dir()
    assert list((home / "reflow-store").rglob("*.dir")), "the remote has the couplings"
    assert (chain.root / "rf2").is_dir() and (chain.root / "film.gif").is_file()


if __name__ == "__main__":
    what, which = sys.argv[1:]
    if what == "add":
        add(int(which))
    else:
        Path(which).write_text(smaller(Path(which).read_text()))
