"""Replace params.yaml, without losing edits that git does not have."""

import contextlib
from collections.abc import Iterable
from pathlib import Path

from flows.params.load import FILE, load
from flows.params.reduce import at_root, fitted
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
    text, said = (at_root(file.read_text()), "") if whole else fitted(file, root)
    current = root / FILE
    known = not git(root, "status", "--porcelain", "--", FILE).strip() or not current.exists()
    if not (force or known or _regained(root, current.read_text(), shipped)):
        raise ReflowError(
            f"{FILE} has edits that git does not have; commit them first, or use --force"
        )
    current.write_text(text)
    return said


def _regained(root: Path, text: str, shipped: Iterable[Path]) -> bool:
    """Say whether `reflow use` of a file in params/, or a shipped one, would write this text."""
    for file in [*sorted((root / "params").glob("*.yaml")), *shipped]:
        with contextlib.suppress(ReflowError):
            if text in (at_root(file.read_text()), fitted(file, root)[0]):
                return True
    return False
