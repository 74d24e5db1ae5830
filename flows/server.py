"""A Prefect server for the time of one run, unless the user has one.

Prefect would start one itself; that one outlives a killed run, and prints 160 lines of harmless
CancelledError when it is stopped. Ours is on the leash and writes to `.reflow/prefect`.
"""

import contextlib
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import prefect
from prefect.settings import PREFECT_API_URL, get_current_settings, temporary_settings

from flows import home, leash
from fmcore.settings import ReflowError


@contextlib.contextmanager
def serving(root: Path) -> Iterator[None]:
    """Make sure that a Prefect server answers while the block runs."""
    if get_current_settings().api.url:
        yield
        return
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = home.state(root, "prefect", "server.log")
    with log.open("w") as file:
        server = subprocess.Popen(
            _command(port), env=_environment(), stdout=file, stderr=file, start_new_session=True
        )
    url = f"http://127.0.0.1:{port}/api"
    try:
        _await(server, f"{url}/health", log)
        with temporary_settings(updates={PREFECT_API_URL: url}):
            yield
    finally:
        server.terminate()
        try:
            server.wait(5)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


def _command(port: int) -> list[str]:
    app = ["--app-dir", str(Path(prefect.__file__).parent), "--factory"]
    listen = ["--host", "127.0.0.1", "--port", str(port), "--log-level", "error"]
    uvicorn = ["uvicorn", *app, "prefect.server.api.server:create_app", *listen]
    return [sys.executable, "-P", str(leash.__file__), str(os.getpid()), *uvicorn]


def _environment() -> dict[str, str]:
    """The marks by which Prefect knows a server for one run: no schedules, no pages."""
    marks = {"PREFECT_UI_ENABLED": "0", "PREFECT__SERVER_EPHEMERAL": "1"}
    return {**os.environ, **marks, "PREFECT__SERVER_FINAL": "1"}


def _await(server: "subprocess.Popen[bytes]", health: str, log: Path) -> None:
    seconds = get_current_settings().server.ephemeral.startup_timeout_seconds
    deadline = time.monotonic() + seconds
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    while True:
        with contextlib.suppress(urllib.error.URLError, OSError), opener.open(health, timeout=2):
            return
        if server.poll() is not None or time.monotonic() > deadline:
            raise ReflowError(
                f"the Prefect server did not start; see {log}, or run without it: --no-prefect"
            )
        time.sleep(0.1)
