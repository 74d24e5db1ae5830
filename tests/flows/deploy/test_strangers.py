"""An order for a stranger's branch, and a revision that is no revision."""

import pytest

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
