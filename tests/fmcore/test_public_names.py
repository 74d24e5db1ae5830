"""`import fmcore`: the exact list of public names, each loaded when it is first used."""

import ast
import pkgutil
import subprocess
import sys

import pytest

import fmcore
from tests.conftest import SOURCE

NAMES = [
    "Adaptive", "Batch", "BatchRules", "Beta", "Cosine", "DiT", "Flow", "Grid", "Linear",
    "LogitNormal", "Loss", "MLP", "Mode", "Pairs", "Point", "Polynomial", "ReflowError", "Schedule",
    "Solution", "Solver", "Train", "UNet", "UShaped", "Uniform", "VarianceExploding",
    "VariancePreserving", "batches", "coupled", "draw_batch", "fit_flow", "flow_matching_loss",
    "independent", "interpolate", "load_flow", "open_coupling", "read_coupling", "rectify",
    "shuffled_batches", "straightness", "straightness_rel", "to_score", "to_source", "to_target",
    "transport_cost", "write_coupling",
]  # fmt: skip


def test_the_list_is_exact():
    assert sorted(NAMES) == sorted(fmcore.__all__)
    assert set(NAMES) <= set(dir(fmcore))


@pytest.mark.parametrize("name", NAMES)
def test_each_name_is_found_where_it_is_defined(name):
    found = getattr(fmcore, name)
    assert found.__name__ == name and found.__module__.startswith("fmcore.") and found.__doc__


def test_no_name_hides_a_module():
    assert {module.name for module in pkgutil.iter_modules(fmcore.__path__)}.isdisjoint(NAMES)


def test_type_checkers_see_the_same_names():
    tree = ast.parse((SOURCE / "fmcore" / "__init__.py").read_text())
    block = next(node for node in tree.body if isinstance(node, ast.If))
    shown = {
        alias.asname: f"{node.module}:{alias.name}"
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert shown == {name: f"{fmcore._MODULES[name]}:{name}" for name in NAMES}
    assert (SOURCE / "fmcore" / "py.typed").exists() and (SOURCE / "flows" / "py.typed").exists()


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        fmcore.nothing  # noqa: B018


@pytest.mark.parametrize(
    ("code", "loaded"),
    [("fmcore", set()), ("fmcore.ReflowError", set()), ("fmcore.MLP", {"torch"})],
)
def test_nothing_is_loaded_before_it_is_used(code, loaded):
    heavy = "{'torch', 'pyarrow', 'pandas', 'scipy', 'diffusers'}"
    script = f"import sys, fmcore; {code}; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=SOURCE, capture_output=True, text=True, check=True
    )
    assert set(ast.literal_eval(done.stdout)) == loaded
