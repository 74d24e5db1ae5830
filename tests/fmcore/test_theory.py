"""The theory is one page, there is one loss, and training knows no solver."""

import ast

import pytest

from tests.conftest import SOURCE
from tests.imports import closure

THEORY = sorted([*SOURCE.glob("fmcore/matching/*.py"), *SOURCE.glob("fmcore/solve/*.py")])


def lines(path):
    """Count the lines of a file without the texts below settings, which docs/settings.md shows."""
    tree = ast.parse(path.read_text())
    texts = [
        node
        for settings in tree.body
        if isinstance(settings, ast.ClassDef)
        for node in settings.body[1:]
        if isinstance(node, ast.Expr)
    ]
    shown = sum(node.end_lineno - node.lineno + 1 for node in texts)
    return len(path.read_text().splitlines()) - shown


def test_the_theory_is_under_1000_lines():
    assert sum(lines(path) for path in THEORY) < 1000


def calls(name, folders):
    """Return (file, function) of every call of `name` in some folders of fmcore."""
    found = set()
    for folder in folders:
        for path in SOURCE.glob(f"fmcore/{folder}"):
            for function in ast.walk(ast.parse(path.read_text())):
                if isinstance(function, ast.FunctionDef):
                    for call in ast.walk(function):
                        if isinstance(call, ast.Call) and getattr(call.func, "id", "") == name:
                            found.add((path.name, function.name))
    return found


def test_one_function_trains_and_measures():
    everywhere = ("*.py", "*/*.py")
    a_step_nearer = ("maps.py", "aim")  # where consistency has its aim
    assert calls("interpolate", everywhere) == {("loss.py", "flow_matching_loss"), a_step_nearer}
    assert calls("mean_flow_gap", everywhere) == {("maps.py", "gap")}
    used = {("divergence.py", "watch_of"), ("gradient.py", "_backward"), ("held_out.py", "_loss")}
    assert calls("flow_matching_loss", everywhere) == used


def test_training_reaches_no_solver_and_no_sampler():
    rooms = {file.split("/")[1] for file in closure("fmcore.train")}
    assert rooms.isdisjoint({"solve", "sampling", "measure", "dataset", "verdict"})
    assert {"matching", "network", "training"} <= rooms


@pytest.mark.parametrize("verb", ["prepare", "initialise", "couple", "calibrate"])
def test_training_batches_are_reached_by_training_alone(verb):
    assert "fmcore/training/batches.py" in closure("fmcore.train")
    assert not [file for file in closure(f"fmcore.{verb}") if file.startswith("fmcore/training/")]


@pytest.mark.parametrize("verb", ["prepare", "initialise", "calibrate", "train"])
def test_the_pools_of_workers_are_reached_by_sampling_alone(verb):
    pools = {"fmcore/work/pools.py", "fmcore/work/workers.py", "fmcore/work/worker.py"}
    assert pools <= closure("fmcore.couple") and pools.isdisjoint(closure(f"fmcore.{verb}"))
