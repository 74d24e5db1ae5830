"""Run git, with its errors in one line."""

import subprocess
from pathlib import Path

from fmcore.settings import ReflowError

NO_GIT = "DVC needs one: run `git init` in the project's folder"


def git(folder: Path, *words: str) -> str:
    """Run git in a folder and return what it prints. Raises ReflowError with git's message."""
    return _output(folder, *words).rstrip("\n")


def file_at(folder: Path, rev: str, path: str) -> str:
    """Return the exact text of a file in a revision."""
    return _output(folder, "show", "--end-of-options", f"{rev}:{path}")


def _output(folder: Path, *words: str) -> str:
    try:
        command = ["git", *words]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        if not folder.is_dir():
            raise
        raise ReflowError("git: not installed; apt install git, or see git-scm.com") from None
    if done.returncode:
        said = (done.stderr.strip() or done.stdout.strip()).splitlines() or ["no message"]
        why = next((line for line in said if line.startswith("fatal: ")), said[-1])
        mend = f"; {NO_GIT}" if "not a git repository" in why else ""
        if "dubious ownership" in why:
            mend = f"; {said[-1].strip()}"  # the command that git advises
        raise ReflowError(f"git {words[0]}: {why.removeprefix('fatal: ')}{mend}")
    return done.stdout
