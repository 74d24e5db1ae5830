"""A module that runs warm, in a fork, is what it would be in a process of its own."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from flows.dag import graph
from flows.project.process_group import _process, _state
from flows.project.warm import SOCKET
from flows.run import warm as run_warm
from flows.run.repro import Processes
from tests import tiny_chain
from tests.conftest import SOURCE, Project, until

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="forks with pidfd")

SERVER = """
import socket, sys
from flows.stage import warm
warm.MODULES = tuple(sys.argv[3:])
warm.main(socket.socket(fileno=int(sys.argv[1])), int(sys.argv[2]))
"""
CLIENT = """
import sys
from flows.project.warm import run_warm
status = run_warm("probe", sys.argv[1:])
print("cold") if status is None else sys.exit(status)
"""
PROBE = """
import json, os, signal, sys, time
from pathlib import Path
what = sys.argv[1]
Path("worker.part").write_text(f"{os.getpid()} {os.getppid()}")
Path("worker.part").replace("worker")
if what == "tell":
    print(json.dumps({"argv": sys.argv[1:], "cwd": os.getcwd(), "said": sys.stdin.read(),
        "more": os.environ.get("DVC_STAGE"), "socket": os.environ.get("REFLOW_WARM"),
        "set": os.environ.get("SET"), "warm": "flows.stage.warm" in sys.modules,
        "name": __name__, "main": sys.modules["__main__"].__spec__.name,
        "int": signal.getsignal(signal.SIGINT) is signal.default_int_handler,
        "chld": signal.getsignal(signal.SIGCHLD) is signal.SIG_DFL}))
    sys.exit(3)
if what == "raise":
    raise ValueError("no")
if what == "end":
    def late():
        time.sleep(0.3)
        print("thread")
    import atexit, threading
    threading.Thread(target=late).start()
    atexit.register(lambda: Path("atexit").touch())
    print("printed")
    sys.exit(sys.argv[2] if sys.argv[2:] else 0)
if what == "heed":
    def end(*_):
        Path("heeded").touch()
        sys.exit(0)
    signal.signal(signal.SIGTERM, end)
    Path("ready").touch()
if what == "child" and os.fork() == 0:
    Path("child.part").write_text(str(os.getpid()))
    Path("child.part").replace("child")
time.sleep(30)
Path("out").touch()
"""


@dataclass
class Warm:
    """A warm process, which has imported only what a test names."""

    folder: Path
    server: "subprocess.Popen[str]"
    env: dict[str, str]
    clients: "list[subprocess.Popen[str]]" = field(default_factory=list)

    def start(
        self,
        *words: str,
        before: Callable[[], object] | None = None,
        alone: bool = True,
        **how: str,
    ) -> "subprocess.Popen[str]":
        env = {**self.env, SOCKET: str(self.folder / "s"), **how}
        client = subprocess.Popen(
            [sys.executable, self.folder / "client.py", *words],
            cwd=self.folder, env=env, text=True, preexec_fn=before, start_new_session=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        self.clients.append(client)
        return client

    def pids(self) -> tuple[int, int]:
        """Return the process of the worker and that of its keeper, when they work."""
        until((self.folder / "worker").exists)
        worker, keeper = (self.folder / "worker").read_text().split()
        return int(worker), int(keeper)


def lives(pid: int) -> bool:
    return _state(pid) not in ("", "Z", "X")


@contextlib.contextmanager
def warm(folder: Path, *modules: str) -> Iterator[Warm]:
    (folder / "probe.py").write_text(PROBE)
    (folder / "client.py").write_text(CLIENT)
    (folder / "server.py").write_text(SERVER)
    listening = socket.socket(socket.AF_UNIX)
    here = Path.cwd()
    os.chdir(folder)  # a path of pytest may be too long for a socket
    listening.bind("s")
    os.chdir(here)
    listening.listen(9)
    words = [sys.executable, "server.py", str(listening.fileno()), str(os.getpid()), *modules]
    env = {k: v for k, v in os.environ.items() if k != "PYTEST_CURRENT_TEST"}  # pytest changes it
    # What a shell starts in the background ignores it, and so does all that is started from there.
    interrupt = signal.signal(signal.SIGINT, signal.default_int_handler)
    server = subprocess.Popen(
        words, cwd=folder, env=env, pass_fds=[listening.fileno()], text=True,
        start_new_session=True,
    )  # fmt: skip
    listening.close()
    found = Warm(folder, server, env)
    try:
        yield found
    finally:
        signal.signal(signal.SIGINT, interrupt)
        server.kill()
        server.wait()
        for client in found.clients:
            client.kill()
            client.communicate()


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Warm]:
    monkeypatch.setenv("PYTHONPATH", str(SOURCE))
    with warm(tmp_path, "colorsys") as found:
        yield found


def test_a_worker_is_what_a_process_of_its_own_is(served: Warm) -> None:
    client = served.start("tell", "a b", DVC_STAGE="train@rf1")
    said, _ = client.communicate("hello")
    assert client.returncode == 3
    assert json.loads(said) == {
        "argv": ["tell", "a b"], "cwd": str(served.folder), "said": "hello", "more": "train@rf1",
        "socket": None, "set": None, "warm": True, "name": "__main__", "main": "probe", "int": True,
        "chld": True,
    }  # fmt: skip
    failed = served.start("raise")
    assert "ValueError: no" in failed.communicate()[1]
    assert failed.returncode == 1


def test_a_process_in_other_circumstances_runs_cold(served: Warm) -> None:
    (served.folder / "deep").mkdir()
    cold: list[tuple[Callable[[], object] | None, dict[str, str]]] = [
        (None, {"OMP_NUM_THREADS": "7"}),
        (None, {"CUDA_VISIBLE_DEVICES": "1"}),
        (None, {"ANYTHING": "new"}),
        (None, {"PYTHONPATH": f"{SOURCE}:/nowhere"}),
        (lambda: os.nice(1), {}),
        (lambda: os.chdir("deep"), {}),
        (lambda: signal.signal(signal.SIGINT, signal.SIG_IGN), {}),
        (lambda: os.sched_setaffinity(0, {min(os.sched_getaffinity(0))}), {}),
    ]
    for before, how in cold[: None if len(os.sched_getaffinity(0)) > 1 else -1]:
        client = served.start("tell", before=before, **how)
        assert client.communicate()[0] == "cold\n" and client.returncode == 0, how
    assert served.start("tell").communicate()[0] != "cold\n"
    assert served.start("tell", REFLOW_WARM="/nowhere/s").communicate()[0] == "cold\n"


def test_a_changed_source_ends_the_warm_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(SOURCE))
    (tmp_path / "own.py").write_text("import os\nos.environ['SET'] = 'by an import'\n")
    time.sleep(0.05)
    with warm(tmp_path, "own") as found:
        assert '"set": "by an import"' in found.start("tell").communicate()[0]
        about = (tmp_path / "own.py").stat()
        (tmp_path / "own.py").write_text("a = 2\n")
        os.utime(tmp_path / "own.py", ns=(about.st_atime_ns, about.st_mtime_ns))
        assert found.start("tell").communicate()[0] == "cold\n"
        assert found.server.wait(10) == 0
        assert found.start("tell").communicate()[0] == "cold\n"


def test_a_process_with_a_thread_serves_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(SOURCE))
    text = "threading.Thread(target=time.sleep, args=(9,), daemon=True).start()"
    (tmp_path / "thread.py").write_text(f"import threading, time\n{text}\n")
    with warm(tmp_path, "thread") as found:
        assert found.start("tell").communicate()[0] == "cold\n"


def test_a_module_ends_as_in_a_process_of_its_own(served: Warm) -> None:
    client = served.start("end")
    assert client.communicate() == ("printed\nthread\n", "")
    assert client.returncode == 0
    assert (served.folder / "atexit").exists()
    client = served.start("end", "why")
    assert client.communicate() == ("printed\nthread\n", "why\n")
    assert client.returncode == 1


def test_what_a_client_of_mlflow_sets_meanwhile_is_no_variable_of_a_stage(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    processes = Processes()
    monkeypatch.setenv("MLFLOW_SET_LATER", "10")
    assert "MLFLOW_SET_LATER" not in processes.env


@pytest.mark.parametrize("asked", [None, "0"])
def test_a_run_is_warm_unless_told_not_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: str | None
) -> None:
    monkeypatch.delenv(SOCKET, raising=False)
    if asked:
        monkeypatch.setenv(SOCKET, asked)
    (tmp_path / ".reflow").mkdir()
    processes, stages = Processes(), graph.read(SOURCE).values()
    with run_warm.warmed(tmp_path, stages, processes):
        path = processes.env.get(SOCKET, "")
        assert path == "0" if asked else path.endswith(".sock")


@pytest.mark.parametrize("victim", ["client", "keeper", "worker"])
def test_whoever_is_killed_nothing_goes_on(served: Warm, victim: str) -> None:
    client = served.start("child")
    worker, keeper = served.pids()
    until((served.folder / "child").exists)
    child = int((served.folder / "child").read_text())
    pids = {"client": client.pid, "keeper": keeper, "worker": worker}
    os.kill(pids[victim], signal.SIGKILL)
    assert client.wait(10) == -signal.SIGKILL
    until(lambda: not any(map(lives, (worker, keeper, child))), 10)
    assert not (served.folder / "out").exists()
    assert lives(served.server.pid)


def test_a_worker_goes_on_without_the_warm_process_and_dies_with_its_client(served: Warm) -> None:
    ended, left = served.start("heed"), None
    first = served.pids()
    until((served.folder / "ready").exists)
    (served.folder / "worker").unlink()
    left = served.start("child")
    second = served.pids()
    served.server.kill()
    served.server.wait()
    time.sleep(0.5)
    assert all(map(lives, (*first, *second)))
    ended.send_signal(signal.SIGTERM)
    assert ended.wait(10) == 0
    left.kill()
    until(lambda: not any(map(lives, (*first, *second))), 10)


def test_a_signal_is_handed_on(served: Warm) -> None:
    client = served.start("heed")
    until((served.folder / "ready").exists)
    client.send_signal(signal.SIGTERM)
    assert client.wait(10) == 0
    assert (served.folder / "heeded").exists()


def test_a_client_that_dies_of_a_signal_says_so(served: Warm) -> None:
    client = served.start("sleep")
    os.kill(served.pids()[0], signal.SIGTERM)
    assert client.wait(10) == -signal.SIGTERM


RUN = """
import pathlib, sys
from flows.run.chain import update_chain
from flows.run.schedule import Listeners
result = update_chain(pathlib.Path.cwd(), prefect=False, listeners=Listeners(on_line=print))
sys.exit(0 if result.ok else 1)
"""


def warm_env(project: Project) -> dict[str, str]:
    return {**project.env(), SOCKET: "1"}


def forks(root: Path) -> list[int]:
    """Return the warm process of a run in the project and its forks."""
    found = []
    for line in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            there = (line.parent / "cwd").readlink() == root
            if there and b"flows.stage.warm" in line.read_bytes().split(b"\0"):
                found.append(int(line.parent.name))
    return found


WORK = """
import sys
from flows.project.process_group import die_with_starter
die_with_starter()
from flows.project.warm import run_warm
if (status := run_warm("work", [])) is not None:
    sys.exit(status)
import os, pathlib, time
from flows.stage.guard import guarded
with guarded(pathlib.Path.cwd(), "work") as scratch:
    resumed = (scratch / "checkpoint").exists()
    (scratch / "checkpoint").touch()
    pathlib.Path("pid.part").write_text(f"{os.getpid()} {os.getppid()}")
    pathlib.Path("pid.part").replace("pid")
    while not (resumed or pathlib.Path("go").exists()):
        time.sleep(0.1)
    pathlib.Path("out").write_text(f"resumed {resumed}")
"""
LIGHT = SERVER.replace("tuple(sys.argv[3:])", "('dvc.cli', 'dvc.commands.repro', 'dvc.repo')")
LIGHT_RUN = RUN.replace(
    "result =", "from flows.run import warm\nwarm.LEAST, warm.SERVER = 0, 'light'\nresult ="
)


def ancestors(pid: int) -> list[int]:
    found = []
    while pid > 1:
        pid = _process(pid)[1]
        found.append(pid)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("victim", ["run", "dvc", "stage", "keeper", "server"])
def test_a_run_whose_stage_is_warm_goes_on_after_a_kill(empty: Project, victim: str) -> None:
    empty.write("work.py", WORK)
    empty.write("light.py", LIGHT)
    empty.write(
        "dvc.yaml", "stages:\n  work: {cmd: python -m work, deps: [work.py], outs: [out]}\n"
    )
    command = [sys.executable, "-c", LIGHT_RUN]
    running = subprocess.Popen(command, cwd=empty.root, env=warm_env(empty))
    until((empty.root / "pid").exists, 60)
    worker, keeper = map(int, (empty.root / "pid").read_text().split())
    server = ancestors(keeper)[0]
    asking = [pid for pid in of(empty.root) if ancestors(pid)[:1] == [running.pid]]
    words = Path(f"/proc/{server}/cmdline").read_bytes().split(b"\0")
    assert b"light" in words, "the stage is a fork"
    dvc = next(pid for pid in asking if b"repro" in Path(f"/proc/{pid}/cmdline").read_bytes())
    victims = {"run": running.pid, "dvc": dvc, "stage": worker, "keeper": keeper, "server": server}
    os.kill(victims[victim], signal.SIGKILL)
    if victim == "server":
        time.sleep(0.5)
        assert lives(worker)
        (empty.root / "go").touch()
    until(lambda: not lives(worker), 10)
    if victim == "run":
        running.wait()
        until(lambda: not of(empty.root), 10)
        assert not (empty.root / "out").exists()
        running = subprocess.Popen(command, cwd=empty.root, env=warm_env(empty))
    assert running.wait(90) == 0, "it tries again by itself"
    assert (empty.root / "out").read_text() == f"resumed {victim != 'server'}"
    until(lambda: not of(empty.root), 10)


def of(root: Path) -> list[int]:
    """Return the living processes that work in a project."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if (folder / "cwd").readlink() == root and lives(int(folder.name)):
                found.append(int(folder.name))
    return found


@pytest.mark.slow
def test_a_chain_has_the_same_lock_warm_and_cold(empty: Project) -> None:
    empty.write("dvc.yaml", (SOURCE / "dvc.yaml").read_text())
    empty.write("params.yaml", tiny_chain.PARAMS)
    running = subprocess.Popen([sys.executable, "-c", RUN], cwd=empty.root, env=warm_env(empty))
    most = 0
    while running.poll() is None:
        most = max(most, len(forks(empty.root)))
        time.sleep(0.02)
    assert running.returncode == 0
    assert most >= 5, "the server, a keeper and a worker for DVC, and two for a stage"
    assert forks(empty.root) == [] and not list((empty.root / ".reflow").glob("warm*"))
    lock = (empty.root / "dvc.lock").read_text()
    empty.sh("git", "clean", "-fdxq", "-e", "dvc.yaml", "-e", "params.yaml", "-e", ".dvc/config")
    assert not (empty.root / "dvc.lock").exists()
    empty.repro()
    assert (empty.root / "dvc.lock").read_text() == lock
