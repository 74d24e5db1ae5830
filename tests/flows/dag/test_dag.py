"""The contract with `dvc.repo`: what the adapter says is what DVC then does."""

import re
import sys
import threading
from pathlib import Path

import pytest

from flows.dag import graph, lineage, plan
from fmcore.settings import ReflowError
from tests.conftest import PARAMS, Project

ORDER = ["prepare", "train@rf1", "couple@rf1", "train@rf2", "compare"]


def states(root: Path) -> dict[str, str]:
    return {planned.stage: planned.state for planned in plan.plan(root)}


def really(project: Project) -> dict[str, str]:
    """Run `dvc repro` and read off its output what happened to each stage."""
    out = project.repro().stdout
    return {
        name: "unchanged"
        if f"Stage '{name}' didn't change" in out
        else "cached"
        if f"Stage '{name}' is cached" in out
        else "run"
        for name in ORDER
    }


def test_stages_are_read_in_topological_order_with_edges_through_folders(project: Project) -> None:
    stages = graph.read(project.root)
    assert list(stages) == ORDER
    assert stages["train@rf2"].upstream == ("couple@rf1",)
    assert stages["compare"].upstream == ("train@rf1", "train@rf2")  # its dependency is `models`
    assert stages["train@rf1"].deps == ("couplings/independent", "src/train.py")
    assert stages["train@rf1"].outs == ("models/rf1", "metrics/rf1.json")
    assert stages["train@rf1"].params["params.yaml"]["rounds.rf1"] == {
        "coupling": "independent",
        "steps": 50,
        "lr": 0.001,
    }


def test_a_stage_of_the_user_without_dependencies_is_planned(project: Project) -> None:
    """DVC keeps no runs of it."""
    file = project.root / "dvc.yaml"
    text = file.read_text().replace(
        "stages:\n", "stages:\n  own:\n    cmd: echo 1 > own.txt\n    outs: [own.txt]\n", 1
    )
    file.write_text(text)
    assert states(project.root)["own"] == "run"
    project.repro("own")
    assert states(project.root)["own"] == "unchanged"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("stages: [", "dvc.yaml"),
        ("stages:\n  a: {comd: x}\n", "extra keys not allowed"),
        ("stages:\n  a: {cmd: 'x ${nope.b}'}\n", "nope.b"),
        ("stages:\n  a: {foreach: '${seeds}', do: {cmd: x}}\n", "write rf1, not 1"),
        (
            "stages:\n  a: {cmd: x, deps: [p], outs: [q]}\n  b: {cmd: x, deps: [q], outs: [r]}\n"
            "  c: {cmd: x, deps: [r], outs: [p]}\n",
            "cycle",
        ),
        ("stages:\n  a: {cmd: x, outs: [z], wdir: src}\n", "remove wdir"),
    ],
)
def test_what_is_wrong_in_dvc_yaml_is_said_in_one_line(
    project: Project, text: str, said: str
) -> None:
    project.write("dvc.yaml", text)
    project.write("params.yaml", f"seeds: {{1: a}}\n{PARAMS}")
    with pytest.raises(ReflowError) as error:
        graph.read(project.root)
    assert said in str(error.value)
    assert "\n" not in str(error.value)
    assert str(project.root.parent) not in str(error.value)


def test_missing_parameter_dependency_and_stage_are_named(project: Project) -> None:
    with pytest.raises(ReflowError, match="couplings/rf1 does not exist"):
        lineage.fingerprint(project.root, "train@rf2")
    with pytest.raises(ReflowError, match="no stage 'trian'.*train@rf1"):
        plan.changed(project.root, "trian")
    project.write("dvc.yaml", "stages:\n  a: {cmd: x, params: [foo.bar], outs: [z]}\n")
    with pytest.raises(ReflowError, match=r"foo\.bar"):
        lineage.fingerprint(project.root, "a")


def test_reasons_in_words(project: Project) -> None:
    assert plan.changed(project.root, "train@rf2") == ["never ran"]
    project.repro()
    assert [plan.changed(project.root, name) for name in ORDER] == [[]] * 5
    project.edit("params.yaml", "steps: 100", "steps: 200, clip: 1")
    assert plan.changed(project.root, "train@rf2") == [
        "params.yaml: rounds.rf2.steps changed from 100 to 200",
        "params.yaml: rounds.rf2.clip is new (1)",
    ]
    assert plan.changed(project.root, "train@rf1") == []
    project.edit("src/train.py", "import", "import os\nimport")
    assert plan.changed(project.root, "train@rf1") == ["dependency src/train.py changed"]
    (project.root / "src/couple.py").unlink()
    project.edit("dvc.yaml", "cat src/data >", "cat  src/data >")
    assert plan.changed(project.root, "couple@rf1") == ["dependency src/couple.py is missing"]
    assert plan.changed(project.root, "prepare") == ["command changed"]
    project.sh("rm", "-rf", "models/rf1", "table")
    project.write("metrics/rf1.json", "{1}")
    assert plan.changed(project.root, "train@rf1")[1:] == [
        "output models/rf1 is missing",
        "output metrics/rf1.json was changed by hand",
    ]


def test_plan_follows_downstream_and_dvc_agrees(project: Project) -> None:
    assert set(states(project.root).values()) == {"run"}
    project.repro()
    assert states(project.root) == dict.fromkeys(ORDER, "unchanged") == really(project)
    project.edit("params.yaml", "nfe: 20", "nfe: 10")
    planned = {p.stage: p for p in plan.plan(project.root)}
    assert planned["couple@rf1"].reasons == (
        "params.yaml: couplings.rf1.nfe changed from 20 to 10",
    )
    assert planned["train@rf2"].state == "downstream"
    assert planned["train@rf2"].reasons == ("depends on couple@rf1, which will run",)
    assert planned["compare"].reasons == ("depends on train@rf2, which will run",)
    assert planned["train@rf1"].state == "unchanged"
    assert [name for name, what in really(project).items() if what == "run"] == ORDER[2:]


def test_plan_tells_what_dvc_restores_from_what_it_runs(project: Project) -> None:
    project.repro()
    project.edit("params.yaml", "nfe: 20", "nfe: 10")
    project.repro()
    project.edit("params.yaml", "nfe: 10", "nfe: 20")
    foreseen = states(project.root)
    assert foreseen == {
        "prepare": "unchanged",
        "train@rf1": "unchanged",
        "couple@rf1": "cached",
        "train@rf2": "cached",  # known only from the foretold hash of couplings/rf1
        "compare": "downstream",  # reads a folder of which one part will be another
    }
    assert really(project) == {**foreseen, "compare": "cached"}
    project.sh("rm", "-rf", "models", "couplings", "table")
    assert states(project.root) == dict.fromkeys(ORDER, "cached") == really(project)
    project.edit("src/train.py", "import", "import os\nimport")
    assert states(project.root)["train@rf1"] == "run"
    project.sh("rm", "-rf", ".dvc/cache", "models/rf1")
    assert states(project.root)["prepare"] == "run"


def test_fingerprint_is_of_the_inputs_and_of_nothing_else(project: Project) -> None:
    project.repro()
    before = lineage.fingerprint(project.root, "train@rf1")
    project.edit("params.yaml", "steps: 100", "steps: 200")
    project.sh("rm", "-rf", "models", "metrics")
    assert lineage.fingerprint(project.root, "train@rf1") == before
    inputs = lineage.inputs(project.root, "train@rf1")
    assert inputs.fingerprint == before
    assert inputs.deps["couplings/independent"].endswith(".dir")
    again = lineage.again(project.root, inputs)
    assert (again.cmd, again.deps, again.params) == (inputs.cmd, inputs.deps, inputs.params)
    project.edit("params.yaml", "steps: 50", "steps: 51")
    edited = lineage.fingerprint(project.root, "train@rf1")
    project.write("couplings/independent/a", "2\n")
    assert len({before, edited, lineage.fingerprint(project.root, "train@rf1")}) == 3


def test_lineage_is_known_before_the_run_and_found_again_in_the_lock(project: Project) -> None:
    known = lineage.lineage(lineage.entries(project.root))
    assert lineage.lock_entries(project.root) == {}
    project.repro()
    assert lineage.lineage(lineage.entries(project.root)) == known
    assert lineage.lineage(lineage.lock_entries(project.root)) == known
    assert len(set(known.values())) == 5
    project.sh("git", "add", "-A")
    project.sh("git", "commit", "-qm", "one")
    project.edit("params.yaml", "nfe: 20", "nfe: 10")
    new = lineage.lineage(lineage.entries(project.root))
    assert [name for name in ORDER if new[name] != known[name]] == ORDER[2:]
    project.repro()
    assert lineage.lineage(lineage.lock_entries(project.root)) == new
    assert lineage.lineage(lineage.lock_entries(project.root, "HEAD")) == known
    with pytest.raises(ReflowError, match="nowhere"):
        lineage.lock_entries(project.root, "nowhere")
    project.edit("src/data", "1", "2")
    other = lineage.lineage(lineage.entries(project.root))
    assert not set(other.values()) & set(new.values())


def test_a_stage_that_left_dvc_yaml_leaves_the_lineage(project: Project) -> None:
    project.repro()
    known = lineage.lineage(lineage.entries(project.root))
    project.edit("dvc.yaml", "  compare:", "  collect:")
    del known["compare"]
    assert lineage.lineage(lineage.lock_entries(project.root)) == known


def test_a_lock_that_is_just_being_written_is_waited_for(project: Project) -> None:
    import threading

    project.repro()
    good = (project.root / "dvc.lock").read_text()
    project.write("dvc.lock", good[:100] + "\n  : [")
    timer = threading.Timer(0.5, project.write, ["dvc.lock", good])
    timer.start()
    assert plan.changed(project.root, "prepare") == []
    timer.join()


def test_threads_may_ask_side_by_side(project: Project) -> None:
    """DVC checks dvc.yaml by validators that it compiles in place: two at once met a half one."""
    mistakes: list[BaseException] = []
    name = next(iter(graph.read(project.root)))

    def ask() -> None:
        try:
            for _ in range(6):
                plan.changed(project.root, name)
        except ReflowError as error:
            mistakes.append(error)

    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        threads = [threading.Thread(target=ask) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(before)
    assert not mistakes


def test_sorting_the_lock_leaves_other_sections_alone(project: Project) -> None:
    project.repro()
    good = (project.root / "dvc.lock").read_text()
    head, *stages = re.split(r"^(?=  \S)", good, flags=re.MULTILINE)
    more = "datasets:\n- name: d\n  type: url\n"
    project.write("dvc.lock", head + "".join(reversed(stages)) + more)
    graph.sort_lock(project.root)
    assert (project.root / "dvc.lock").read_text() == good + more
