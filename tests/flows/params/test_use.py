"""params.yaml is replaced whole or not at all, and never where git could not give it back."""

import errno
import os

import pytest

from flows.params.load import FILE, load
from flows.params.replicates import replicate
from flows.params.tree import write_text
from flows.params.use import use_params
from flows.start.new import Source, new
from fmcore.settings import ReflowError
from tests.conftest import Project
from tests.real_chain import PARAMS


@pytest.fixture
def own(empty: Project) -> Project:
    """A project whose params.yaml is the user's, and another one in a file."""
    empty.write("params/other.yaml", PARAMS.replace("seed: 0\n", "seed: 9\n", 1))
    empty.write(FILE, PARAMS.replace("seed: 0\n", "seed: 5\n", 1))
    return empty


def use(project: Project, **how: bool) -> str:
    file = project.root / "params" / "other.yaml"
    return use_params(project.root, file, **{"force": False, "whole": True, **how})


def committed(project: Project, *hidden: str) -> None:
    project.sh("git", "add", "-A")
    project.sh("git", "commit", "-qm", "a")
    if hidden:
        project.sh("git", *hidden, FILE)


def test_what_git_ignores_or_does_not_look_at_is_not_in_git(own):
    own.write(".gitignore", f"/.reflow/\n/{FILE}\n")
    committed(own)
    before = (own.root / FILE).read_text()
    with pytest.raises(ReflowError, match="edits that git does not have"):
        use(own)
    own.sh("git", "add", "-f", FILE)
    committed(own, "update-index", "--assume-unchanged")
    own.edit(FILE, "seed: 5", "seed: 6")
    with pytest.raises(ReflowError, match="edits that git does not have"):
        use(own)
    assert (own.root / FILE).read_text() == before.replace("seed: 5", "seed: 6")
    use(own, force=True)
    assert load(own.root / FILE).seed == 9


def test_what_git_has_is_replaced(own):
    committed(own)
    use(own)
    assert load(own.root / FILE).seed == 9


def test_force_asks_no_git(own, monkeypatch):
    monkeypatch.setenv("PATH", "")
    use(own, force=True)
    assert load(own.root / FILE).seed == 9


def test_what_is_no_text_is_an_edit_and_no_traceback(own):
    (own.root / FILE).write_bytes(b"seed: 0 # caf\xe9\n")
    (own.root / "params" / "a.yaml").write_bytes(b"\xe9\n")
    with pytest.raises(ReflowError, match="edits that git does not have"):
        use(own)
    own.write(FILE, "seed: 1\n")
    with pytest.raises(ReflowError, match="edits that git does not have"):
        use(own)


@pytest.fixture
def full(monkeypatch):
    """A disk that is full when the text is to be kept."""

    def fsync(handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", fsync)


def _new(project: Project) -> None:
    data = project.root / "x.csv"
    data.write_text("a,b\n" + "".join(f"{i / 7},{i % 5}\n" for i in range(400)))
    new(project.root, "other", Source(array=data), gpu=False, force=True)


@pytest.mark.parametrize(
    "write",
    [lambda p: use(p, force=True), lambda p: replicate(p.root / FILE, 3), _new],
    ids=["use", "replicate", "new"],
)
def test_a_full_disk_leaves_the_old_text(own, full, write):
    files = {file: file.read_bytes() for file in own.root.rglob("*.yaml")}
    with pytest.raises(ReflowError, match="cannot be written .No space.*stays as it was"):
        write(own)
    assert {file: file.read_bytes() for file in own.root.rglob("*.yaml*")} == files


def test_a_link_and_the_mode_of_a_file_stay(tmp_path):
    file, link = tmp_path / "real.yaml", tmp_path / "params.yaml"
    file.write_text("a")
    file.chmod(0o640)
    link.symlink_to(file)
    write_text(link, "b")
    assert link.is_symlink() and file.read_text() == "b" and file.stat().st_mode & 0o777 == 0o640


def test_a_text_that_is_no_chain_never_gets_the_name(own, monkeypatch):
    before = (own.root / FILE).read_text()
    monkeypatch.setattr("flows.params.replicates.replicated", lambda *_: "rounds: {}\n")
    with pytest.raises(ReflowError, match="params.yaml"):
        replicate(own.root / FILE, 2)
    assert (own.root / FILE).read_text() == before
