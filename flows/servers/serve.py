"""`reflow ui`: a Prefect server and an MLflow server for this project, on loopback, until Ctrl-C.

Both ask for the name and password in `.reflow/prefect/auth`, so that neither another user of the
machine nor a web page can call them. Both die with this process, however it ends.
"""

import contextlib
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType

from flows.project import environment, links, servers
from flows.project.locks import locked
from flows.servers import prefect_server
from fmcore.settings import ReflowError

PREFECT_PORT, MLFLOW_PORT = 4200, 5000
HOST = "127.0.0.1"
Say = Callable[[str], object]


def serve(root: Path, *, prefect_port: int | None, mlflow_port: int | None, say: Say) -> None:
    """Start the servers, print their addresses, and keep them running until Ctrl-C or SIGTERM.

    A port that is given must be free; without one the next free port is taken. A server that
    PREFECT_API_URL or MLFLOW_TRACKING_URI names is used, not started. Raises ReflowError.
    """
    root = root.resolve()
    if kept := servers.living(root):
        raise ReflowError(
            f"the servers of this project run already, in process {kept.pid}: Prefect"
            f" {kept.prefect or 'not'}, MLflow {kept.mlflow or 'not'}; use them, or end that"
            " process"
        )
    wanted = _wanted()
    with _alone(root), _stopped_by_a_signal(), contextlib.ExitStack() as running:
        ports = _ports(wanted, prefect_port, mlflow_port, say)
        say("starting, about 20 s ...")
        started = {name: running.enter_context(_started(root, name, ports[name])) for name in ports}
        urls = {name: f"http://{HOST}:{port}" for name, port in ports.items()}
        for name, process in started.items():
            path = "/api/health" if name == "prefect" else "/health"
            prefect_server.await_health(process, urls[name] + path, _log(root, name), name)
        if "prefect" in urls:
            with prefect_server.client_of(root, f"{urls['prefect']}/api"):
                _register()
        servers.announce(root, urls.get("prefect", ""), urls.get("mlflow", ""))
        running.callback(servers.withdraw, root)
        _tell(root, urls, say)
        with contextlib.suppress(KeyboardInterrupt):
            _keep(root, started)
        say("stopping")


def _register() -> None:
    from prefect.client.orchestration import get_client

    from flows.servers import automations, crashed

    with get_client(sync_client=True) as client:
        crashed.register(client)
        automations.register(client)


def _wanted() -> list[str]:
    """Return which servers to start: those that the user does not run elsewhere."""
    wanted = ["prefect"] if not os.environ.get("PREFECT_API_URL") else []
    if not os.environ["MLFLOW_TRACKING_URI"].startswith(("http:", "https:")):
        wanted.append("mlflow")
    if not wanted:
        raise ReflowError(
            "nothing to start: PREFECT_API_URL and MLFLOW_TRACKING_URI name servers of yours;"
            " open those, or unset the variables"
        )
    return wanted


def _ports(
    wanted: list[str], prefect_port: int | None, mlflow_port: int | None, say: Say
) -> dict[str, int]:
    if prefect_port is not None and prefect_port == mlflow_port:
        raise ReflowError(f"port {mlflow_port} is given twice; each server needs its own")
    asked = {"prefect": prefect_port, "mlflow": mlflow_port}
    usual = {"prefect": PREFECT_PORT, "mlflow": MLFLOW_PORT}
    found: dict[str, int] = {}
    for name in wanted:
        port = asked[name]
        if port is None:
            port = usual[name]
            others = {p for p in (*asked.values(), *found.values()) if p}
            while not _free(port) or port in others:
                port += 1
                if port > 65535:
                    raise ReflowError(f"no free port for {name}; name one: --{name}-port")
            if port != usual[name]:
                say(f"port {usual[name]} is in use; {name} takes {port}")
        elif not _free(port):
            raise ReflowError(
                f"port {port} is in use by {_occupant(port)}; choose another --{name}-port,"
                " or leave the option out and a free port is found"
            )
        found[name] = port
    return found


def _free(port: int) -> bool:
    with socket.socket() as trial:
        trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            trial.bind((HOST, port))
        except OSError:
            return False
    return True


def _occupant(port: int) -> str:
    """Say what answers at a port."""
    address = f"http://{HOST}:{port}"
    if servers.answers(f"{address}/api/health", seconds=2):
        return "a Prefect server that is not this project's"
    if servers.answers(f"{address}/health", seconds=2):
        return "a server that is not this project's (probably MLflow)"
    return "another program"


def _alone(root: Path) -> contextlib.AbstractContextManager[None]:
    """Prevent a second `reflow ui` of this project from starting meanwhile."""
    held = "another `reflow ui` of this project is starting or stopping"
    return locked(root, "ui", held, "wait a moment", patience=0)


@contextlib.contextmanager
def _started(root: Path, name: str, port: int) -> Iterator["subprocess.Popen[bytes]"]:
    """Start one server in its own session, so that Ctrl-C reaches it only through this process."""
    if name == "prefect":
        command, more = prefect_server.prefect_command(port), _prefect_settings(root, port)
    else:
        command, more = _mlflow_command(root, port), _mlflow_settings()
    with _log(root, name).open("w") as file:
        process = subprocess.Popen(
            command, env={**os.environ, **more}, stdout=file, stderr=file, start_new_session=True
        )
    try:
        yield process
    finally:
        prefect_server.stop(process)


def _prefect_settings(root: Path, port: int) -> dict[str, str]:
    """Return the server's settings: a password, and calls from its own UI only."""
    origins = f"http://{HOST}:{port},http://localhost:{port}"
    return {
        **prefect_server.auth(root),
        "PREFECT_SERVER_API_CORS_ALLOWED_ORIGINS": origins,
        "PREFECT_SERVER_UI_API_URL": "/api",
        "PREFECT_UI_URL": f"http://{HOST}:{port}",  # for links in what automations send
        "PREFECT_SERVER_LOGGING_LEVEL": "WARNING",
        "PREFECT__SERVER_FINAL": "1",
    }


def _mlflow_settings() -> dict[str, str]:
    """Return the server's environment: no jobs, and this code, wherever it is."""
    path = [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")]
    return {
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "PYTHONPATH": os.pathsep.join(filter(None, path)),
    }


def _mlflow_command(root: Path, port: int) -> list[str]:
    return prefect_server.dying_with_this("--group", "flows.tracking.guarded", str(root), str(port))


def _log(root: Path, name: str) -> Path:
    return environment.local_path(root, name, "ui.log")


def _tell(root: Path, urls: dict[str, str], say: Say) -> None:
    if os.environ.get(servers.PREFECT_AUTH):
        password = f"${servers.PREFECT_AUTH}"
    else:
        password = f"the line in {servers.auth_file(root).relative_to(root)}"
    if url := urls.get("prefect"):
        say(f"Prefect  {url}   log in with {password}")
    if url := urls.get("mlflow"):
        pages = links.known(url, servers.auth_string(root))
        say(f"MLflow   {pages['runs']}")
        if "rounds" in pages:
            say(f"         the rounds in one chart: {pages['rounds']}")
        say(f"         name and password: {password}, before and after the colon")
    say("`reflow run` and `reflow publish` of this project report here; Ctrl-C stops")


def _keep(root: Path, started: dict[str, "subprocess.Popen[bytes]"]) -> None:
    while True:
        for name, process in started.items():
            if process.poll() is not None:
                raise ReflowError(
                    f"the {name} server ended by itself (exit {process.returncode}); see"
                    f" {_log(root, name)}, then start `reflow ui` again"
                )
        time.sleep(0.5)


@contextlib.contextmanager
def _stopped_by_a_signal() -> Iterator[None]:
    """Let SIGTERM end this process like Ctrl-C, even if the shell made it ignore Ctrl-C."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        for again in (signal.SIGTERM, signal.SIGINT):
            signal.signal(again, signal.SIG_IGN)  # it is stopping already, which takes seconds
        raise KeyboardInterrupt

    before = {n: signal.signal(n, interrupt) for n in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
