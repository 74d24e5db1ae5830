"""Where a run comes from: who, which folder, which commit, are the files those of the commit."""

import contextlib
import getpass
from pathlib import Path

from flows.dag.lineage import lock_entries
from flows.project.git import git
from fmcore.settings import ReflowError


def origin(root: Path) -> dict[str, str]:
    """Return the tags for MLflow's columns Source, Version and Created by, and `git.dirty`."""
    found = {"mlflow.source.name": root.resolve().name, "mlflow.source.type": "LOCAL"}
    with contextlib.suppress(OSError, KeyError, ImportError):  # a user without a name
        found["mlflow.user"] = getpass.getuser()
    with contextlib.suppress(ReflowError):  # a folder without git, or without a commit, has none
        found["mlflow.source.git.commit"] = git(root, "rev-parse", "HEAD")
        found["git.dirty"] = str(dirty(root)).lower()
    return found


def dirty(root: Path) -> bool:
    """Whether files differ from the commit, those left out that the stages and DVC write.

    A run rewrites dvc.lock and its metrics while it works: that is no change of what it runs.
    """
    made = {"dvc.lock"}
    with contextlib.suppress(ReflowError):  # none yet, or half-written: nothing more is left out
        made |= {path for entry in lock_entries(root).values() for path in entry.outs}
    left_out = [f":(exclude,literal){path}" for path in sorted(made)]
    words = ("status", "--porcelain", "--untracked-files=no", "--", ":/", *left_out)
    return bool(git(root, *words))
