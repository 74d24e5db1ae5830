"""Replace params.yaml, without losing edits that git does not have."""

import contextlib
from collections.abc import Iterable
from pathlib import Path

from flows.params.load import FILE, load, load_text
from flows.params.reduce import at_root, fitted
from flows.params.tree import read_text, write_text
from flows.project.git import git
from fmcore.settings import ReflowError


def use_params(
    root: Path, file: Path, *, force: bool, whole: bool, shipped: Iterable[Path] = ()
) -> str:
    """Check a parameter file and make it params.yaml; refuses to lose uncommitted edits.

    A text that a file in params/ or one of `shipped` gives again is no edit. Returns what was
    reduced because there is no GPU, "" if nothing was; `whole` reduces nothing.
    """
    load(file, root)
    text, said = (at_root(read_text(file)), "") if whole else fitted(file, root)
    if not (force or _in_git(root) or _regained(root, shipped)):
        raise ReflowError(
            f"{FILE} has edits that git does not have; commit them first, or use --force"
        )
    load_text(text, root / FILE, root)
    write_text(root / FILE, text)
    return said


def _in_git(root: Path) -> bool:
    """Say whether git can give params.yaml back; `git status` is silent about a file it ignores."""
    if not (root / FILE).exists():
        return True
    tracked = git(root, "ls-files", "-v", "--", FILE).startswith("H ")  # and looked at for changes
    return tracked and not git(root, "status", "--porcelain", "--", FILE)


def _regained(root: Path, shipped: Iterable[Path]) -> bool:
    """Say whether `reflow use` of a file in params/, or a shipped one, would write params.yaml."""
    try:
        text = read_text(root / FILE)
    except ReflowError:  # no text that a file could give
        return False
    for file in [*sorted((root / "params").glob("*.yaml")), *shipped]:
        with contextlib.suppress(ReflowError):
            if text in (at_root(read_text(file)), fitted(file, root)[0]):
                return True
    return False
