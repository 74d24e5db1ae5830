"""Packages of strangers, named `flows` or `fmcore`, that hide ours from a plain `dvc repro`."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from flows.project.environment import code_folder

PACKAGES = ("flows", "fmcore")
ASK = (
    "import importlib.util, json\n"
    f"found = [importlib.util.find_spec(name) for name in {PACKAGES}]\n"
    "places = [s and [*(s.submodule_search_locations or []), s.origin] for s in found]\n"
    "print(json.dumps(places))\n"
)


@dataclass(frozen=True)
class Shadow:
    """A package that `python -m flows.stage` imports instead of ours; `always` if also in a run."""

    package: str
    found: str
    mend: str
    always: bool


def shadows(root: Path) -> Iterator[Shadow]:
    """Yield what hides our packages from a stage that `dvc repro` starts without `reflow`.

    The command of an installed reflow-chain puts our code first for all that it starts, so a
    stranger's package hides it from others alone; a folder of the project hides it from all.
    """
    ours = code_folder()
    for name, places in zip(PACKAGES, _places(root), strict=True):
        if not places or Path(places[0]).resolve().parent == ours:
            continue
        there = Path(places[0])
        if there.parent == root:
            found = f"{there} hides the package of this name that the stages need"
            yield Shadow(name, found, f"rename {there}", always=True)
        else:
            found = f"a plain `dvc repro` imports a stranger's {there}; `reflow run` imports ours"
            mend = f'pip uninstall {name}, or eval "$(reflow env)" before it'
            yield Shadow(name, found, mend, always=False)


def _places(root: Path) -> list[list[str] | None]:
    """Ask a new Python in the project's folder where it finds the packages."""
    env = {**os.environ, "PYTHONPATH": _given()}
    if not env["PYTHONPATH"]:
        del env["PYTHONPATH"]
    done = subprocess.run(
        [sys.executable, "-c", ASK], cwd=root, env=env, capture_output=True, text=True, check=False
    )
    if done.returncode:
        return [None for _ in PACKAGES]
    found = json.loads(done.stdout.splitlines()[-1])
    return [place and [part for part in place if part] for place in found]


def _given() -> str:
    """Return PYTHONPATH as the shell has it: `reflow_chain.main` may have put our code into it."""
    command = sys.modules.get("reflow_chain")
    return str(getattr(command, "GIVEN", os.environ.get("PYTHONPATH", "")))
