"""An order for a stranger's branch, and a revision that is no revision."""

import re
from contextlib import nullcontext, suppress

import numpy as np
import pytest

from flows.dag import inputs
from flows.deploy import worktree
from flows.deploy.order import Order
from flows.library.history import resolve
from flows.project.git import file_at
from fmcore.settings import ReflowError
from tests.real_chain import PARAMS


@pytest.mark.parametrize("rev", ["--output=stolen", "-", "--lock", "-b", "HEAD;touch stolen", ""])
def test_a_revision_is_never_an_option_of_git(project, rev):
    project.sh("git", "add", "-A")
    project.sh("git", "commit", "-q", "-m", "one")
    before = sorted(project.root.rglob("*"))
    for use in (
        lambda: resolve(project.root, rev),
        lambda: worktree.check(project.root, Order(rev=rev)),
        lambda: worktree.make(project.root, Order(rev=rev), "a"),
    ):
        with pytest.raises(ReflowError, match="no revision"):
            use()
    with pytest.raises(ReflowError):
        file_at(project.root, rev or "-", "dvc.lock")
    made = {p.name for p in project.root.rglob("*")} - {p.name for p in before}
    assert not any("stolen" in name for name in made)


@pytest.mark.parametrize("name", ["params.yaml", ".dvc", ".dvc/config"])
def test_a_branch_with_links_changes_no_file_outside(project, tmp_path_factory, name):
    outside = tmp_path_factory.mktemp("outside")
    (outside / "file").write_text("mine")
    project.sh("git", "add", "-A")
    project.sh("git", "commit", "-q", "-m", "one")
    project.sh("git", "checkout", "-q", "-b", "strange")
    project.sh("git", "rm", "-rq", "--cached", name)
    aim = outside if name == ".dvc" else outside / "file"
    kept = project.root / "kept"
    (project.root / name).rename(kept)
    (project.root / name).symlink_to(aim)
    project.sh("git", "add", name)
    project.sh("git", "commit", "-q", "-m", "links")
    (project.root / name).unlink()
    kept.rename(project.root / name)
    project.sh("git", "checkout", "-q", "-f", "-")
    with pytest.raises(ReflowError, match="is a link to"):
        worktree.check(project.root, Order(rev="strange", seed=1))
    with pytest.raises(ReflowError, match="is a link to"):
        worktree.make(project.root, Order(rev="strange", seed=1), "a")
    assert [p.name for p in outside.iterdir()] == ["file"]
    assert (outside / "file").read_text() == "mine"
    assert project.sh("git", "branch", "--list", "reflow/*").stdout == ""


def test_own_data_that_git_ignores_are_there_in_a_worktree(project):
    root = project.root
    (root / "data").mkdir()
    np.save(root / "data/own.npy", np.zeros((100, 2)))
    with (root / ".gitignore").open("a") as file:
        file.write("/data/\n")
    own = re.sub("data: .*", "data: {name: array, path: data/own.npy}", PARAMS)
    (root / "params.yaml").write_text(own)
    project.sh("git", "add", "-A")
    project.sh("git", "commit", "-q", "-m", "own data")
    folder = worktree.make(root, Order(), "a")
    assert (folder / "data/own.npy").resolve() == (root / "data/own.npy").resolve()
    assert not inputs.missing(folder) and worktree.keep(root, "a", done=True)
    listed = project.sh("git", "ls-tree", "-r", "--name-only", "reflow/a").stdout
    assert "params.yaml" in listed and "own.npy" not in listed
    assert (root / "data/own.npy").exists()
    for name in ("rf1", "rf2"):  # two settings of one path, a folder and what lies in it
        (root / "data" / name).mkdir()
    linked = worktree.make(root, Order(), "b")
    worktree._link_own_data(root, linked)
    worktree.discard(root, "b")
    (root / "whole").mkdir()
    with (root / ".gitignore").open("a") as file:
        file.write("/whole/\n")  # ignores a folder, not a link
    project.sh("git", "commit", "-q", "-am", "another folder")
    with pytest.raises(ReflowError, match="neither in that commit nor ignored by it"):
        worktree.check(root, Order(overrides={"data.path": "whole"}))
    for path, says in (("kept.npy", "neither in that commit nor ignored"), ("/etc/hostname", None)):
        if says:
            np.save(root / path, np.zeros((100, 2)))
        with pytest.raises(ReflowError, match=says) if says else nullcontext():
            worktree.check(root, Order(overrides={"data.path": path}))
    (root / "data/own.npy").unlink()
    worktree.check(root, Order())  # prepare may be in the cache; if not, it says what is not there


def test_no_link_is_made_where_a_branch_links_to(project, tmp_path_factory):
    root, outside = project.root, tmp_path_factory.mktemp("outside")
    project.sh("git", "add", "-A")
    project.sh("git", "commit", "-q", "-m", "one")
    project.sh("git", "checkout", "-q", "-b", "strange")
    (root / "data").symlink_to(outside)
    project.sh("git", "add", "-f", "data")
    project.sh("git", "commit", "-q", "-m", "links")
    project.sh("git", "checkout", "-q", "-")
    (root / "data").mkdir()
    np.save(root / "data/own.npy", np.zeros((100, 2)))
    order = Order(rev="strange", overrides={"data": {"name": "array", "path": "data/own.npy"}})
    with suppress(ReflowError):
        worktree.check(root, order)
    assert not list(outside.iterdir())


@pytest.mark.parametrize("file", ["../../params.yaml", "/etc/passwd"])
def test_a_parameter_file_is_one_of_the_project(project, file):
    project.sh("git", "add", "-A")
    project.sh("git", "commit", "-q", "-m", "one")
    with pytest.raises(ReflowError, match="expected a file of the project"):
        worktree.check(project.root, Order(params_file=file))


@pytest.mark.parametrize(
    "cmd",
    ["touch stolen", "python -m flows.stage a; touch stolen", "python -m flows.stage $(touch x)"],
)
def test_a_branch_with_another_command_is_refused(project, cmd):
    project.write("params.yaml", PARAMS)
    project.sh("git", "add", "-A")
    project.sh("git", "commit", "-q", "-m", "one")
    worktree.check(project.root, Order())
    project.sh("git", "checkout", "-q", "-b", "strange")
    project.edit("dvc.yaml", "cat models/*/m > table", f'"{cmd}"')
    project.sh("git", "commit", "-q", "-a", "-m", "another")
    project.sh("git", "checkout", "-q", "-")
    with pytest.raises(ReflowError, match=r"rev: stage compare of that commit runs"):
        worktree.check(project.root, Order(rev="strange"))
