"""The script for a machine with a GPU, tried on the CPU: it runs, and needs six packages."""

import json
import subprocess
import sys

import pytest

from tests.conftest import SOURCE

ABSENT = (
    "dvc", "dvc_data", "prefect", "mlflow", "yaml", "ruamel", "ruamel.yaml", "rich", "typer",
    "sklearn", "scipy", "matplotlib", "PIL", "networkx", "packaging", "pytest", "diffusers",
)  # fmt: skip
"""Of the packages of the project, all that a bare machine does not have."""


def suite(out, *words, absent=ABSENT):
    code = (
        "import runpy, sys\n"
        f"sys.modules.update(dict.fromkeys({absent!r}))\n"
        f"sys.argv = {['gpu', *words, '--device', 'cpu', '--quick', '--out', str(out)]!r}\n"
        "runpy.run_module('benchmarks.gpu', run_name='__main__')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=SOURCE, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads((out / "gpu.json").read_text()), (out / "gpu.md").read_text()


@pytest.mark.slow
def test_the_suite_runs_with_six_packages_and_what_must_be_equal_is(tmp_path):
    found, page = suite(tmp_path)
    assert found["unet"] == "left out: diffusers is not installed"
    checks = found["equal mlp"]
    said = {what: value for what, value in checks.items() if what.endswith("the same bytes")}
    assert len(said) == 2 + 4 * 5 and all(value is True for value in said.values())
    assert checks["weights, furthest tensor from the CPU's"] == 0
    for part in ("coupling", "training"):
        ratios = [v for what, v in found[f"{part} mlp"].items() if what.endswith(("bare", "loop"))]
        assert ratios and all(0 < least <= middle <= most for middle, least, most in ratios)
    assert len(found["profile mlp"]) == 2 * 8
    for part in found:
        assert f"## {part}" in page


@pytest.mark.slow
def test_the_chain_of_the_fashion_script_runs_on_digits(tmp_path):
    words = ["--device", "cpu", "--quick", "--out", str(tmp_path)]
    subprocess.run([sys.executable, "-m", "benchmarks.fashion", *words], cwd=SOURCE, check=True)
    found = json.loads((tmp_path / "fashion.json").read_text())
    for name in ("rf1", "rf2"):
        assert found[f"train@{name}"]["steps"] == 5
        assert found[f"evaluate@{name}"]["fd_clf/nfe_1"] > found[f"evaluate@{name}"]["fd_clf/floor"]
        assert (tmp_path / f"{name}_samples.png").stat().st_size > 1000
    assert found["couple@rf1"]["pairs"] == 64
