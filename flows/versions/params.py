"""Changing the parameter file, without losing what git does not have."""

import shutil
from pathlib import Path

from flows.params import FILE, load
from flows.versions.history import git
from fmcore.settings import ReflowError


def use_params(root: Path, file: Path, *, force: bool) -> None:
    """Check a parameter file and copy it over params.yaml; refuses to lose uncommitted edits."""
    load(file)
    current = root / FILE
    known = not git(root, "status", "--porcelain", "--", FILE).strip()
    presets = [p.read_bytes() for p in (root / "params").glob("*.yaml")]
    if not (force or known or current.read_bytes() in presets):
        raise ReflowError(
            f"{FILE} has edits that git does not have; commit them first, or use --force"
        )
    if file.resolve() != current:
        shutil.copyfile(file, current)
