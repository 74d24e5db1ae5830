"""The git worktree that a deployed run works in.

A deployed run never changes the user's workspace. It has its own worktree on its own branch, with
the project's DVC cache, and ends with a commit, which `git log reflow/...` shows.
"""

import contextlib
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from flows.dag import graph, inputs
from flows.deploy.order import Order
from flows.library.history import resolve
from flows.params import checked
from flows.params.edit import edited
from flows.params.load import FILE, load
from flows.params.reduce import fitted
from flows.project import environment
from flows.project.git import git
from flows.project.locks import locked
from fmcore.settings import ReflowError

BRANCH = "reflow/"
OURS = re.compile(r"python -m flows\.stage( [\w@=./-]+)+")
"""The commands that every commit may have: no word of them means something to a shell."""


def make(root: Path, order: Order, name: str) -> Path:
    """Return the worktree of the run `name` with the parameters of the order; make it if needed.

    A run that continues after a crash finds its worktree again, with all finished stages; one that
    crashed before its parameters were written begins anew. Raises ReflowError, and removes the
    worktree, if the order is not valid.
    """
    folder = environment.local_path(root, "worktrees", slug(name))
    if (folder / ".git").exists() and _settled(folder).exists():
        checked.check(folder)
        return folder
    commit = resolve(root, order.rev).ref
    with _alone(root):
        shutil.rmtree(folder, ignore_errors=True)
        git(root, "worktree", "prune")
        git(root, "worktree", "add", "-q", "-B", branch(name), str(folder), commit)
    try:
        settle(root, folder, order)
        git(folder, "add", FILE)
        _commit(folder, f"parameters of reflow run {name}")  # so records name a commit with them
        _settled(folder).touch()
    except BaseException:
        discard(root, name)
        git(root, "branch", "-q", "-D", branch(name))
        raise
    return folder


def _settled(folder: Path) -> Path:
    """Return the file which says that a worktree has the parameters of its order.

    It lies in git's folder of the worktree, so that it goes with it, and no commit has it.
    """
    return Path(git(folder, "rev-parse", "--absolute-git-dir")) / "reflow-settled"


def _alone(root: Path) -> contextlib.AbstractContextManager[None]:
    """Let one process of this project at a time add a worktree; git would fail, not wait."""
    held = "another run of this project is making its worktree"
    return locked(root, "worktrees", held, "try again in a minute", patience=60)


def check(root: Path, order: Order) -> None:
    """Check an order as its run would, in a temporary worktree. Raises ReflowError."""
    folder = environment.local_path(root, "worktrees", f"check-{os.getpid()}")
    commit = resolve(root, order.rev).ref
    with _alone(root):
        git(root, "worktree", "add", "-q", "--detach", str(folder), commit)
    try:
        settle(root, folder, order)
    finally:
        git(root, "worktree", "remove", "--force", str(folder))


def settle(root: Path, folder: Path, order: Order) -> None:
    """Write the parameters of the order into a worktree, and let it share the project's cache."""
    _no_links(folder)
    given = folder / order.params_file
    if not given.resolve().is_relative_to(folder.resolve()):
        raise ReflowError(f"params_file: {order.params_file}: expected a file of the project")
    text, _ = fitted(given)
    changes = dict(order.overrides)
    if order.seed is not None:
        changes["seed"] = order.seed
    (folder / FILE).write_text(edited(text, changes))
    known = load(folder / FILE).rounds
    if unknown := [name for name in order.rounds or () if name not in known]:
        raise ReflowError(f"rounds: no round {unknown[0]!r}; {FILE} has: {', '.join(known)}")
    _known_commands(root, folder)
    own = root / ".dvc" / "config.local"  # remotes and credentials that git does not have
    if own.exists():
        shutil.copy(own, folder / ".dvc")
    dvc(folder, "config", "--local", "cache.dir", dvc(root, "cache", "dir"))
    _link_own_data(root, folder)


def _link_own_data(root: Path, folder: Path) -> None:
    """Link into a worktree what its parameters name and git ignores, as all below `data/`.

    So a path means there what it means in the project. Raises ReflowError for data that the commit
    does not ignore: the run's own commit would have the link.
    """
    made = {out for place in (root, folder) for stage in graph.read(place).values()
            for out in stage.outs}  # fmt: skip
    wanted = {os.path.normpath(path): place for place, path in inputs.missing(folder).items()}
    for path, place in sorted(wanted.items()):  # a folder before what lies in it
        own, link = root / path, folder / path
        inside = link.parent.resolve().is_relative_to(folder.resolve())
        results = any(_one_in_the_other(path, out) for out in made)
        if not inside or path.startswith((".", "/")) or results or not own.exists():
            continue  # the stage that reads it says that it is not there
        if os.path.lexists(link):
            continue
        try:
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(own.resolve())
            git(folder, "check-ignore", "-q", "--", path)
        except OSError as error:
            raise ReflowError(f"{place}: {path}: no link to it ({error.strerror})") from error
        except ReflowError:
            link.unlink()
            raise ReflowError(
                f"{place}: {path} is neither in that commit nor ignored by it, so a run in a"
                " worktree has it not; commit it, put it below data/ (a line /data/ in .gitignore"
                " ignores what is in that folder), or write its path in full"
            ) from None


def _one_in_the_other(path: str, out: str) -> bool:
    return Path(path).is_relative_to(out) or Path(out).is_relative_to(path)


def _known_commands(root: Path, folder: Path) -> None:
    """Refuse a commit whose dvc.yaml runs a command that the project's own does not know."""
    known = {stage.cmd for stage in graph.read(root).values()}
    for stage in graph.read(folder).values():
        if stage.cmd not in known and not OURS.fullmatch(stage.cmd):
            raise ReflowError(
                f"rev: stage {stage.name} of that commit runs {stage.cmd[:80]!r}, which this"
                " project's dvc.yaml does not; add it there first, if you trust it"
            )


def _no_links(folder: Path) -> None:
    """Refuse a commit in which a file that this writes, or a folder above it, is a link.

    A branch of a stranger could otherwise have a file of the user overwritten.
    """
    for name in (FILE, ".dvc", ".dvc/config", ".dvc/config.local"):
        if (folder / name).is_symlink():
            raise ReflowError(
                f"rev: in that commit {name} is a link to {(folder / name).readlink()}; expected a"
                " file of the project: order a commit without it"
            )


def keep(root: Path, name: str, *, done: bool) -> str:
    """Commit the files of a run on its branch; remove its worktree if the run is done.

    Returns the commit. The data are in DVC's cache, which the project shares.
    """
    folder = environment.local_path(root, "worktrees", slug(name))
    git(folder, "add", "-A")
    _commit(folder, f"reflow run {name}" if done else f"reflow run {name}, not finished")
    commit = git(folder, "rev-parse", "--short", "HEAD")
    if done:
        discard(root, name)
    return commit


def _commit(folder: Path, message: str) -> None:
    """Commit what is staged, if anything is."""
    if git(folder, "diff", "--cached", "--name-only"):
        who = ["-c", "user.name=reflow", "-c", "user.email=reflow@localhost"]
        git(folder, *who, "commit", "-q", "--no-verify", "-m", message)


def discard(root: Path, name: str) -> None:
    """Remove the worktree of a run; its branch stays."""
    with contextlib.suppress(ReflowError):
        git(
            root,
            "worktree",
            "remove",
            "--force",
            str(environment.local_path(root, "worktrees", slug(name))),
        )


def branch(name: str) -> str:
    """Return the branch of a run."""
    return BRANCH + slug(name)


def slug(name: str) -> str:
    """Return a name that is valid as a git branch, and as a folder on every file system.

    >>> slug("nightly run/3: a")
    'nightly-run-3-a'
    """
    return re.sub(r"[^A-Za-z0-9._]+", "-", name).strip("-.") or "run"


def dvc(folder: Path, *words: str) -> str:
    """Run DVC's command in a folder and return what it prints. Raises ReflowError."""
    command = [sys.executable, "-m", "dvc", *words]
    env = {**os.environ, "DVC_NO_ANALYTICS": "1"}
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ReflowError(f"dvc {words[0]}: {(done.stderr.strip().splitlines() or ['?'])[-1]}")
    return done.stdout.strip()
