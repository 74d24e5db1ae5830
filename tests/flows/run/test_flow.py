"""The run of the chain, through a real Prefect server and with threads alone."""

import signal
import subprocess
import sys
import time
from pathlib import Path
from uuid import UUID

import pytest

from flows.dag import graph
from flows.run import repro
from flows.run.chain import update_chain
from flows.run.schedule import Listeners, RunResult, select
from fmcore.settings import ReflowError
from tests.conftest import SOURCE, Project, heed_interrupts, until

BOTH = pytest.mark.parametrize("prefect", [True, False], ids=["prefect", "threads"])

DAG = """
stages:
  a: {cmd: cp one a, deps: [one], outs: [a]}
  b: {cmd: "touch b.runs; timeout 60 sh -c 'until test -e c.runs; do sleep .1; done' && touch b",
      deps: [a], outs: [b]}
  c: {cmd: "touch c.runs; timeout 60 sh -c 'until test -e b.runs; do sleep .1; done' && touch c",
      deps: [a], outs: [c]}
  bad: {cmd: "echo ran >> bad.log; echo 'error: no such luck'; exit 2", deps: [a], outs: [bad]}
  after: {cmd: cp bad after, deps: [bad], outs: [after]}
  oom: {cmd: "test -e tried || { touch tried; kill -9 $$; }; cp b oom", deps: [b], outs: [oom]}
"""
RUN = """
import pathlib, sys
sys.path.insert(0, sys.argv[1])
from flows.run.chain import update_chain
result = update_chain(pathlib.Path.cwd(), prefect=False)
sys.exit(0 if result.ok else 1)
"""


@pytest.fixture
def branched(empty: Project, prefect_server: None) -> Project:
    """Two branches side by side, a stage that fails, one that is killed at its first try."""
    empty.write("dvc.yaml", DAG)
    empty.write("one", "1\n")
    return empty


def states(result: RunResult) -> dict[str, str]:
    return {name: stage.state for name, stage in result.stages.items()}


@BOTH
def test_branches_run_side_by_side_and_a_failure_blocks_only_its_dependents(
    branched: Project, prefect: bool
) -> None:
    told, lines = [], []
    result = update_chain(
        branched.root,
        prefect=prefect,
        listeners=Listeners(
            observer=lambda name, outcome: told.append((name, outcome.state)),
            on_line=lambda name, line: lines.append((name, line)),
        ),
    )
    done = dict.fromkeys(["a", "b", "c", "oom"], "done")
    assert states(result) == {**done, "bad": "failed", "after": "blocked"}
    assert dict(told) == done
    assert ("bad", "error: no such luck") in lines
    assert result.errors == ["bad: no such luck"]
    assert not result.ok
    assert (branched.root / "bad.log").read_text() == "ran\n"  # what says error: is not retried
    assert (branched.root / "tried").exists()  # what was killed is
    assert result.stages["oom"].reasons == ("never ran",)


def test_prefect_shows_names_edges_states_lines_and_what_was_cached(branched: Project) -> None:
    from prefect.client.orchestration import get_client
    from prefect.client.schemas import filters
    from prefect.client.schemas.sorting import TaskRunSort

    def task_runs(result: RunResult):  # type: ignore[no-untyped-def]
        chosen = filters.FlowRunFilter(id=filters.FlowRunFilterId(any_=[UUID(result.flow_run)]))
        sort = TaskRunSort.END_TIME_DESC
        with get_client(sync_client=True) as client:
            return {
                r.name: r
                for r in client.read_task_runs(flow_run_filter=chosen, sort=sort, limit=99)
            }

    first = update_chain(branched.root)
    runs = task_runs(first)
    assert set(runs) == set(graph.read(branched.root))
    assert runs["a"].state_name == "Completed"
    assert runs["bad"].state_name == "Failed"
    assert "no such luck" in runs["bad"].state.message
    assert runs["after"].state_name == "NotReady"
    assert runs["oom"].run_count == 2
    with get_client(sync_client=True) as client:
        flow_run = client.read_flow_run(UUID(first.flow_run))
        assert flow_run.state_name == "Failed"
        assert "bad: no such luck" in flow_run.state.message

        def logged() -> bool:
            logs = client.read_logs(limit=200, offset=0)
            return any("error: no such luck" in log.message for log in logs)

        until(logged, 20)
    branched.edit("dvc.yaml", "; exit 2", "; touch bad")
    second = update_chain(branched.root)
    assert second.ok
    runs = task_runs(second)
    assert {name: r.state_name for name, r in runs.items()} == {
        **dict.fromkeys(["a", "b", "c", "oom"], "Cached"),
        **dict.fromkeys(["bad", "after"], "Completed"),
    }
    assert runs["a"].state.message == "DVC: unchanged"


def test_stages_have_their_names_in_prefect_before_they_begin(
    project: Project, prefect_server: None
) -> None:
    from prefect import runtime
    from prefect.client.orchestration import get_client
    from prefect.client.schemas import filters
    from prefect.client.schemas.sorting import TaskRunSort

    seen: list[str] = []

    def done(stage: str, _: object) -> None:
        if not seen:  # most stages have not begun
            own = filters.FlowRunFilterId(any_=[UUID(str(runtime.flow_run.id))])
            with get_client(sync_client=True) as client:
                found = client.read_task_runs(
                    flow_run_filter=filters.FlowRunFilter(id=own),
                    sort=TaskRunSort.NAME_ASC, limit=99,
                )  # fmt: skip
                seen.extend(run.name for run in found)

    result = update_chain(project.root, listeners=Listeners(observer=done))
    assert result.ok
    names = set(graph.read(project.root))
    assert len(seen) == len(names)
    assert {name if name in names else name.rpartition("-")[0] for name in seen} == names
    with get_client(sync_client=True) as client:
        run = client.read_flow_run(UUID(result.flow_run))
    assert run.name.startswith("data ") and "reflow" in run.tags  # of a chain that is none of ours
    assert set(run.parameters["to_run"]) == names


@BOTH
def test_same_lock_as_dvc_repro_alone(
    project: Project, prefect_server: None, prefect: bool
) -> None:
    result = update_chain(project.root, prefect=prefect)
    assert set(states(result).values()) == {"done"}
    lock = (project.root / "dvc.lock").read_text()
    project.sh("rm", "-rf", "dvc.lock", ".dvc/cache", "models", "couplings", "table", "metrics")
    project.repro()
    assert (project.root / "dvc.lock").read_text() == lock, "in the same order, too"
    result = update_chain(project.root, prefect=prefect)
    assert set(states(result).values()) == {"cached"}
    assert max(stage.seconds for stage in result.stages.values()) < 1.0


def test_restored_from_the_run_cache_is_cached_not_done(project: Project) -> None:
    update_chain(project.root, prefect=False)
    project.sh("rm", "-rf", "models/rf2")
    result = update_chain(project.root, prefect=False)
    assert set(states(result).values()) == {"cached"}
    assert result.stages["train@rf2"].reasons == ("output models/rf2 is missing",)
    assert (project.root / "models/rf2/m").exists()


def test_targets_bring_what_they_depend_on(project: Project) -> None:
    stages = graph.read(project.root)
    assert list(select(stages, ["couple@rf1"])) == ["prepare", "train@rf1", "couple@rf1"]
    assert list(select(stages, ["train"])) == ["prepare", "train@rf1", "couple@rf1", "train@rf2"]
    with pytest.raises(ReflowError, match="no stage 'tarin'"):
        update_chain(project.root, targets=["tarin"], prefect=False)


def test_an_observer_that_fails_does_not_fail_the_stage(project: Project) -> None:
    lines: list[str] = []

    def broken(name: str, outcome: repro.Outcome) -> None:
        raise RuntimeError("no server")

    result = update_chain(
        project.root,
        prefect=False,
        listeners=Listeners(observer=broken, on_line=lambda name, line: lines.append(line)),
    )
    assert result.ok
    assert any("no server" in line for line in lines)


@pytest.mark.parametrize(
    ("code", "lines", "reason", "retryable"),
    [
        (1, ["error: lr is negative", "ERROR: ..., exited with 2"], "lr is negative", False),
        (1, ["error: out of memory", "ERROR: ..., exited with 137"], "out of memory", True),
        (1, ["torch.OutOfMemoryError: CUDA", "ERROR: ..., exited with 1"], "OutOfMemory", True),
        (1, ["step 7", "ERROR: ..., exited with -9"], "killed (SIGKILL)", True),
        (1, ["step 7", "ERROR: ..., exited with 137"], "killed (SIGKILL)", True),
        (-15, ["step 7"], "killed (SIGTERM)", True),
        (1, ["step 7", "ERROR: ..., exited with -11"], "step 7 (exit -11)", False),
        (1, ["ValueError: no", "ERROR: ..., exited with 1"], "ValueError: no (exit 1)", False),
        (255, ["ERROR: Unable to acquire lock. Most likely"], "Unable to acquire", True),
        (
            255,
            ["ERROR: 'm1' is busy, it is being blocked by:", "  (PID 7): /x/dvc repro a", "If"],
            "'m1' is in use by process 7 (`dvc repro a`); wait for it to end, or end it",
            True,
        ),
        (1, ["error: a is busy", "ERROR: ..., exited with 75"], "a is busy", True),
        (1, ["error: a is already running", "ERROR: ..., exited with 2"], "running", False),
        (255, ["ERROR: dependency 'x' does not exist"], "'x' does not exist", False),
    ],
)
def test_what_is_said_of_a_failure_and_whether_it_may_pass(
    code: int, lines: list[str], reason: str, retryable: bool
) -> None:
    failed = repro.failure("train@rf1", code, ["Running stage 'train@rf1':", *lines])
    assert reason in str(failed)
    assert failed.retryable == retryable


def test_a_run_waits_for_another_dvc_and_says_for_whom(empty: Project) -> None:
    empty.write(
        "dvc.yaml",
        "stages:\n"
        "  a: {cmd: 'echo x >> a.log; touch began; sleep 6; cp one a', deps: [one], outs: [a]}\n"
        "  b: {cmd: 'cp a b', deps: [a], outs: [b]}\n",
    )
    empty.write("one", "1\n")
    other = empty.start("dvc", "repro", "a")
    until((empty.root / "began").exists, 60)
    said: list[str] = []
    result = update_chain(empty.root, prefect=False, listeners=Listeners(say=said.append))
    assert other.wait() == 0
    assert result.ok and (empty.root / "a.log").read_text() == "x\n"
    assert said == [
        f"a waits: '{empty.root}/a' is in use by process {other.pid} (`dvc repro a`);"
        " wait for it to end, or end it"
    ]


@pytest.mark.long
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_killed_run_leaves_no_process_and_the_next_goes_on(
    empty: Project, number: signal.Signals
) -> None:
    empty.write("one", "1\n")
    empty.write(
        "work.py",
        "from flows.project.process_group import die_with_starter\ndie_with_starter()\n"
        "import pathlib, time\nfrom flows.stage.guard import guarded\n"
        "with guarded(pathlib.Path.cwd(), 'work') as scratch:\n"
        "    resumed = (scratch / 'checkpoint').exists()\n"
        "    (scratch / 'checkpoint').touch()\n"
        "    time.sleep(0 if resumed else 3)\n"
        "    pathlib.Path('out').write_text(f'resumed {resumed}')\n",
    )
    empty.write(
        "dvc.yaml",
        "stages:\n  a: {cmd: 'echo x >> a.log; cp one a', deps: [one], outs: [a]}\n"
        "  work: {cmd: python work.py, deps: [a, work.py], outs: [out]}\n",
    )
    command = [sys.executable, "-c", RUN, str(SOURCE)]
    running = subprocess.Popen(
        command, cwd=empty.root, stderr=subprocess.DEVNULL, preexec_fn=heed_interrupts
    )
    until(lambda: any((empty.root / ".reflow/scratch").glob("work/*/checkpoint")))
    running.send_signal(number)
    assert running.wait(10) != 0
    time.sleep(3.5)
    assert not (empty.root / "out").exists()
    assert subprocess.run(command, cwd=empty.root, check=False).returncode == 0
    assert (empty.root / "out").read_text() == "resumed True"
    assert (empty.root / "a.log").read_text() == "x\n"
    assert not list(Path(empty.root / ".reflow/scratch/work").iterdir())
