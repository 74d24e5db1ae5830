"""Verbs are short to call: settings beside the verb, one Work, few parameters."""

import ast
import inspect
from importlib import import_module

import pytest
import torch

from fmcore.settings import Settings
from fmcore.work.executor import IN_PROCESS
from fmcore.work.work import Work
from tests.conftest import SOURCE

SETTINGS = {
    "calibrate": "YardstickSettings",
    "compare": "Gates",
    "couple": "Couple",
    "evaluate": "Evaluate",
    "train": "Train",
}
WORKING = ["calibrate", "couple", "evaluate", "train"]


@pytest.mark.parametrize(("verb", "name"), SETTINGS.items())
def test_a_verb_has_its_settings_beside_it(verb, name):
    assert issubclass(getattr(import_module(f"fmcore.{verb}"), name), Settings)


@pytest.mark.parametrize("verb", WORKING)
def test_a_verb_takes_its_circumstances_as_one(verb):
    parameters = inspect.signature(getattr(import_module(f"fmcore.{verb}"), verb)).parameters
    assert parameters["work"].annotation is Work and len(parameters) <= 8
    assert not {"seed", "device", "log", "compute", "accept", "executor"} & set(parameters)


def test_work_needs_a_scratch_folder_and_nothing_else(tmp_path):
    work = Work(scratch=tmp_path)
    assert (work.seed, work.device, work.executor) == (0, torch.device("cpu"), IN_PROCESS)
    assert work.log({"loss": 1.0}, 1) is None and work.accept({"loss": 1.0}) is None
    with pytest.raises(TypeError):
        Work(seed=1)
    with pytest.raises(AttributeError):
        work.seed = 1


@pytest.mark.parametrize("package", ["fmcore", "flows"])
def test_functions_are_short(package):
    long = [
        (path.relative_to(SOURCE).as_posix(), node.name)
        for path in SOURCE.glob(f"{package}/**/*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef) and node.end_lineno - node.lineno >= 50
    ]
    assert long == []
