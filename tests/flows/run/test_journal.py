"""The journal of a run: what `reflow watch` is told of its stages."""

from rich.console import Console

from flows.project import journal
from flows.run.start import start

CHAIN = """
stages:
  one: {cmd: cp zero one, deps: [zero], outs: [one]}
  two: {cmd: "echo 'error: no such luck'; exit 2", deps: [one], outs: [two]}
  three: {cmd: cp two three, deps: [two], outs: [three]}
"""


def run(project):
    start(project.root, None, prefect=False, mlflow=False, out=Console(quiet=True))
    found = journal.read(project.root)
    assert found is not None and found.ended >= found.began > 0 and found.title
    return found.stages


def test_a_run_says_how_far_each_stage_is(empty):
    empty.write("dvc.yaml", CHAIN)
    empty.write("zero", "0\n")
    stages = run(empty)
    assert {n: s.state for n, s in stages.items()} == {
        "one": "done", "two": "failed", "three": "blocked",
    }  # fmt: skip
    assert stages["two"].error == "two: no such luck" and stages["three"].upstream == ["two"]
    assert stages["one"].seconds > 0 and stages["one"].before is None
    empty.edit("dvc.yaml", "echo 'error: no such luck'; exit 2", "echo 2 > two")
    stages = run(empty)
    assert [s.state for s in stages.values()] == ["cached", "done", "done"]
    assert stages["one"].before and stages["one"].before > 0
    before = journal.path_of(empty.root).read_bytes()
    run(empty)  # has nothing to do, and hides no other run
    assert journal.path_of(empty.root).read_bytes() == before
    lines = journal.path_of(empty.root).read_text().splitlines()
    assert [line for line in lines if '"one", "state": "running"' in line] == []
    assert len([line for line in lines if '"two", "state": "running"' in line]) == 1
