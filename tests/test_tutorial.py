"""docs/tutorial.md, from its first command to its last, on a few small images made here."""

import re
import time
from copy import deepcopy

import numpy as np
import pytest
from PIL import Image
from ruamel.yaml import YAML

from tests.conftest import SOURCE
from tests.real_chain import Chain

pytestmark = [pytest.mark.slow, pytest.mark.long]
TUTORIAL = (SOURCE / "docs" / "tutorial.md").read_text()
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", TUTORIAL, flags=re.DOTALL)
INSTALLED = re.compile(r"^(python -m venv|pip install) .*\n", re.MULTILINE)
"""The lines of the first block that this environment stands for."""
SMALL = {
    r"steps: \d+": "steps: 4", r"batch: \d+": "batch: 16", r"pairs: \d+": "pairs: 96",
    r"epochs: \d+": "epochs: 2", r"nfe: \[.*\]": "nfe: [1, 4]", r"splits: \d+": "splits: 2",
    r"trajectories: \d+": "trajectories: 32", r"reconstructions: \d+": "reconstructions: 32",
    r"channels: \[.*?\]": "channels: [8, 8]", r"threads: \d+": "threads: 1",
    r"gates: \{\}": "gates: {endpoint_shift: {fail: null}, solver_gap_rel: {fail: null},"
    " cost_rise: {fail: null}, held_out_ratio: {fail: null}}",
}  # fmt: skip
"""What makes the chain small, in the file that `reflow new` wrote, and in the YAML of the page."""


def smaller(text):
    for pattern, new in SMALL.items():
        text = re.sub(pattern, new, text)
    return text


def faces(folder):
    """Draw 48 images of 8 x 8, in two folders that are classes: a bright left or right half."""
    draw = np.random.default_rng(0)
    for number in range(48):
        side = number % 2
        pixels = draw.integers(0, 90, (8, 8, 3))
        pixels[:, 4 * side : 4 * side + 4] += 150
        file = folder / ("left", "right")[side] / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.astype(np.uint8)).save(file)


def merged(old, new):
    """Add the rounds and couplings of a block to those that there are, as a reader would."""
    for key, value in new.items():
        if isinstance(value, dict) and key in old:
            merged(old[key], value)
        else:
            old[key] = deepcopy(value)


def test_the_commands_of_the_tutorial_run_in_their_order(tmp_path):
    outside = Chain(tmp_path / "home")
    outside.root.mkdir()
    faces(tmp_path / "home" / "pictures" / "faces")
    project = Chain(outside.root / "my-flows")
    yaml, begun = YAML(), time.monotonic()
    reflow = 'reflow() { python -m flows.cli "$@"; }\ndvc() { python -m dvc "$@"; }\n'
    for kind, code in BLOCKS:
        place = project if project.root.exists() else outside
        env = ("env", f"HOME={outside.root}", "OMP_NUM_THREADS=1")
        if kind == "sh":
            place.sh(*env, "bash", "-euo", "pipefail", "-c", reflow + INSTALLED.sub("", code))
        elif kind == "yaml":
            params = yaml.load(project.root / "params.yaml")
            merged(params, yaml.load(smaller(code)))
            yaml.dump(params, project.root / "params.yaml")
        else:
            assert kind == "py" and "3, 32, 32" in code
            place.sh(*env, "python", "-W", "ignore", "-c", code.replace("32, 32", "8, 8"))
        if "reflow new" in code:
            written = project.root / "params" / "faces.yaml"
            written.write_text(smaller(written.read_text()))
        print(f"{time.monotonic() - begun:.0f} s after: {code.splitlines()[0]}")
    lock = project.lock()
    assert "train@rf3" in lock and "couple@rf2" in lock
    assert "<html" in (project.root / "report.html").read_text()
    assert Image.open(project.root / "sheet.png").size[0] > 64
    assert list((outside.root / "reflow-store").rglob("*.dir")), "the remote has the couplings"
    assert project.sh("git", "log", "--oneline").stdout.count("Three rounds on faces") == 1
