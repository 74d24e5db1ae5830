"""Fixtures for all tests: a tiny project with real DVC and git, and one Prefect server."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from flows.project import environment

# Waiting threads spin: two test processes with two threads each on two cores are five times as
# slow as with one. torch reads these when it is imported, later; the setting of a stage wins.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

SOURCE = Path(__file__).resolve().parents[1]

DAG = """
stages:
  prepare:
    cmd: mkdir -p couplings/independent && cat src/data > couplings/independent/a
    deps: [src/data]
    outs: [couplings/independent]
  train:
    foreach: ${rounds}
    do:
      cmd: python src/train.py ${key} ${item.coupling}
      deps: ["couplings/${item.coupling}", src/train.py]
      params: ["rounds.${key}"]
      outs: ["models/${key}"]
      metrics: ["metrics/${key}.json": {cache: false}]
  couple:
    foreach: ${couplings}
    do:
      cmd: python src/couple.py ${key} ${item.round}
      deps: ["models/${item.round}", src/couple.py]
      params: ["couplings.${key}"]
      outs: ["couplings/${key}"]
  compare:
    cmd: cat models/*/m > table
    deps: [models]
    outs: [table]
"""
PARAMS = """
gates: {}

rounds:
  rf1: {coupling: independent, steps: 50, lr: 1e-3}
  rf2: {coupling: rf1, steps: 100, lr: 1e-3}
couplings:
  rf1: {round: rf1, nfe: 20}
"""
TRAIN = """
import pathlib, sys
key, coupling = sys.argv[1:]
out = pathlib.Path("models", key)
out.mkdir(parents=True)
pathlib.Path("metrics").mkdir(exist_ok=True)
pathlib.Path("metrics", key + ".json").write_text("{}")
params = pathlib.Path("params.yaml").read_text().split(key + ":")[1].split("}")[0]
(out / "m").write_text(pathlib.Path("couplings", coupling, "a").read_text() + params)
"""
COUPLE = """
import pathlib, sys
key, model = sys.argv[1:]
out = pathlib.Path("couplings", key)
out.mkdir(parents=True)
params = pathlib.Path("params.yaml").read_text().split("couplings:")[1]
(out / "a").write_text(pathlib.Path("models", model, "m").read_text() + params)
"""


@pytest.hookimpl(tryfirst=True)  # xdist reads the marks in the same hook
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let one of several test processes run all files that need the fixture `finished`."""
    needs = {i.path for i in items if "finished" in getattr(i, "fixturenames", ())}
    for item in items:
        group = "finished" if item.path in needs else str(item.path)
        item.add_marker(pytest.mark.xdist_group(group))


@dataclass(frozen=True)
class Project:
    """A DVC and git repository in a temporary folder."""

    root: Path

    def write(self, path: str, text: str) -> None:
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)

    def edit(self, path: str, old: str, new: str) -> None:
        text = (self.root / path).read_text()
        assert old in text
        self.write(path, text.replace(old, new))

    def env(self) -> dict[str, str]:
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        return {
            **os.environ,
            "PATH": path,
            "PYTHONPATH": str(SOURCE),
            "GIT_AUTHOR_NAME": "a",
            "GIT_AUTHOR_EMAIL": "a@b",
            "GIT_COMMITTER_NAME": "a",
            "GIT_COMMITTER_EMAIL": "a@b",
        }

    def sh(self, *command: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            command, cwd=self.root, env=self.env(), capture_output=True, text=True, check=False
        )
        assert not check or done.returncode == 0, done.stdout + done.stderr
        return done

    def start(self, *command: str) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            command,
            cwd=self.root,
            env=self.env(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    def repro(self, *args: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        return self.sh("dvc", "repro", *args, check=check)


def heed_interrupts() -> None:
    """Undo, in a child, that a shell lets its background jobs ignore Ctrl-C: `preexec_fn`."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def until(true: Callable[[], bool], seconds: float = 30.0) -> None:
    """Wait for something to become true."""
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


@pytest.fixture
def empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    """A project with git, DVC and an empty params.yaml; dvc.yaml is the test's."""
    for name in ("DVC_SITE_CACHE_DIR", "PREFECT_HOME", "MLFLOW_TRACKING_URI", "DVC_NO_ANALYTICS"):
        monkeypatch.setenv(name, "")  # so that what configure sets is undone after the test
        monkeypatch.delenv(name)
    environment.configure(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(SOURCE))
    project = Project(tmp_path)
    project.sh("git", "init", "-q")
    project.sh("dvc", "init", "-q")
    project.write(".gitignore", "/.reflow/\n")
    project.write("params.yaml", "{}\n")
    return project


@pytest.fixture
def project(empty: Project) -> Project:
    """A chain of two rounds with trivial stages and `foreach`, a folder dependency, nothing run."""
    empty.write("dvc.yaml", DAG)
    empty.write("params.yaml", PARAMS)
    empty.write("src/data", "1\n")
    empty.write("src/train.py", TRAIN)
    empty.write("src/couple.py", COUPLE)
    return empty


@pytest.fixture(scope="session")
def prefect_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A real Prefect server with a data base of its own, once for all tests."""
    environment.configure(tmp_path_factory.mktemp("prefect"))
    from prefect.testing.utilities import prefect_test_harness

    with prefect_test_harness(server_startup_timeout=120):
        yield


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small chain that ran through Prefect, once for all tests; copy it, do not change it."""
    from tests import real_chain

    root = tmp_path_factory.mktemp("a chain") / "project"  # a space in the path, on purpose
    real_chain.start(root)
    return root
