"""What a run says at its end."""

from pathlib import Path

import pytest

from flows.run.start import uncommitted
from tests import tiny_chain
from tests.conftest import Project


@pytest.mark.slow
def test_a_run_says_what_to_commit_until_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    project: Project = tiny_chain.build(tmp_path)
    files = uncommitted(project.root)
    assert "dvc.lock" in files and "metrics" in files
    project.sh("git", "add", *files)
    project.sh("git", "commit", "-q", "-m", "a chain")
    assert uncommitted(project.root) == []
    (project.root / "params.yaml").write_text((project.root / "params.yaml").read_text() + "\n")
    assert uncommitted(project.root) == ["params.yaml"]


def test_without_git_there_is_nothing_to_commit(tmp_path: Path):
    assert uncommitted(tmp_path) == []
