"""A Prefect server for one run, unless the user or `reflow ui` already runs one.

Prefect would start one itself; that one survives a killed run, and prints 160 lines of harmless
CancelledError when it is stopped. Ours dies with the run and logs to `.reflow/prefect`.
"""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import prefect
from prefect.settings import (
    PREFECT_API_AUTH_STRING,
    PREFECT_API_URL,
    PREFECT_CLIENT_MAX_RETRIES,
    get_current_settings,
    temporary_settings,
)

from flows.project import environment, process_group, servers
from fmcore.settings import ReflowError


@contextlib.contextmanager
def serving(root: Path) -> Iterator[str]:
    """Make sure that a Prefect server answers while the block runs; yield the URL of its API.

    The user's own comes first, then that of `reflow ui`, else a new one for the time of the block.
    """
    if url := get_current_settings().api.url:
        yield url
        return
    kept = servers.living(root)
    if kept and kept.prefect:
        with client_of(root, f"{kept.prefect}/api") as url:
            yield url
        return
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = environment.local_path(root, "prefect", "server.log")
    # Variables that tell Prefect that the server is for one run: no schedules, no UI.
    marks = {"PREFECT_UI_ENABLED": "0", "PREFECT__SERVER_EPHEMERAL": "1"}
    env = {**os.environ, **marks, "PREFECT__SERVER_FINAL": "1", **auth(root)}
    with log.open("w") as file:
        server = subprocess.Popen(
            prefect_command(port), env=env, stdout=file, stderr=file, start_new_session=True
        )
    try:
        url = f"http://127.0.0.1:{port}/api"
        await_health(server, f"{url}/health", log, "Prefect")
        with client_of(root, url):
            yield url
    finally:
        stop(server, grace=5)


@contextlib.contextmanager
def client_of(root: Path, url: str) -> Iterator[str]:
    """Let Prefect's clients in this block talk to a server of this project."""
    known = {
        PREFECT_API_URL: url,
        PREFECT_API_AUTH_STRING: servers.auth_string(root),
        # A call fails after 14 seconds, not after a minute, if a server of this machine stopped.
        PREFECT_CLIENT_MAX_RETRIES: 3,
    }
    with temporary_settings(updates=known):
        yield url


def auth(root: Path) -> dict[str, str]:
    """Return the environment that makes a Prefect server ask for the project's password."""
    return {servers.PREFECT_AUTH: servers.auth_string(root)}


def dying_with_this(*command: str) -> list[str]:
    """Return the command that runs a Python module which is killed when this process dies."""
    return [sys.executable, "-P", str(process_group.__file__), str(os.getpid()), *command]


def prefect_command(port: int) -> list[str]:
    """Return the command of a Prefect server on loopback."""
    app = ["--app-dir", str(Path(prefect.__file__).parent), "--factory"]
    listen = ["--host", "127.0.0.1", "--port", str(port), "--log-level", "error"]
    return dying_with_this("uvicorn", *app, "prefect.server.api.server:create_app", *listen)


def stop(server: "subprocess.Popen[bytes]", grace: float = 15) -> None:
    """End a server and its process group: terminate, then kill after `grace` seconds."""
    server.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        server.wait(grace)
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(server.pid, signal.SIGKILL)
    server.wait()


def await_health(server: "subprocess.Popen[bytes]", url: str, log: Path, name: str) -> None:
    """Wait until a server that was just started answers. Raises ReflowError if it does not."""
    seconds = get_current_settings().server.ephemeral.startup_timeout_seconds
    deadline = time.monotonic() + seconds
    while not servers.answers(url, seconds=2):
        if server.poll() is not None or time.monotonic() > deadline:
            without = ", or run without it: --no-prefect" if name == "Prefect" else ""
            raise ReflowError(f"the {name} server did not start; see {log}{without}")
        time.sleep(0.1)
