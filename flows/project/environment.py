"""The project's folder, and the environment of its tools: all local state is in `.reflow/`."""

import os
import shlex
from collections.abc import Mapping, MutableMapping
from pathlib import Path

import flows
import fmcore
from flows.project import servers
from fmcore.settings import ReflowError

LOOPBACK = ("127.0.0.1", "localhost", "::1")


def find_root(start: Path) -> Path:
    """Return the project: the nearest folder at or above `start` with dvc.yaml and params.yaml."""
    start = start.resolve()
    for folder in (start, *start.parents):
        if (folder / "dvc.yaml").is_file() and (folder / "params.yaml").is_file():
            return folder
    raise ReflowError(
        f"no project here: expected dvc.yaml and params.yaml in {start} or a folder above it;"
        " change into the project's folder, or make a project: reflow init my-flows"
    )


def check_own_code(root: Path) -> None:
    """Raise ReflowError if the project has code of its own and this process runs other code.

    With the environment of another clone, `reflow` would plan and record by the code of that clone
    while the stages run the code of this one.
    """
    for package, part in ((flows, "cli/main.py"), (fmcore, "settings.py")):
        running, own = Path(package.__path__[0]).resolve(), root.resolve() / package.__name__
        if (own / part).is_file() and own.resolve() != running:
            raise ReflowError(
                f"this project has its own {own}, but {running} is running; activate this"
                f" project's environment, or: export PYTHONPATH={shlex.quote(str(root.resolve()))}"
            )


def code_folder() -> Path:
    """Return the folder in which the packages `flows` and `fmcore` lie that are running."""
    return Path(flows.__path__[0]).resolve().parent


def installed() -> bool:
    """Whether the running code is that of a wheel, not of a clone of the repository."""
    return code_folder().parts[-2:] == ("reflow_chain", "code")


def code_first() -> dict[str, str]:
    """Return the variable by which other processes find an installed code; none in a clone.

    A stranger's package `flows` or `fmcore` in the same environment would otherwise come first.
    """
    own, given = str(code_folder()), os.environ.get("PYTHONPATH", "")
    rest = [part for part in given.split(os.pathsep) if part and part != own]
    return {"PYTHONPATH": os.pathsep.join([own, *rest])} if installed() else {}


def local_path(root: Path, *parts: str) -> Path:
    """Return the path `.reflow/<parts>` of the project; its parent exists afterwards."""
    path = root.resolve().joinpath(".reflow", *parts)
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def tracking_data_base(root: Path) -> str:
    """Return the URI of MLflow's data base in the project."""
    return f"sqlite:///{local_path(root, 'mlflow', 'mlflow.db')}"


def past_proxies(env: MutableMapping[str, str]) -> None:
    """Let calls to this machine go past a proxy that `env` names; what the user has set stays.

    The project's servers listen on loopback, where a proxy cannot reach them. Python reads the
    lower-case name first and then ignores the other, so both get the same hosts.
    """
    if not proxies(env):
        return  # without one, the variable would hide the proxies of macOS's own settings
    for name, other in (("no_proxy", "NO_PROXY"), ("NO_PROXY", "no_proxy")):
        given = env.get(name) or env.get(other, "")
        hosts = [host.strip() for host in given.split(",") if host.strip()]
        if "*" not in hosts:
            env[name] = ",".join([*hosts, *(host for host in LOOPBACK if host not in hosts)])


def proxies(env: Mapping[str, str]) -> list[str]:
    """Return the names of the variables that send requests through a proxy."""
    known = ("http_proxy", "https_proxy", "all_proxy")
    return [name for name in env if name.lower() in known and env[name]]


def configure(root: Path) -> None:
    """Set the environment variables that the tools read, unless the user has set them.

    Must be called before prefect or mlflow is imported: both read them at import. MLflow's address
    is the server that `reflow ui` runs for this project, or the data base if there is none.
    """
    past_proxies(os.environ)
    if "MLFLOW_TRACKING_URI" not in os.environ:
        kept = servers.living(root)
        mlflow = kept.mlflow if kept else ""
        os.environ["MLFLOW_TRACKING_URI"] = mlflow or tracking_data_base(root)
    os.environ |= servers.mlflow_login(root, os.environ["MLFLOW_TRACKING_URI"])
    defaults = {
        "DO_NOT_TRACK": "true",
        "DVC_NO_ANALYTICS": "1",
        # DVC's hash cache; without this it is in /var/tmp/dvc, for all users of the machine.
        # The user's global DVC config is left in place: it may hold credentials of a remote,
        # and DVC only reads it.
        "DVC_SITE_CACHE_DIR": str(local_path(root, "dvc")),
        "MPLCONFIGDIR": str(local_path(root, "matplotlib")),
        "MLFLOW_DISABLE_TELEMETRY": "true",
        # MLflow refuses to unpickle a model; ours are safetensors.
        "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
        "PREFECT_HOME": str(local_path(root, "prefect")),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        # The default of 20 s is not enough on a busy machine.
        "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",
        # The command line shows the stages itself; the run's log in Prefect keeps every line.
        "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL",
        "PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW": "ignore",
        # If a server stops during a run, we print one line; Prefect would print many per event.
        "PREFECT_LOGGING_INTERNAL_LEVEL": "CRITICAL",
        # The server that Prefect starts for one run logs a CancelledError per open connection
        # when it is stopped at the end: harmless, and 160 lines long.
        "PREFECT_SERVER_LOGGING_LEVEL": "CRITICAL",
        "PREFECT_CLI_PROMPT": "false",
        # A run without a heartbeat for three of these counts as dead: `flows/servers/crashed.py`.
        "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30",
    }
    home = Path(os.path.expanduser("~"))  # noqa: PTH111  Path raises where there is no home
    if home.exists() and not home.is_dir():  # /dev/null, say: git and DVC would fail below it
        os.environ["HOME"] = str(local_path(root, "home"))
    for name, value in defaults.items():
        os.environ.setdefault(name, value)
