"""What a run says at its end."""

from pathlib import Path

import pytest

from flows.project import links, servers
from flows.run.start import _keeping, _recorded, uncommitted
from tests import tiny_chain
from tests.conftest import Project


@pytest.mark.slow
def test_a_run_says_what_to_commit_until_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    project: Project = tiny_chain.build(tmp_path)
    files = uncommitted(project.root)
    assert "dvc.lock" in files and "metrics" in files
    (said,) = _keeping(project.root, files)
    project.sh("bash", "-c", said.removeprefix("keep it").strip())
    assert uncommitted(project.root) == [] == _keeping(project.root, [])
    (project.root / "params.yaml").write_text((project.root / "params.yaml").read_text() + "\n")
    assert uncommitted(project.root) == ["params.yaml"]


def test_the_line_works_from_a_folder_of_the_project(tmp_path: Path, monkeypatch):
    (tmp_path / "a").mkdir()
    monkeypatch.chdir(tmp_path / "a")
    (said,) = _keeping(tmp_path, ["dvc.lock", "metrics"])
    assert "git add ../dvc.lock ../metrics &&" in said


def test_without_git_there_is_nothing_to_commit(tmp_path: Path):
    assert uncommitted(tmp_path) == []


def test_a_run_names_what_was_recorded_and_the_server_that_can_be_started(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///m.db")
    monkeypatch.setenv("PREFECT_HOME", "/home/p")
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    assert _recorded(tmp_path, "", mlflow=False) == []
    assert _recorded(tmp_path, "red-fox", mlflow=True) == [
        "MLflow       sqlite:///m.db",
        "Prefect run  red-fox in /home/p",
        "in a browser `reflow ui` shows the records and the run",
    ]
    assert _recorded(tmp_path, "red-fox", mlflow=False)[-1].endswith("shows the run")
    assert len(_recorded(tmp_path, "", mlflow=True)) == 2


def test_servers_that_run_already_are_named_and_none_is_offered(tmp_path, monkeypatch):
    monkeypatch.setenv("PREFECT_HOME", "/home/p")
    monkeypatch.setattr(links, "known", lambda place, login: {"runs": f"{place}/#/experiments"})
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://team:5000")
    monkeypatch.setenv("PREFECT_API_URL", "http://team:4200/api")
    assert _recorded(tmp_path, "red-fox", mlflow=True) == [
        "MLflow       http://team:5000/#/experiments",
        "Prefect run  red-fox in http://team:4200/api",
    ]
    monkeypatch.delenv("PREFECT_API_URL")
    mine = servers.Servers(str(tmp_path), 1, "", "http://127.0.0.1:4200", "http://127.0.0.1:5000")
    monkeypatch.setattr(servers, "living", lambda root: mine)
    said = _recorded(tmp_path, "red-fox", mlflow=True)
    assert said[1] == "Prefect run  red-fox in http://127.0.0.1:4200" and len(said) == 2
