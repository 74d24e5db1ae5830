"""Mutations of the core, each with the test that must fail: `make mutations` runs them all.

A test that passes with the code broken is no test. Each entry breaks one promise in a copy of the
tree and runs one test there; `caught` means that the test failed.
"""

import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

SOURCE = Path(__file__).resolve().parents[1]
COPIED = ("fmcore", "flows", "tests", "params", "dvc.yaml", "params.yaml", "pyproject.toml")


@dataclass(frozen=True)
class Mutation:
    """What is broken, where, how, and the test (pytest's node id) that has to notice."""

    what: str
    file: str
    old: str
    new: str
    test: str


MUTATIONS: list[Mutation] = []


def caught(mutation: Mutation) -> bool:
    """Break a copy of the tree and say whether the test fails there."""
    with tempfile.TemporaryDirectory(prefix="mutation-") as name:
        folder = Path(name)
        ignored = shutil.ignore_patterns("__pycache__")
        for part in COPIED:
            source = SOURCE / part
            if source.is_dir():
                shutil.copytree(source, folder / part, ignore=ignored)
            else:
                shutil.copy(source, folder / part)
        file = folder / mutation.file
        file.write_text(file.read_text().replace(mutation.old, mutation.new))
        command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider"]
        done = subprocess.run(
            [*command, mutation.test], cwd=folder, capture_output=True, text=True, check=False
        )
    return done.returncode == 1


def main(chosen: list[str]) -> int:
    """Run the mutations whose description holds one of the words; all without words."""
    survived = []
    for mutation in MUTATIONS:
        if chosen and not any(word in mutation.what for word in chosen):
            continue
        found = caught(mutation)
        print(f"{'caught' if found else 'SURVIVED':>8}  {mutation.what}", flush=True)
        survived += [] if found else [mutation.what]
    print(f"{len(survived)} survived")
    return len(survived)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
