"""What a run would do if dvc.yaml were another."""

import os
from pathlib import Path

from flows.dag.graph import opened
from flows.dag.plan import Planned, plan
from fmcore.settings import ReflowError

FILE = "dvc.yaml"


def plan_with(root: Path, text: str) -> list[Planned]:
    """Return the plan of the project if its dvc.yaml had this text, which it has meanwhile.

    DVC's lock is held, so that no stage starts by it. Raises ReflowError if DVC cannot read it, or
    if it does not suit params.yaml.
    """
    if (root / FILE).is_symlink():
        raise ReflowError(f"{FILE} is a link; its target is not changed: make it a file first")
    with opened(root) as project, project.repo.lock:
        before = (root / FILE).read_bytes()
        try:
            _replace(root / FILE, text.encode())
            return plan(root)
        finally:
            _replace(root / FILE, before)


def _replace(file: Path, content: bytes) -> None:
    """Replace a file at once: whoever reads it finds one text or the other."""
    part = file.with_name(f".{file.name}.{os.getpid()}.part")
    part.write_bytes(content)
    part.replace(file)
