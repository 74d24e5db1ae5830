"""The stage `inputs`: what it sees of code and files, and what DVC then does."""

import ast
import json
import os
import re
import shutil
import time
from pathlib import Path

import numpy as np
import pytest

from flows.dag import graph, inputs
from flows.run.chain import update_chain
from flows.stage.guard import guarded
from fmcore.settings import ReflowError
from tests.conftest import SOURCE
from tests.imports import closure
from tests.real_chain import OUTPUTS, Chain

PARAMS = """
seed: 0
compute: {device: cpu, threads: 1}
data: {name: array, path: data.npy}
network: {width: 16, depth: 1, time_features: 8}
yardstick: {features: {kind: identity}, samples: 50, splits: 2}
evaluate: {nfe: [1, 4], solver: {name: euler, steps: 4}, trajectories: 50}
gates: {}
rounds:
  rf1: {coupling: independent, init: scratch, train: {steps: 20, batch: 32, lr: 1.0e-3, warmup: 2}}
couplings: {}
"""
WITH_COUPLING = PARAMS.replace("couplings: {}", "couplings: {rf1: {round: rf1, pairs: 200}}")
MODULES = sorted(p.relative_to(SOURCE).as_posix() for p in (SOURCE / "fmcore").rglob("*.py"))
MODULES = [m for m in MODULES if not m.endswith("__init__.py")]


@pytest.fixture(scope="module")
def code(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project of somebody's own that holds a copy of fmcore; put back what you edit."""
    root = tmp_path_factory.mktemp("code")
    shutil.copytree(
        SOURCE / "fmcore", root / "fmcore", ignore=shutil.ignore_patterns("__pycache__")
    )
    (root / "params.yaml").write_text(WITH_COUPLING)
    np.save(root / "data.npy", np.zeros((200, 2)))
    return root


def edited(source: str) -> str:
    """Change all that only people read: comments, layout, docstrings, descriptions, types."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            if isinstance(node.value.value, str):
                node.value.value += " And a word more."
        elif isinstance(node, ast.Call) and getattr(node.func, "id", "") == "Field":
            kept = [k for k in node.keywords if k.arg != "description"]
            node.keywords = [*kept, ast.keyword("description", ast.Constant("another"))]
    text = ast.unparse(tree)
    future = re.match(r"(.*?from __future__[^\n]*\n)?", text, re.DOTALL)
    head = future[0] if future else ""
    types = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import fmcore.train\n"
    return f"{head}# a comment\n{types}{text[len(head) :]}\n\n# another\n"


def test_words_layout_and_types_edited_everywhere_change_nothing(code, before):
    originals = {name: (code / name).read_text() for name in MODULES}
    try:
        for name, text in originals.items():
            (code / name).write_text(edited(text))
            assert (code / name).read_text() != text
        assert inputs.compute(code) == before
    finally:
        for name, text in originals.items():
            (code / name).write_text(text)


def acting(source: str) -> str:
    """Edit the first function of a module, or the module if it has none."""
    tree = ast.parse(source)
    functions = [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef)]
    (functions[0] if functions else tree).body.append(ast.parse("edited = 1").body[0])
    return ast.unparse(tree)


@pytest.fixture(scope="module")
def before(code: Path) -> dict[str, str]:
    return inputs.compute(code)


def stages_that_change(
    code: Path, before: dict[str, str], name: str, text: str | None = None
) -> set[str]:
    original = (code / name).read_text()
    try:
        (code / name).write_text(text or acting(original))
        after = inputs.compute(code)
    finally:
        (code / name).write_text(original)
    assert set(before) == set(after)
    return {Path(path).with_suffix("").parts[1] for path in after if after[path] != before[path]}


@pytest.mark.parametrize("module", MODULES)
def test_a_function_edited_changes_exactly_the_stages_that_reach_it(code, before, module):
    verbs = {*inputs.READS} - {"adopt"}  # of a round with a model of others: test_teachers.py
    reach = {verb for verb in verbs if module in closure(f"fmcore.{verb}")}
    assert stages_that_change(code, before, module) == reach


@pytest.mark.parametrize(
    ("source", "stages"),
    [
        ("source: {name: noise}", set()),
        ("source: {name: array, path: data.npy}", {"prepare"}),
        ("source: {name: two_moons}", {"prepare"}),
    ],
)
def test_a_source_is_an_input_of_prepare_alone_and_noise_is_none(code, before, source, stages):
    text = f"{WITH_COUPLING}\n{source}\n"
    assert stages_that_change(code, before, "params.yaml", text) == stages
    if "array" in source:
        (code / "params.yaml").write_text(text)
        try:
            found = json.loads(inputs.compute(code)["inputs/prepare.json"])
            assert set(found["files"]) == {"data.path", "source.path"}
            said = inputs.changes(before["inputs/prepare.json"], json.dumps(found))
            assert said == ["source changed in params.yaml", "source.path: is named now"]
        finally:
            (code / "params.yaml").write_text(WITH_COUPLING)


@pytest.mark.parametrize("key", ["weights", "statistics", "dinov2", "clip"])
def test_a_replaced_file_of_the_published_protocol_is_another_input_of_calibrate(code, before, key):
    """The statistics and the weights; the same bytes in another place are the same input."""
    file, moved = code / "a.bin", code / "b.bin"
    text = WITH_COUPLING.replace("splits: 2}", "splits: 2, protocol: {weights: a.bin, KEY: FILE}}")
    if key == "weights":
        text = text.replace(", KEY: FILE", "").replace("weights: a.bin", "weights: FILE")
    texts = [text.replace("KEY", key).replace("FILE", name) for name in ("a.bin", "b.bin")]
    place = f"yardstick.protocol.{key}"
    try:
        (code / "params.yaml").write_text(texts[0])
        found = []
        for content in (b"one", b"two"):
            file.write_bytes(content)
            moved.write_bytes(content)
            found.append(inputs.compute(code))
        one, two = found
        assert {path for path in one if one[path] != two[path]} == {"inputs/calibrate.json"}
        said = inputs.changes(one["inputs/calibrate.json"], two["inputs/calibrate.json"])
        assert any(line.startswith(f"{place}: its content changed") for line in said)
        (code / "params.yaml").write_text(texts[1])
        assert inputs.compute(code) == two
        moved.unlink()
        known = json.loads(inputs.compute(code)["inputs/calibrate.json"])["files"]
        assert known[place] == {"missing": True}
    finally:
        (code / "params.yaml").write_text(WITH_COUPLING)
        file.unlink(missing_ok=True)
        moved.unlink(missing_ok=True)


def test_what_trains_is_not_what_solves_and_batches_prepare_nothing():
    assert "fmcore/solve/adaptive.py" not in closure("fmcore.train")
    assert "fmcore/training/batches.py" not in closure("fmcore.prepare")
    assert "fmcore/training/batches.py" in closure("fmcore.train")


def test_a_syntax_error_is_another_meaning_and_stops_nothing(code, before):
    assert "train" in stages_that_change(code, before, "fmcore/training/fit.py", "def fit(:\n")


def test_a_module_that_was_renamed_is_another(code, before):
    old, new = code / "fmcore/verdict/gates.py", code / "fmcore/verdict/limits.py"
    users = [f for f in (code / "fmcore").rglob("*.py") if "fmcore.verdict.gates" in f.read_text()]
    texts = {file: file.read_text() for file in users}
    try:
        for file, text in texts.items():
            file.write_text(text.replace("fmcore.verdict.gates", "fmcore.verdict.limits"))
        old.rename(new)
        said = inputs.changes(
            before["inputs/compare.json"], inputs.compute(code)["inputs/compare.json"]
        )
    finally:
        new.rename(old)
        for file, text in texts.items():
            file.write_text(text)
    assert "code of fmcore.verdict.gates changed" in said
    assert "code of fmcore.verdict.limits changed" in said
    assert inputs.compute(code) == before


def replace(file: Path, content: bytes) -> None:
    """Put other content in the place of a file, with the same time of change."""
    status = file.stat()
    file.unlink()
    file.write_bytes(content)
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert file.stat().st_mtime_ns == status.st_mtime_ns


NAMED = {
    "array": ("data: {name: array, path: f}", "f", "prepare", "data.path"),
    "images": ("data: {name: images, root: g}", "g/a/1.png", "prepare", "data.root"),
    "cifar10": ("data: {name: cifar10, root: g}", "g/test_batch", "prepare", "data.root"),
    "fashion": ("data: {name: fashion_mnist, root: g}", "g/t.gz", "prepare", "data.root"),
    "emoji": ("data: {name: emoji, font: f}", "f", "prepare", "data.font"),
    **{
        name: (
            f"data: {{name: digits, conditions: {{encoder: {{name: {name}, path: g}}}}}}",
            "g/config.json", "prepare", "data.conditions.encoder.path",
        ) for name in ("folder", "pipeline")
    },
    "weights": (
        "yardstick: {features: {kind: inception, weights: f}}", "f", "calibrate",
        "yardstick.features.weights",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("line", "name", "verb", "place"), NAMED.values(), ids=NAMED)
def test_a_file_that_params_yaml_names_counts_by_its_content(tmp_path, line, name, verb, place):
    (tmp_path / "params.yaml").write_text(f"{line}\nrounds: {{rf1: {{}}}}\n")
    path = f"inputs/{verb}.json"
    before = inputs.compute(tmp_path)
    assert json.loads(before[path])["files"] == {place: {"missing": True}}
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_bytes(b"old")
    first = inputs.compute(tmp_path)
    assert inputs.changes(before[path], first[path]) == [f"{place}: the file is there now"]
    replace(tmp_path / name, b"new")
    second = inputs.compute(tmp_path)
    same_size = f"{place}: its content changed (1 file, 3 bytes -> 1 file, 3 bytes)"
    assert inputs.changes(first[path], second[path]) == [same_size]
    assert [p for p in second if second[p] != first[p]] == [path]
    replace(tmp_path / name, b"old")
    assert inputs.compute(tmp_path) == first
    if "/" in name:
        (tmp_path / name).rename(tmp_path / f"{name}2")
        assert [p for p, t in inputs.compute(tmp_path).items() if t != first[p]] == [path]


def test_the_weights_of_a_perceptual_loss_count_for_the_round_that_names_them(tmp_path):
    loss = "{name: perceptual, weights: f}"
    rounds = f"{{rf1: {{}}, rf2: {{train: {{loss: {loss}}}}}}}"
    (tmp_path / "params.yaml").write_text(f"rounds: {rounds}\n")
    before = inputs.compute(tmp_path)
    (tmp_path / "f").write_bytes(b"weights")
    after = inputs.compute(tmp_path)
    assert [path for path in after if after[path] != before[path]] == ["inputs/train/rf2.json"]
    said = inputs.changes(before["inputs/train/rf2.json"], after["inputs/train/rf2.json"])
    assert said == ["train.loss.weights: the file is there now"]


def test_a_file_that_cannot_be_read_is_one_line(tmp_path, monkeypatch):
    (tmp_path / "params.yaml").write_text("data: {name: array, path: f}\nrounds: {rf1: {}}\n")
    (tmp_path / "f").write_text("x")

    def refuse(*_: object) -> str:
        raise PermissionError(13, "Permission denied", str(tmp_path / "f"))

    monkeypatch.setattr(inputs, "sha256", refuse)
    with pytest.raises(ReflowError, match=r"/f: cannot be read \(Permission denied\)"):
        inputs.compute(tmp_path)


def test_what_differs_is_always_said():
    entry = json.dumps({"code": {"a": "1"}, "own": {}, "files": {}})
    assert inputs.changes(entry, entry) == []
    for other in (None, "no JSON", "[]", "{}", json.dumps({"code": 1})):
        assert inputs.changes(other, entry)
        assert inputs.changes(entry, other)
    assert inputs.changes(entry, json.dumps({**json.loads(entry), "more": 1}))


# Real stages, by DVC


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Chain:
    """A tiny chain that `dvc repro` alone ran, pushed to a remote; copy it, do not change it."""
    root = tmp_path_factory.mktemp("made") / "project"
    for name in ("flows", "fmcore", "dvc.yaml", ".gitignore"):
        source = SOURCE / name
        root.mkdir(exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, root / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, root / name)
    chain = Chain(root)
    chain.write("params.yaml", PARAMS)
    data(chain, 0)
    chain.sh("git", "init", "-q")
    chain.sh("dvc", "init", "-q")
    chain.sh("dvc", "remote", "add", "-d", "store", str(root.parent / "store"))
    chain.repro()
    chain.sh("git", "add", "-A")
    chain.sh("git", "commit", "-qm", "a round")
    chain.reflow("push")
    chain.sh("dvc", "push", "-q")
    return chain


@pytest.fixture
def chain(made: Chain, tmp_path: Path) -> Chain:
    shutil.copytree(made.root, tmp_path / "copy", symlinks=True)
    return Chain(tmp_path / "copy")


def data(chain: Chain, seed: int) -> None:
    """Write 200 points; of the same size and age whatever the seed."""
    np.save(chain.root / "data.npy", np.random.default_rng(seed).normal(size=(200, 2)))
    os.utime(chain.root / "data.npy", (1e9, 1e9))


def ran(said: str) -> set[str]:
    return set(re.findall(r"Running stage '([^']+)'", said)) - {"inputs"}


def hash_of(chain: Chain, path: str) -> str:
    found = re.search(rf"path: {path}\n\s+hash: md5\n\s+md5: (\S+)", chain.lock())
    assert found
    return found[1]


@pytest.mark.long
@pytest.mark.slow
def test_a_word_reruns_nothing_and_a_function_what_reaches_it(chain):
    before = chain.lock()
    for name in ("fmcore/training/fit.py", "fmcore/solve/adaptive.py"):
        chain.write(name, edited((SOURCE / name).read_text()))
    assert set(chain.plan().values()) == {"unchanged"}
    assert ran(chain.repro().stdout) == set()
    assert chain.lock() == before
    chain.write(
        "fmcore/verdict/advice.py", acting((SOURCE / "fmcore/verdict/advice.py").read_text())
    )
    planned = {p["stage"]: p for p in json.loads(chain.reflow("plan", "--json").stdout)}
    assert {name for name, p in planned.items() if p["state"] != "unchanged"} == {
        "inputs",
        "compare",
    }
    assert planned["compare"]["reasons"] == ["code of fmcore.verdict.advice changed"]
    said = chain.sh("dvc", "repro", "--single-item", "-f", "compare", check=False)
    assert "error: stage compare: its record of code and files is out of date" in said.stderr
    assert "code of fmcore.verdict.advice changed" in said.stderr
    assert "Traceback" not in said.stderr
    assert ran(chain.repro().stdout) == {"compare"}


@pytest.mark.long
@pytest.mark.slow
def test_replaced_data_are_other_data_for_plan_and_both_caches(chain):
    old, before = hash_of(chain, "couplings/independent"), chain.lock()
    data(chain, 1)
    planned = {p["stage"]: p for p in json.loads(chain.reflow("plan", "--json").stdout)}
    size = (chain.root / "data.npy").stat().st_size
    sizes = f"1 file, {size:,} bytes -> 1 file, {size:,} bytes"
    assert planned["prepare"]["reasons"] == [f"data.path: its content changed ({sizes})"]
    runs = {name for name, p in planned.items() if p["state"] == "run"}
    assert runs == {"inputs", "prepare"}
    for name in (*OUTPUTS, "inputs"):
        shutil.rmtree(chain.root / name)
    (chain.root / "dvc.lock").unlink()
    assert ran(chain.repro("prepare").stdout) == {"prepare"}
    assert hash_of(chain, "couplings/independent") != old
    data(chain, 0)  # the old data come back: all that was made of them, too, and nothing runs
    assert ran(chain.repro().stdout) == set()
    assert sorted(chain.lock().splitlines()) == sorted(before.splitlines())


@pytest.mark.long
@pytest.mark.slow
def test_another_machine_uses_what_was_made_of_the_same_data_alone(made, tmp_path):
    made.sh("git", "clone", "-q", str(made.root), str(tmp_path / "there"))
    there = Chain(tmp_path / "there")
    data(there, 1)
    assert ran(there.repro("--pull", "prepare").stdout) == {"prepare"}
    assert hash_of(there, "couplings/independent") != hash_of(made, "couplings/independent")
    there.sh("git", "checkout", "-q", "dvc.lock")
    shutil.copy(made.root / "data.npy", there.root / "data.npy")
    said = there.reflow("run", "--pull", "--no-prefect", "--no-mlflow").stdout
    assert "Running" not in said
    assert set(re.findall(r"^ *done (\S+)", said, re.MULTILINE)) == {"inputs"}
    assert there.lock() == made.lock()


@pytest.mark.slow
@pytest.mark.long
def test_the_folder_of_inputs_heals_and_dvcs_commands_know_it(chain):
    before = chain.lock()
    shutil.rmtree(chain.root / "inputs")
    assert ran(chain.repro().stdout) == set()
    file = chain.root / "inputs" / "train" / "rf1.json"
    file.chmod(0o644)
    file.unlink()
    file.write_text("{}")
    chain.write("inputs/stray.txt", "x")
    assert chain.plan()["inputs"] == "run"
    assert {n: s for n, s in chain.plan().items() if s != "unchanged"} == {"inputs": "run"}
    assert ran(chain.repro().stdout) == set()
    assert not (chain.root / "inputs" / "stray.txt").exists()
    assert chain.lock() == before
    assert "always changed" in chain.sh("dvc", "status").stdout
    assert "changed deps" not in chain.sh("dvc", "status").stdout
    chain.sh("dvc", "gc", "-w", "-f", "-q")
    shutil.rmtree(chain.root / "inputs")
    chain.sh("dvc", "checkout", "-q")
    assert file.is_file()
    chain.sh("dvc", "pull", "-q")
    assert ran(chain.sh("dvc", "exp", "run").stdout) == set()
    assert chain.lock() == before


@pytest.mark.long
@pytest.mark.slow
def test_a_run_with_nothing_to_do_imports_nothing_heavy(chain):
    run = ("-m", "flows.cli", "run", "--no-mlflow")
    time.sleep(2)  # what is read of a file that changed a moment ago is not kept
    chain.sh("python", *run)  # it checks params.yaml, for which it needs torch
    said = chain.sh("python", "-X", "importtime", *run)
    imported = {line.rpartition("|")[2].strip() for line in said.stderr.splitlines()}
    assert "flows.run.start" in imported
    assert not imported & {"torch", "pandas", "mlflow", "prefect", "urllib.request"}


@pytest.mark.long
@pytest.mark.slow
def test_code_or_data_that_change_while_a_stage_runs_fail_it(chain, monkeypatch):
    monkeypatch.setenv("DVC_SITE_CACHE_DIR", str(chain.root / ".reflow" / "dvc"))
    fit = (SOURCE / "fmcore/training/fit.py").read_text()
    with guarded(chain.root, "train@rf1"):
        chain.write("fmcore/training/fit.py", edited(fit))
    named = r"train@rf1: its inputs changed while it ran \(dependency inputs/train/rf1.json\)"
    with pytest.raises(ReflowError, match=named), guarded(chain.root, "train@rf1"):
        chain.write("fmcore/training/fit.py", acting(fit))
    with (
        pytest.raises(ReflowError, match="prepare: its inputs changed"),
        guarded(chain.root, "prepare"),
    ):
        data(chain, 1)


LATE = """
import pathlib, sys, time
time.sleep(float(pathlib.Path("delays").read_text().split()[int(sys.argv[1])]))
pathlib.Path(sys.argv[2]).write_text("x")
"""
DAG = """
stages:
  b: {cmd: python late.py 0 made/b, outs: [made/b], deps: [late.py]}
  a: {cmd: python late.py 1 made/a, outs: [made/a], deps: [late.py]}
  c: {cmd: python late.py 2 made/c, outs: [made/c], deps: [made/a, late.py]}
"""


def test_dvc_lock_is_the_same_whichever_stage_ends_first(empty):
    empty.write("dvc.yaml", DAG)
    empty.write("late.py", LATE)
    empty.write("made/.keep", "")
    locks = []
    for delays in ("0 0 0", "3 0 0", "0 3 0"):
        for name in ("a", "b", "c"):
            (empty.root / "made" / name).unlink(missing_ok=True)
        for path in (empty.root / "dvc.lock", empty.root / ".dvc" / "cache"):
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        empty.write("delays", delays)
        if locks:
            assert update_chain(empty.root, prefect=False).ok
        else:
            empty.repro()
        locks.append((empty.root / "dvc.lock").read_text())
    assert locks[0] == locks[1] == locks[2]


def test_what_is_known_of_a_project_is_read_again_when_it_changes(project):
    first = graph.known(project.root)
    assert graph.known(project.root) is first
    assert first.locked == {}
    project.edit("params.yaml", "nfe: 20", "nfe: 10")
    params = graph.read(project.root)["couple@rf1"].params["params.yaml"]
    assert params["couplings.rf1"]["nfe"] == 10
    project.repro("prepare")
    assert set(graph.known(project.root).locked) == {"prepare"}
