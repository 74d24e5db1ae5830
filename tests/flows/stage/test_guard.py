"""Each promise of the guard, beside the failure that plain DVC shows without it."""

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from flows.dag import lineage, plan
from flows.project.locks import stage_locked
from flows.stage.finished import adopted
from flows.stage.guard import guarded, sweep
from fmcore.settings import ReflowError
from tests.conftest import Project, until

WORK = """
import contextlib, pathlib, sys, time
from flows.project.process_group import die_with_starter
from flows.stage.guard import guarded
guard, seconds = sys.argv[1:]
root = pathlib.Path.cwd()
if guard == "guarded":
    die_with_starter()
try:
    with guarded(root, "work") if guard == "guarded" else contextlib.nullcontext(root) as scratch:
        data = pathlib.Path("data").read_text()
        pathlib.Path("started").write_text(str(scratch))
        time.sleep(float(seconds))
        pathlib.Path("out").write_text(data)
except Exception as error:
    sys.exit(f"error: {error}")
"""
BOTH = pytest.mark.parametrize("guard", ["plain", "guarded"])


@pytest.fixture
def work(empty: Project) -> Callable[[str], Project]:
    """Make a project of one stage that reads `data` and sleeps before it writes `out`."""

    def make(arguments: str, before: str = "") -> Project:
        empty.write("data", "old")
        empty.write("params.yaml", "train: {lr: 1}\n")
        empty.write("work.py", WORK)
        empty.write(
            "dvc.yaml",
            f"stages:\n  work:\n    cmd: {before}python work.py {arguments}\n"
            "    deps: [data]\n    params: [train]\n    outs: [out]\n",
        )
        return empty

    return make


def test_the_checkpoint_of_other_inputs_is_handed_over_only_where_the_stage_continues(work):
    project = work("guarded 0")
    checkpoint = "checkpoint.safetensors"

    def scratch(lr: int, continues: bool = True) -> Path:
        project.write("params.yaml", f"train: {{lr: {lr}}}\n")
        with guarded(project.root, "work", continues=continues) as folder:
            return folder

    first = scratch(1)
    (first / checkpoint).write_text("one")
    second = scratch(2)
    assert (second / "continued" / checkpoint).read_text() == "one"
    assert not first.exists()
    third = scratch(3)  # nothing was trained with the second settings
    assert (third / "continued" / checkpoint).read_text() == "one"
    (third / checkpoint).write_text("three")
    fourth = scratch(4)
    assert (fourth / "continued" / checkpoint).read_text() == "three"
    assert not (scratch(5, continues=False) / "continued").exists()


def test_a_checkpoint_divided_among_processes_is_handed_over_too(work):
    project = work("guarded 0")

    def scratch(lr: int) -> Path:
        project.write("params.yaml", f"train: {{lr: {lr}}}\n")
        with guarded(project.root, "work", continues=True) as folder:
            return folder

    step = scratch(1) / "divided" / "000000000010"
    step.mkdir(parents=True)
    (step / "note.json").write_text("ten")
    second = scratch(2)
    assert (second / "continued/divided/000000000010/note.json").read_text() == "ten"
    (second / "checkpoint.safetensors").write_text("later")
    third = scratch(3)
    assert [file.name for file in (third / "continued").iterdir()] == ["checkpoint.safetensors"]


def started(project: Project) -> None:
    until((project.root / "started").exists)


@BOTH
@pytest.mark.parametrize("edit", ["dependency data", "params.yaml: train"])
def test_inputs_that_change_while_the_stage_runs(
    work: Callable[[str], Project], guard: str, edit: str
) -> None:
    project = work(f"{guard} 1.5")
    running = project.start("dvc", "repro", "work")
    started(project)
    if "data" in edit:
        project.write("data", "new")
    else:
        project.write("params.yaml", "train: {lr: 2}\n")
    code = running.wait()
    if guard == "plain":  # DVC says that `out` was made from inputs that it was not made from
        assert code == 0
        assert (project.root / "out").read_text() == "old"
        assert plan.changed(project.root, "work") == []
    else:
        assert code != 0
        assert lineage.lock_entries(project.root) == {}
        project.write("data", "old")
        project.write("params.yaml", "train: {lr: 1}\n")
        (project.root / "started").unlink()
        running = project.start("python", "work.py", "guarded", "1")
        started(project)
        project.write("data", "new")
        project.write("params.yaml", "train: {lr: 2}\n")
        assert running.wait() == 1


def test_the_error_names_what_changed(work: Callable[[str], Project]) -> None:
    project = work("guarded 0")
    named = r"\(dependency data; params.yaml: train\)"
    with pytest.raises(ReflowError, match=named) as error, guarded(project.root, "work"):
        project.write("data", "new")
        project.write("params.yaml", "train: {lr: 2}\n")
    assert "\n" not in str(error.value)


def test_a_broken_dvc_yaml_does_not_fail_a_stage_at_its_end(
    work: Callable[[str], Project],
) -> None:
    project = work("guarded 0")
    with guarded(project.root, "work"):
        project.write("dvc.yaml", "stages: [")


@BOTH
@pytest.mark.parametrize("before", ["", "true && "], ids=["direct", "behind a shell"])
def test_the_stage_dies_with_dvc(work: Callable[..., Project], guard: str, before: str) -> None:
    project = work(f"{guard} 3", before)
    dvc = project.start("dvc", "repro", "work")
    started(project)
    dvc.kill()
    dvc.wait()
    if guard == "plain":  # an orphan writes into the workspace of whoever comes next
        until((project.root / "out").exists, 10)
    else:
        with pytest.raises(AssertionError):
            until((project.root / "out").exists, 5)


@pytest.mark.long
def test_a_stage_runs_once_at_a_time(work: Callable[[str], Project]) -> None:
    project = work("guarded 30")
    first = project.start("python", "work.py", "guarded", "30")
    started(project)
    second = project.sh("python", "work.py", "guarded", "0", check=False)
    assert second.returncode == 1
    assert f"stage work is already running (process {first.pid})" in second.stderr
    assert project.sh("python", "work.py", "plain", "0").returncode == 0  # nothing else stops it
    first.kill()
    first.wait()
    assert project.sh("python", "work.py", "guarded", "0").returncode == 0


def test_scratch_outlives_a_kill_and_goes_with_other_inputs(
    work: Callable[[str], Project],
) -> None:
    project = work("guarded 0")
    with pytest.raises(KeyboardInterrupt), guarded(project.root, "work") as scratch:
        (scratch / "checkpoint").write_text("step 7")
        raise KeyboardInterrupt
    assert scratch == project.root / ".reflow/scratch/work" / lineage.fingerprint(
        project.root, "work"
    )
    with pytest.raises(KeyboardInterrupt), guarded(project.root, "work") as again:
        assert (again / "checkpoint").read_text() == "step 7"
        raise KeyboardInterrupt
    project.write("data", "new")
    with guarded(project.root, "work") as other:
        assert list(other.iterdir()) == []
        assert not scratch.exists()


def test_scratch_of_a_result_stays_until_dvc_keeps_it(work: Callable[[str], Project]) -> None:
    project = work("guarded 0")
    project.sh("dvc", "repro", "--no-commit")  # dvc.lock has it, the cache does not
    (scratch,) = (project.root / ".reflow/scratch/work").iterdir()
    sweep(project.root)
    assert scratch.exists()
    project.sh("dvc", "commit", "-f")
    with stage_locked(project.root, "work"):  # it runs again: `dvc repro --force`
        sweep(project.root)
        assert scratch.exists()
    sweep(project.root)
    assert not scratch.exists()
    with guarded(project.root, "work") as forced:
        assert list(forced.iterdir()) == []


def test_a_result_that_dvc_did_not_record_is_adopted(
    work: Callable[[str], Project], capsys: pytest.CaptureFixture[str]
) -> None:
    project = work("guarded 0")
    root, out = project.root, project.root / "out"
    project.sh("python", "work.py", "guarded", "0")
    before = out.stat()
    out.unlink()  # as DVC does before it runs the stage again
    with guarded(root, "work") as scratch:
        assert adopted(root, scratch, "work")
    assert out.read_text() == "old" and out.stat().st_ino == before.st_ino
    assert "work: finished before DVC was stopped" in capsys.readouterr().out
    out.write_text("altered in place, so its link is, too")
    with guarded(root, "work") as scratch:
        assert not adopted(root, scratch, "work")
    project.write("data", "new")
    with guarded(root, "work") as scratch:
        assert not adopted(root, scratch, "work")


def test_a_result_with_other_inputs_at_its_end_is_not_adopted(
    work: Callable[[str], Project],
) -> None:
    project = work("guarded 0")
    project.write("out", "made of both")
    with pytest.raises(ReflowError, match="changed"), guarded(project.root, "work"):
        project.write("data", "new")
    project.write("data", "old")
    with guarded(project.root, "work") as scratch:
        assert not adopted(project.root, scratch, "work")


def test_leash_checks_that_the_parent_is_still_there(empty: Project) -> None:
    leash = str(Path(__file__).resolve().parents[3] / "flows/project/process_group.py")
    alive = empty.sh("python", "-P", leash, str(os.getpid()), "this", check=False)
    assert alive.returncode == 0
    assert "beautiful is better" in alive.stdout.lower()
    gone = empty.sh("python", "-P", leash, "1", "this", check=False)
    assert gone.returncode == -signal.SIGKILL
