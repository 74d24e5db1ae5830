"""dvc.yaml agrees with the code: what a stage depends on is what it imports."""

import pytest

from flows import dag, stage
from tests.conftest import SOURCE
from tests.imports import closure

STAGES = dag.read(SOURCE)
VERBS = sorted({name.split("@")[0] for name in STAGES})


def test_the_verbs_of_the_code_are_the_stages_of_the_chain():
    assert set(VERBS) == set(stage.VERBS)
    for verb in VERBS:
        assert (SOURCE / "fmcore" / f"{verb}.py").exists()


@pytest.mark.parametrize("name", STAGES)
def test_the_dependencies_of_a_stage_are_the_files_it_imports(name):
    listed = {dep for dep in STAGES[name].deps if dep.startswith("fmcore/")}
    assert listed == closure(f"fmcore.{name.split('@')[0]}")


def test_a_command_names_exactly_the_data_of_its_stage():
    for described in STAGES.values():
        words = [w.split("=", 1)[1] for w in described.cmd.split() if "=" in w]
        data = {d for d in (*described.deps, *described.outs) if not d.startswith("fmcore/")}
        assert set(words) == data, described.name


def test_an_added_import_would_be_noticed(tmp_path, monkeypatch):
    assert "fmcore/metrics/straightness.py" in closure("fmcore.evaluate")
    assert "fmcore/metrics/straightness.py" not in closure("fmcore.train")
