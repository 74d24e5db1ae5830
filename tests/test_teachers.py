"""docs/teachers.md, from its first command to its last, with a tiny model of plain diffusers."""

import re
import shutil
from copy import deepcopy

import numpy as np
import pytest
import torch
from pydantic import TypeAdapter
from ruamel.yaml import YAML

from fmcore import own
from fmcore.adopt import Teacher
from fmcore.couple import Couple, couple
from fmcore.coupling.read import open_coupling, read
from fmcore.network.store import load as load_model
from fmcore.sampling.flow import Flow
from fmcore.solve.solver import Solver
from fmcore.work.work import Work
from tests import diffusers_folders as folders
from tests.conftest import SOURCE
from tests.fmcore.test_adopt import adopted, coupling
from tests.real_chain import Chain

PAGE = (SOURCE / "docs" / "teachers.md").read_text()
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", PAGE, flags=re.DOTALL)
SMALL = {
    r"steps: 20000": "steps: 4", r"batch: \d+": "batch: 16", r"pairs: \d+": "pairs: 96",
    r"samples: \d+": "samples: 60, splits: 2", r"nfe: \[.*\]": "nfe: [1, 4], trajectories: 32",
    r"device: auto": "device: cpu, threads: 1",
    r"gates: \{\}": "gates: {endpoint_shift: {}, solver_gap_rel: {}, held_out_rel: {},"
    " cost_rise: {}, held_out_ratio: {}}",
}  # fmt: skip
"""What makes the page's chain small; random weights pass no gate."""


def smaller(text):
    for pattern, new in SMALL.items():
        text = re.sub(pattern, new, text)
    return text


def merged(old, new):
    for key, value in new.items():
        if isinstance(value, dict) and isinstance(old.get(key), dict):
            merged(old[key], value)
        else:
            old[key] = deepcopy(value)


def test_the_settings_of_the_page_are_right(tmp_path):
    from flows.params.load import load

    whole, wheel, texts, change = (YAML().load(code) for kind, code in BLOCKS if kind == "yaml")
    YAML().dump(whole, tmp_path / "params.yaml")
    load(tmp_path / "params.yaml")
    merged(whole, change)
    YAML().dump(whole, tmp_path / "params.yaml")
    found = load(tmp_path / "params.yaml")
    assert found.rounds["student"].train.shard == "full"
    assert found.couplings["teacher"].store.target == "float16"
    shutil.copy(SOURCE / "tests" / "terrain.py", tmp_path / "terrain.py")
    own.trust(tmp_path, [wheel["model"]["network"]["path"]])
    TypeAdapter(Teacher).validate_python(wheel["model"])
    whole.update(texts)
    whole["rounds"]["teacher"]["model"]["conditions"] = {}
    YAML().dump(whole, tmp_path / "params.yaml")
    assert load(tmp_path / "params.yaml").data.conditions.encoder.name == "pipeline"


@pytest.mark.slow
@pytest.mark.long
def test_the_commands_of_the_page_run_in_their_order(tmp_path):
    outside = Chain(tmp_path / "home")
    outside.root.mkdir()
    project = Chain(outside.root / "few-steps")
    reflow = 'reflow() { python -m flows.cli "$@"; }\n'
    written = False
    for kind, code in BLOCKS:
        place = project if project.root.exists() else outside
        if kind == "sh":
            words = ("env", f"HOME={outside.root}", "OMP_NUM_THREADS=1")
            place.sh(*words, "bash", "-euo", "pipefail", "-c", reflow + code)
        elif kind == "yaml" and not written:
            project.write("params.yaml", smaller(code))
            folders.pipeline(project.root / "teacher")
            np.save(project.root / "data.npy", folders.images())
            written = True
        elif kind == "py":
            done = place.sh("env", "OMP_NUM_THREADS=1", "python", "-W", "ignore", "-c", code)
            if "meta" in code:
                assert f"`{done.stdout.strip()}`" in PAGE
    lock = project.lock()
    assert "train@student" in lock and "couple@teacher" in lock
    assert (project.root / "sheet.png").stat().st_size > 1000
    page = project.reflow("compare", "--html", "report.html")
    assert page.returncode == 0 and "teacher" in (project.root / "report.html").read_text()


@pytest.mark.slow
@pytest.mark.long
def test_a_pretrained_teacher_of_a_wheel_is_a_round(tmp_path, monkeypatch):
    terrain = pytest.importorskip(
        "terrain_diffusion", reason="adaptive-terrain-diffusion is not installed (docs/teachers.md)"
    )
    pytest.importorskip("onnxruntime")
    # A quarter of a second an evaluation on one core.
    monkeypatch.setattr("fmcore.adopt.EVALUATIONS", 4)
    shutil.copy(SOURCE / "tests" / "terrain.py", tmp_path / "terrain.py")
    own.trust(tmp_path, ["terrain:Terrain"])
    generator = terrain.TerrainGenerator(device="cpu")
    hard = np.full(12, 59 / 99, np.float32)  # difficulty 60 of 1 to 100
    made = generator._sample_native(hard, generator=np.random.default_rng(0), batch_size=4)
    data = coupling(tmp_path / "data", torch.from_numpy(made))
    network = {"name": "custom", "path": "terrain:Terrain", "settings": {"difficulty": 60}}
    out, _ = adopted(
        tmp_path, data, kind="own", network=network,
        prediction={"name": "edm", "output": "denoised"},
    )  # fmt: skip

    theirs = generator.generate(2, shape=128, difficulty=60, seed=7)
    noise = np.random.default_rng(7).standard_normal((2, 1, 128, 128), dtype=np.float32)
    one = Solver(name="euler", steps=1)
    ours = Flow.of(load_model(out)).sample(torch.from_numpy(noise), one).x
    heights = generator._from_model_space(ours.numpy(), zero_floor=True)
    np.testing.assert_allclose(heights, theirs, atol=1e-3)
    assert theirs.max() > 0.1

    work = Work(scratch=tmp_path / "scratch")
    couple(
        out, data, tmp_path / "pairs", tmp_path / "pairs.json", Couple(pairs=4, solver=one), work
    )
    pairs = read(open_coupling(tmp_path / "pairs"))
    assert open_coupling(tmp_path / "pairs").about.model == load_model(out).digest
    again = Flow.of(load_model(out)).sample(pairs.source, one).x
    torch.testing.assert_close(pairs.target, again, atol=1e-4, rtol=1e-4)
