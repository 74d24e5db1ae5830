"""A lock that is held says what its holder does; locks of other things do not meet."""

import os
from pathlib import Path

import pytest

from flows.project.locks import Busy, locked, stage_locked


def test_a_held_lock_says_who_holds_it_what_for_and_what_to_do(tmp_path: Path) -> None:
    def hold():  # type: ignore[no-untyped-def]
        return locked(tmp_path, "ui", "another `reflow ui` is starting", "wait", patience=0)

    with hold(), pytest.raises(Busy) as error, hold():
        pass
    assert str(error.value) == f"another `reflow ui` is starting (process {os.getpid()}); wait"
    with hold():
        pass


def test_a_stage_called_after_another_lock_is_not_held_by_it(tmp_path: Path) -> None:
    said = f"^stage publish is already running .process {os.getpid()}"
    with (
        locked(tmp_path, "publish", "", ""),
        stage_locked(tmp_path, "publish"),
        pytest.raises(Busy, match=said),
        stage_locked(tmp_path, "publish"),
    ):
        pass


def test_jobs_may_share_a_stage_that_then_does_not_run(tmp_path: Path) -> None:
    with (
        stage_locked(tmp_path, "a", exclusive=False),
        stage_locked(tmp_path, "a", exclusive=False),
        pytest.raises(Busy),
        stage_locked(tmp_path, "a"),
    ):
        pass
