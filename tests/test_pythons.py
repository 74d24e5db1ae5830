"""Other Pythons: the locks have what each needs; the chain of `make test-py` passes here."""

import importlib.metadata
import os
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

SOURCE = Path(__file__).parents[1]
PYTHONS = ("3.11", "3.12", "3.13", "3.14")
NOT_LOCKED = ("nvidia-", "cuda-", "triton", "torchvision")
"""As in the Makefile: what comes with torch, and what torch-fidelity names and no test needs."""


def environment(python):
    return {**default_environment(), "python_version": python, "python_full_version": f"{python}.9"}


def asked_for(requirements, where):
    """Return the names of those requirements that apply in an environment, without extras."""
    parsed = [Requirement(line) for line in requirements]
    where = {**where, "extra": ""}
    return {canonicalize_name(r.name) for r in parsed if not r.marker or r.marker.evaluate(where)}


@pytest.mark.parametrize("python", PYTHONS)
@pytest.mark.parametrize("lock", ["requirements.lock", "requirements-dev.lock"])
def test_what_a_locked_package_asks_for_on_a_python_is_locked_for_it(lock, python):
    where = environment(python)
    lines = (SOURCE / lock).read_text().splitlines()
    locked = asked_for(lines, where)
    lacking = {}
    for name in sorted(locked):
        try:
            needs = importlib.metadata.requires(name) or []
        except importlib.metadata.PackageNotFoundError:
            continue  # for another Python or system than this one
        missing = asked_for(needs, where) - locked
        missing = {m for m in missing if not m.startswith(NOT_LOCKED)}
        if missing:
            lacking[name] = missing
    assert lacking == {}


def test_prefect_has_its_clock_on_every_python():
    """Prefect takes pendulum below Python 3.13, and whenever from there on."""
    lines = (SOURCE / "requirements.lock").read_text().splitlines()
    for python in PYTHONS:
        newer = python in ("3.13", "3.14")
        assert ("whenever" in asked_for(lines, environment(python))) == newer
        assert ("pendulum" in asked_for(lines, environment(python))) != newer


def test_the_chain_of_make_test_py_passes_on_this_python():
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", SOURCE / "scripts/short_chain.sh"],
        env={**os.environ, "PATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
    assert "MLflow:" in done.stdout and "one_step" in done.stdout


@pytest.mark.parametrize("lock", ["requirements.lock", "requirements-dev.lock"])
def test_a_torch_that_is_there_stays_also_where_uv_cannot_install(tmp_path, lock):
    """The environment's python is a script that says yes, and keeps what it shall install."""
    python = tmp_path / "bin/python"
    python.parent.mkdir()
    keep = f'for a; do case $a in /dev/fd/*|/proc/*) cat "$a" >> {tmp_path}/kept;; esac; done'
    python.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/asked\n{keep}\n')
    python.chmod(0o755)
    words = ["dev"] if "dev" in lock else []
    done = subprocess.run(
        ["bash", "scripts/setup.sh", *words],
        cwd=SOURCE,
        env={**os.environ, "VENV": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "torch is there already" in done.stderr and "pip does" in done.stderr
    lines = (SOURCE / lock).read_text().splitlines()
    kept = (tmp_path / "kept").read_text().splitlines()
    assert kept == [line for line in lines if not line.startswith("torch==")]
    assert "torch==" not in (tmp_path / "asked").read_text()
