"""Give a run a warm process: DVC and the stages start as forks of it (not if `REFLOW_WARM=0`)."""

import os
import socket
import subprocess
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from flows.dag import inputs
from flows.dag.graph import Stage
from flows.project.environment import local_path
from flows.project.warm import SOCKET, address
from flows.run.repro import Processes

SERVER = "flows.stage.warm"
LEAST = 2
"""Stages to run for which the imports of one more process pay."""


@contextmanager
def warmed(root: Path, stages: Iterable[Stage], processes: Processes) -> Iterator[None]:
    """Let what `processes` start meanwhile be run by a warm process, if enough of `stages` would.

    Without one, or if it cannot be started, everything runs cold and gives the same.
    """
    ours = [stage for stage in stages if stage.paths and stage.name != inputs.STAGE]
    path = local_path(root, f"warm.{os.getpid()}.sock")
    server = None
    wanted = os.environ.get(SOCKET) != "0" and sys.platform.startswith("linux")
    if wanted and len(ours) >= LEAST:
        with suppress(OSError):
            server = _started(root, path, processes.env)
            processes.env = {**processes.env, SOCKET: str(path)}
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        if server:
            server.kill()
            server.wait()


def _started(root: Path, path: Path, env: dict[str, str]) -> "subprocess.Popen[bytes]":
    """Start the process with a socket that listens already: who asks early waits for imports."""
    for old in path.parent.glob("warm.*.sock"):  # of runs that were killed
        if not Path(f"/proc/{old.name.split('.')[1]}").exists():
            old.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX) as listening, address(path) as short:
        listening.bind(short)
        listening.listen(64)
        return subprocess.Popen(
            [sys.executable, "-m", SERVER, str(listening.fileno()), str(os.getpid())],
            cwd=root,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            pass_fds=[listening.fileno()],
        )
