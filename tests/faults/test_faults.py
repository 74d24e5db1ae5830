"""A stage that is disturbed at any call that changes a file loses nothing and writes nothing false.

For each trial: a fault at one call (a kill, no space left, EIO, half of a write), the outputs are
deleted as DVC does, the stage runs again. It must write the bytes of an undisturbed run, repeat no
step, shard or result that was complete, and have said one line where it could speak.
"""

import random
from collections.abc import Iterator

import pytest

from tests.faults.commands import COMMANDS, Commands
from tests.faults.harness import KINDS, Harness, points, started
from tests.faults.stages import STAGES

SLOW = ("evaluate@rf1", "compare")
"""Stages that draw pictures; a trial of theirs takes a second."""


def harness_in(factory: pytest.TempPathFactory, *, whole: bool) -> Iterator[Harness]:
    with started(factory.mktemp("faults"), whole=whole) as harness:
        if harness is None:
            pytest.skip("needs Linux and a C compiler")
        yield harness


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Harness]:
    yield from harness_in(tmp_path_factory, whole=False)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Harness]:
    yield from harness_in(tmp_path_factory, whole=True)


@pytest.fixture(scope="module")
def commands(bare: Harness) -> Commands:
    found = Commands(bare)
    found.build()
    return found


def sample(harness: Harness | Commands, stage: str, kind: str, count: int) -> list[int]:
    """Draw some calls of a stage, the same ones every time."""
    found = points(harness.calls[stage], kind)
    return sorted(random.Random(f"{stage} {kind}").sample(found, min(count, len(found))))


def failures(
    harness: Harness | Commands, stage: str, kind: str, calls: list[int]
) -> dict[str, list[str]]:
    """Return what is wrong, by the call that was disturbed."""
    tried = {f"{n}: {harness.calls[stage][n - 1]}": harness.trial(stage, kind, n) for n in calls}
    return {call: wrong for call, wrong in tried.items() if wrong}


@pytest.mark.parametrize("stage", STAGES)
def test_a_sample_of_all_faults(bare: Harness, stage: str) -> None:
    for kind in ("kill",) if stage in SLOW else KINDS:
        assert failures(bare, stage, kind, sample(bare, stage, kind, 1)) == {}


def test_the_last_call_of_a_stage_is_survived(bare: Harness) -> None:
    """There everything is done but for DVC's record, so nothing may be made again."""
    for stage in ("train@rf1", "couple@rf1"):
        assert bare.calls[stage][-1].endswith("files.json")
        assert failures(bare, stage, "kill", [len(bare.calls[stage])]) == {}


def test_the_harness_sees_the_calls_of_every_library(bare: Harness) -> None:
    calls = bare.calls["train@rf1"] + bare.calls["couple@rf1"]
    for end in (".tmp", "events.jsonl", "config.json"):  # pyarrow, then Python
        assert any(c.startswith("write ") and c.endswith(end) for c in calls), end
    assert any(c.startswith("truncate ") for c in calls), "safetensors writes by a memory map"
    assert {c.split()[0] for c in calls} >= {"open", "write", "rename", "link", "mkdir", "fsync"}


@pytest.mark.long
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("stage", STAGES)
def test_every_fault(bare: Harness, stage: str, kind: str) -> None:
    assert failures(bare, stage, kind, points(bare.calls[stage], kind)) == {}


@pytest.mark.long
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("stage", [s for s in STAGES if s not in SLOW])
def test_a_sample_inside_the_guard(whole: Harness, stage: str, kind: str) -> None:
    """Also at the calls of the lock, of DVC's hashing and of its data base."""
    assert failures(whole, stage, kind, sample(whole, stage, kind, 6)) == {}


@pytest.mark.long
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", COMMANDS)
def test_a_sample_of_faults_of_commands(commands: Commands, name: str, kind: str) -> None:
    """MLflow's records, the remote, and the branch of a deployed run are complete afterwards."""
    assert failures(commands, name, kind, sample(commands, name, kind, 8)) == {}


@pytest.mark.long
def test_a_deployed_run_that_was_killed_before_its_parameters_were_written(
    commands: Commands,
) -> None:
    calls = commands.calls["deployed"]
    written = [n for n, call in enumerate(calls, 1) if call.endswith("night/params.yaml")]
    assert written
    assert failures(commands, "deployed", "kill", written) == {}
