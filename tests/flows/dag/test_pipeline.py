"""dvc.yaml agrees with the code: verbs, paths, and what a stage depends on."""

import json

import pytest

from flows.dag import graph, inputs
from flows.stage import verbs
from fmcore.verdict import headline
from tests.conftest import SOURCE
from tests.imports import closure

STAGES = graph.read(SOURCE)
OTHERS = [name for name in STAGES if name != inputs.STAGE]
VERBS = sorted({name.split("@")[0] for name in OTHERS})


def test_the_verbs_of_the_code_are_the_stages_of_the_chain():
    assert set(VERBS) == set(verbs.VERBS) == {*inputs.READS} - {"adopt"}
    for verb in VERBS:
        assert (SOURCE / "fmcore" / f"{verb}.py").exists()


def test_dvc_yaml_is_short():
    assert len((SOURCE / "dvc.yaml").read_text().splitlines()) < 150


def test_the_metrics_of_dvc_are_the_few_numbers_and_receipts_stay_in_git():
    """DVC keeps a stage out of its run cache for a plain output that is outside its cache."""
    with graph.opened(SOURCE) as project:
        outs = [out for stage in project.stages.values() for out in stage.outs]
        assert not [out.def_path for out in outs if out.is_metric]
        in_git = {out.def_path: out.is_plot for out in outs if not out.use_cache}
        (shown,) = project.repo.index._metrics.values()
    receipts = {s.paths["metrics"] for name, s in STAGES.items() if "metrics" in s.paths}
    assert set(in_git) == receipts - {"metrics"} and all(in_git.values())
    assert shown == [f"{STAGES['compare'].paths['out']}/{headline.FOLDER}"]


@pytest.mark.parametrize("name", OTHERS)
def test_a_stage_depends_on_its_own_file_of_inputs(name):
    own = f"{inputs.FOLDER}/{name.replace('@', '/')}.json"
    assert [d for d in STAGES[name].deps if d.startswith(f"{inputs.FOLDER}/")] == [own]
    assert STAGES[name].upstream[-1] == inputs.STAGE or inputs.STAGE in STAGES[name].upstream


@pytest.mark.parametrize("name", OTHERS)
def test_the_code_of_a_stage_is_what_its_verb_imports(name):
    text = inputs.compute(SOURCE)[f"{inputs.FOLDER}/{name.replace('@', '/')}.json"]
    files = {f for f in closure(f"fmcore.{name.split('@')[0]}") if not f.endswith("__init__.py")}
    modules = {f.removesuffix(".py").replace("/", ".") for f in files}
    assert set(json.loads(text)["code"]) == modules


@pytest.mark.parametrize("name", OTHERS)
def test_a_command_names_exactly_the_data_of_its_stage(name):
    stage = STAGES[name]
    data = {d for d in (*stage.deps, *stage.outs) if not d.startswith(f"{inputs.FOLDER}/")}
    assert set(stage.paths.values()) == data
    assert stage.cmd.startswith("python -m flows.stage ")
