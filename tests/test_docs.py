"""The documents say what the code does: README blocks run, and every name is explained."""

import ast
import inspect
import math
import re
import shutil
import subprocess
import sys

import pytest
import torch

from flows.cli import main
from flows.stage import verbs
from fmcore.measure import distances
from fmcore.solve import solver
from fmcore.solve.solver import STEPS
from tests.conftest import SOURCE
from tests.real_chain import Chain

README = (SOURCE / "README.md").read_text()
DOCS = "\n".join(p.read_text() for p in sorted((SOURCE / "docs").rglob("*.md")))
PAGES = [SOURCE / "README.md", *sorted((SOURCE / "docs").rglob("*.md"))]
SHORT = [SOURCE / "README.md", SOURCE / "docs" / "library.md"]
"""The pages whose blocks run in `make test`; those of all pages in `make test-all`."""
BLOCKS = [
    pytest.param(
        *block, id=f"{page.stem}-{number}", marks=[] if page in SHORT else pytest.mark.long
    )
    for page in PAGES
    for number, block in enumerate(
        re.findall(r"```(bash|python)\n(.*?)```", page.read_text(), flags=re.DOTALL)
    )
]
"""What a reader may paste: `bash` and `python` run here, `sh` and `py` take longer or need more.
tests/test_readme.py runs README's `sh`, test_commands_in_docs.py parses the commands of all pages;
of `py` the imports run here."""


@pytest.fixture(scope="module")
def chain(finished):
    root = finished.parent / "readme"
    shutil.copytree(finished, root, symlinks=True)
    return Chain(root)


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "code"), BLOCKS)
def test_a_block_of_the_documents_runs(chain, kind, code):
    words = ["bash", "-euo", "pipefail", "-c"] if kind == "bash" else ["python", "-c"]
    done = subprocess.run(
        [*words, code], cwd=chain.root, env=chain.env(), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_documents_have_blocks_to_run():
    assert len(BLOCKS) >= 6
    assert "outside-pairs" in {block.id.rpartition("-")[0] for block in BLOCKS}


@pytest.mark.slow
def test_a_block_that_does_not_run_has_no_error_of_syntax_and_imports_what_there_is():
    blocks = [re.findall(r"^ *```py\n(.*?)```", p.read_text(), re.DOTALL | re.M) for p in PAGES]
    lines = {
        ast.unparse(node)
        for code in sum(blocks, [])
        for node in ast.walk(ast.parse(code))
        if isinstance(node, ast.Import | ast.ImportFrom)
    }
    assert len(lines) >= 10
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", "\n".join(sorted(lines))],
        cwd=SOURCE, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_the_make_targets_of_the_documents_exist():
    targets = set(re.findall(r"^([a-z-]+):.*##", (SOURCE / "Makefile").read_text(), re.MULTILINE))
    named = set(re.findall(r"(?:`|^)make ([a-z-]+)", README + DOCS, re.MULTILINE))
    assert {"demo", "test"} <= named
    assert named <= targets


def test_every_command_is_in_the_readme_with_its_help():
    for command in main.app.registered_commands:
        assert f"`reflow {command.name or command.callback.__name__}" in README
        assert command.callback.__doc__


def file_map():
    """Return the files of the README's map with their comments."""
    tree = README.split("## The tree")[1].split("```")[1]
    found, top = {}, ""
    for line in tree.strip().splitlines():
        name, _, comment = line.strip().partition("  ")
        if line[0] != " ":
            top = name if name.startswith(("fmcore/", "flows/")) else ""
            found[name] = comment.strip()
        else:
            found[top + name] = comment.strip()
    return found


def test_the_map_has_a_comment_for_every_file_and_no_other():
    mapped = file_map()
    assert all((SOURCE / name).exists() and comment for name, comment in mapped.items())
    files = {
        p.relative_to(SOURCE).as_posix()
        for top in ("fmcore", "flows")
        for p in SOURCE.glob(f"{top}/**/*.*")
        if p.suffix in {".py", ".html"}
        and p.name != "__init__.py"
        and p.parent.name != "__pycache__"
    }
    named = {n for n in mapped if n.startswith(("fmcore/", "flows/")) and not n.endswith("/")}
    assert files - {"flows/cli/__main__.py"} == named


def test_every_room_is_one_sentence():
    rooms = [*SOURCE.glob("fmcore/*/__init__.py"), *SOURCE.glob("flows/**/__init__.py")]
    for init in [room for room in rooms if "installed" not in room.parts]:
        (sentence,) = ast.parse(init.read_text()).body
        assert isinstance(sentence, ast.Expr) and ast.get_docstring(ast.parse(init.read_text()))


def test_files_and_functions_stay_short():
    for path in [*SOURCE.glob("fmcore/**/*.py"), *SOURCE.glob("flows/**/*.py")]:
        text = path.read_text()
        assert len(text.splitlines()) <= 300, path
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef):
                assert node.end_lineno - node.lineno < 50, f"{path}: {node.name}"


@pytest.mark.parametrize("name", [*STEPS, *verbs.VERBS])
def test_every_solver_and_stage_is_in_the_documents(name):
    assert re.search(rf"\b{name}\b", README + DOCS)


METRICS = (
    "straightness", "straightness_per_dim", "straightness_norm", "straightness_rel",
    "transport_cost",
    "curvature_angle", "ivd", "npe", "transport_cost_l1", "transport_cost_l4", "budget_defect",
    "held_out_ratio", "solver_gap", "fd_clf_raw_minus_ema", "raw_minus_ema", "ema_half_life",
    "fd_clf", "fd_identity", "w2_n1000", "sliced_w2_n1000", "energy",
    "fid_n2000_half", "fid50k_train", "sfid50k_train", "is50k", "kid50k_train",
    "fd_dinov2_50k_train", "cmmd_50k_train", "flops_per_evaluation", "flops_training",
    "flops_pairs", "flops_total",
    "fd_lite0", "fd_clf_inf", "kd_clf", "precision", "recall", "density", "coverage",
    "samples", "features", "classes", "skipped", "class_least",
    "nearest_train", "mode_share", "mode_weights_tv", "nll", "bits_per_dim", "fd_clf_se",
)  # fmt: skip


@pytest.mark.parametrize("name", METRICS)
def test_every_metric_is_explained(name):
    assert f"`{name}`" in (SOURCE / "docs" / "names.md").read_text()


def test_what_is_contributed_fits_the_code_that_there_is():
    page = (SOURCE / "docs/how-to-add.md").read_text()
    (step,) = re.findall(r"^\+(def ralston.*?)^\+$", page, re.M | re.S)
    names = dict(vars(solver))
    exec(step.replace("\n+", "\n"), names)
    x, t = torch.ones(1, dtype=torch.float64), torch.zeros(())
    errors = [
        abs(float(names["ralston"](lambda x, t: x, x, t, torch.tensor(dt))) - math.exp(dt))
        for dt in (0.1, 0.05)
    ]
    assert errors[0] / errors[1] == pytest.approx(8, rel=0.05)  # of order 2: dt^3 in a step
    (known,) = re.findall(r"^ +(self\.kernel: .*)$", page, re.M)
    assert known in inspect.getsource(distances.Measures.dear)
    for module, name in re.findall(r"`(\w+)\.(_\w+)`", page):
        (file,) = (SOURCE / "fmcore").rglob(f"{module}.py")
        assert f"def {name}(" in file.read_text(), f"{module}.{name}"


def test_links_between_documents_lead_somewhere():
    for page in [SOURCE / "README.md", *(SOURCE / "docs").rglob("*.md")]:
        for link in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
            assert (page.parent / link).exists(), f"{page.name}: {link}"


def test_every_guarantee_names_a_test_that_exists():
    rows = [
        line
        for line in (SOURCE / "docs/guarantees.md").read_text().splitlines()
        if line.startswith("| ") and not line.startswith("| promise")
    ]
    assert len(rows) > 20
    for row in rows:
        files = re.findall(r"`(tests/[\w/]+\.py)`", row)
        assert files and all((SOURCE / file).is_file() for file in files), row
