"""`reflow upgrade`: copies of earlier files move to the version, edited ones stay."""

import json
import os

import pytest
from typer.testing import CliRunner

from flows.cli.main import app
from flows.start import templates
from flows.start.templates import RECORD, hashed
from fmcore.settings import ReflowError
from tests.conftest import SOURCE
from tests.tiny_chain import build


def older(root, name, old, new):
    """Make a file of the project the unchanged copy of an earlier version's."""
    text = (root / name).read_text()
    assert old in text
    (root / name).write_text(text.replace(old, new))
    record = json.loads((root / RECORD).read_text())
    record["version"] = "0.0.9"
    record["files"][name] = hashed(text.replace(old, new))
    (root / RECORD).write_text(json.dumps(record))


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """A project whose stages ran, with the files of this version."""
    root = tmp_path_factory.mktemp("upgrade")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        patch.setenv("DVC_SITE_CACHE_DIR", str(root / ".reflow" / "dvc"))
        project = build(root)
    kept = templates.kept()
    for name, text in kept.items():
        project.write(name, text)
    files = {name: hashed(text) for name, text in kept.items()}
    project.write(RECORD, json.dumps({"version": templates.installed_version(), "files": files}))
    return project


@pytest.fixture
def project(ran, monkeypatch):
    project = ran
    monkeypatch.chdir(project.root)
    for name in ("DVC_SITE_CACHE_DIR", "PREFECT_HOME", "MLFLOW_TRACKING_URI", "MPLCONFIGDIR"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    environment = dict(os.environ)
    kept = {name: (project.root / name).read_text() for name in [*templates.kept(), RECORD]}
    yield project
    for name, text in kept.items():
        project.write(name, text)
    os.environ.clear()
    os.environ.update(environment)


def upgrade(*words):
    return CliRunner().invoke(app, ["upgrade", *words], catch_exceptions=False)


def test_the_files_of_the_version_need_nothing(project):
    done = upgrade()
    assert done.exit_code == 0 and "has the files of" in done.stdout, done.output


def test_an_unchanged_copy_is_rewritten_and_the_plan_says_what_runs(project):
    older(project.root, "dvc.yaml", "stage compare\n", "stage compare --old\n")
    older(project.root, "prefect.yaml", "flows.deploy.flow.scheduled", "flows/deploy/flow.py:s")
    before = {n: (project.root / n).read_text() for n in ("dvc.yaml", "prefect.yaml", RECORD)}
    tried = upgrade("--dry-run")
    assert tried.exit_code == 0, tried.output
    assert "dvc.yaml: rewritten" in tried.stdout and "nothing was changed" in tried.stdout
    assert "compare" not in tried.stdout.split("prefect.yaml")[1]  # it ran by the new command
    assert before == {n: (project.root / n).read_text() for n in before}
    done = upgrade()
    assert done.exit_code == 0 and "0.0.9 -> " in done.stdout, done.output
    for name in ("dvc.yaml", "prefect.yaml"):
        assert (project.root / name).read_text() == (SOURCE / name).read_text()
    assert "has the files of" in upgrade().stdout


def test_a_stage_that_the_version_runs_otherwise_is_named_before(project, monkeypatch):
    real = templates.kept()
    new = real["dvc.yaml"].replace("stage compare\n", "stage compare --new\n")
    monkeypatch.setattr(templates, "kept", lambda: {**real, "dvc.yaml": new})
    done = upgrade("--dry-run")
    assert done.exit_code == 0, done.output
    assert "compare" in done.stdout and "command changed" in done.stdout
    assert "train@rf1" not in done.stdout
    assert (project.root / "dvc.yaml").read_text() == real["dvc.yaml"]
    assert not list(project.root.glob(".dvc.yaml*"))


def test_an_edited_file_stays_and_is_named(project):
    older(project.root, "prefect.yaml", "[reflow]", "[older]")
    project.edit(".gitignore", "/data/\n", "/data/\n/mine/\n")
    project.edit("dvc.yaml", "# The chain as a graph.", "# My chain.")
    done = upgrade()
    assert done.exit_code == 0, done.output
    for name in (".gitignore", "dvc.yaml"):
        assert f"{name}: edited, so it stays" in done.stdout
    assert "/mine/" in (project.root / ".gitignore").read_text()
    assert "[reflow]" in (project.root / "prefect.yaml").read_text()


def test_a_file_that_the_version_no_longer_has_goes_if_unchanged(project):
    for name, text in (("gone", "a"), ("kept", "b")):
        path = f".dvc/plots/{name}.json"
        project.write(path, "{}")
        older(project.root, path, "{}", text)
    project.write(".dvc/plots/kept.json", "mine")
    assert ".dvc/plots/gone.json: removed" in upgrade().stdout
    assert not (project.root / ".dvc/plots/gone.json").exists()
    assert (project.root / ".dvc/plots/kept.json").read_text() == "mine"
    (project.root / ".dvc/plots/kept.json").unlink()


def test_stages_that_do_not_suit_params_yaml_change_nothing(project, monkeypatch):
    real = templates.kept()
    monkeypatch.setattr(templates, "kept", lambda: {**real, "dvc.yaml": "stages: {a: {b: 1}}\n"})
    done = upgrade()
    assert done.exit_code == 2 and done.stderr.count("\n") == 1, done.stderr
    assert (project.root / "dvc.yaml").read_text() == real["dvc.yaml"]


def test_a_project_without_a_record_is_told_why(project, tmp_path):
    (project.root / RECORD).rename(tmp_path / RECORD)
    done = upgrade()
    (tmp_path / RECORD).rename(project.root / RECORD)
    assert done.exit_code == 2 and "was not made by `reflow init`" in done.stderr
    project.write(RECORD, "{")
    with pytest.raises(ReflowError, match="get it back: git checkout"):
        templates.Record.read(project.root)


@pytest.mark.parametrize("name", ["../outside.bin", "/etc/hostname", "models/rf1", ".dvc/config"])
def test_a_record_names_no_file_but_those_of_a_project(project, name):
    outside = project.root.parent / "outside.bin"
    outside.write_bytes(b"\xff\x00")
    record = json.loads((project.root / RECORD).read_text())
    record["files"][name] = hashed("")
    project.write(RECORD, json.dumps(record))
    done = upgrade()
    assert done.exit_code == 2 and "no file of a project" in done.output
    assert outside.exists()


def test_a_link_is_an_edited_file(project):
    outside = project.root.parent / "plots.json"
    outside.write_text("theirs")
    older(project.root, "prefect.yaml", "reflow-chain", "reflow-chains")
    (project.root / ".dvcignore").unlink()
    (project.root / ".dvcignore").symlink_to(outside)
    done = upgrade()
    assert ".dvcignore: edited" in done.output and outside.read_text() == "theirs"
    (project.root / ".dvcignore").unlink()
