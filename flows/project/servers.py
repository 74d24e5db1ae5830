"""The servers that `reflow ui` runs for a project: their addresses, and whether they answer.

Uses only the standard library, because `environment.configure` calls it in every process.
"""

import contextlib
import json
import os
import secrets
from dataclasses import asdict, dataclass, replace
from pathlib import Path

PREFECT_AUTH = "PREFECT_SERVER_API_AUTH_STRING"
MLFLOW_LOGIN = ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD")


@dataclass(frozen=True)
class Servers:
    """The process that runs the servers of the project `root`, and their addresses.

    An address is "" for a server that it does not run.
    """

    root: str
    pid: int
    born: str
    prefect: str
    mlflow: str


def living(root: Path) -> Servers | None:
    """Return the servers of this project that answer now; None if there are none.

    The file alone is no proof: its process may be gone, and another program may use its port.
    """
    if (found := _announced(root)) is None:
        return None
    prefect = found.prefect if answers(f"{found.prefect}/api/health") else ""
    mlflow = found.mlflow if answers(f"{found.mlflow}/health") else ""
    return replace(found, prefect=prefect, mlflow=mlflow) if prefect or mlflow else None


def mlflow_login(root: Path, uri: str) -> dict[str, str]:
    """Return the variables by which MLflow logs in at `uri`, if that is this project's server."""
    found = _announced(root) if uri.startswith("http") else None
    if found is None or not found.mlflow or uri.rstrip("/") != found.mlflow:
        return {}
    name, _, password = auth_string(root).partition(":")
    return dict(zip(MLFLOW_LOGIN, (name, password), strict=True))


def _announced(root: Path) -> Servers | None:
    """Return the servers whose process lives.

    The file of a copied project names those of the original, which are not the copy's.
    """
    try:
        found = Servers(**json.loads(_file(root).read_text()))
    except (OSError, ValueError, TypeError):
        return None
    ours = found.root == str(root.resolve()) and found.born
    return found if ours and born(found.pid) == found.born else None


def announce(root: Path, prefect: str, mlflow: str) -> None:
    """Record that this process runs these servers."""
    mine = Servers(str(root.resolve()), os.getpid(), born(os.getpid()), prefect, mlflow)
    path = _file(root)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(asdict(mine), indent=2) + "\n")
    temporary.replace(path)


def withdraw(root: Path) -> None:
    """Remove what `announce` wrote."""
    _file(root).unlink(missing_ok=True)


def born(pid: int) -> str:
    """Return a mark of a process that a later process with the same number does not have.

    On Linux it holds the boot and the clock tick of the start; elsewhere only that the process
    exists. "" if there is no such process.
    """
    with contextlib.suppress(OSError, IndexError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return f"{boot} {fields[19]}"
    if Path("/proc/self").exists():
        return ""
    try:
        os.kill(pid, 0)
    except PermissionError:
        return "exists"
    except OSError:
        return ""
    return "exists"


def answers(url: str, seconds: float = 5.0) -> bool:
    """Say whether a server on this machine answers a health check."""
    import urllib.error  # a quarter of a second, and most projects keep no servers
    import urllib.request

    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url, timeout=seconds) as reply:
            return bool(reply.status == 200)
    except (urllib.error.URLError, OSError, ValueError):
        return False


def speaks(url: str, seconds: float = 10.0) -> bool:
    """Say whether a server answers at a URL, if only that it wants a login.

    A proxy of the user is asked; that it finds nothing behind it is no answer.
    """
    import http.client
    import urllib.error
    import urllib.request

    try:
        urllib.request.urlopen(url, timeout=seconds).close()
    except urllib.error.HTTPError as error:
        return error.code not in (502, 503, 504)
    except (OSError, ValueError, http.client.HTTPException):
        return False
    return True


def reason(error: BaseException) -> str:
    """Say in a few words why a server or its client failed; never what urllib3 says in full.

    >>> reason(OSError("HTTPConnectionPool(host='a'): Max retries exceeded (Caused by ...)"))
    'no server answers there'
    """
    text = str(error)
    if any(word in text for word in ("timed out", "Timeout")):
        return "the server does not answer in time"
    if any(word in text for word in ("Max retries", "onnection refused", "connection attempts")):
        return "no server answers there"
    return (text.strip().splitlines() or [type(error).__name__])[0][:100]


def auth_string(root: Path) -> str:
    """Return the user name and password of the project's servers, made at the first call.

    They are in `.reflow/prefect/auth`, which only the user can read. Other users of the machine
    could otherwise call a server on loopback, and so could a web page that the user has open:
    Prefect does not check where a request is from.
    """
    if given := os.environ.get(PREFECT_AUTH):
        return given
    path = auth_file(root)
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        made = path.with_suffix(f".{os.getpid()}")
        with os.fdopen(os.open(made, os.O_WRONLY | os.O_CREAT, 0o600), "w") as file:
            file.write(f"admin:{secrets.token_urlsafe(24)}\n")
        try:
            with contextlib.suppress(FileExistsError):
                os.link(made, path)  # atomic, for two processes that start at once
        except OSError:  # a file system without links
            made.replace(path)
        made.unlink(missing_ok=True)
    return path.read_text().strip()


def auth_file(root: Path) -> Path:
    """Return the file that holds the user name and password of the project's servers."""
    return root.resolve() / ".reflow" / "prefect" / "auth"


def environment(root: Path) -> dict[str, str]:
    """Return the variables by which the commands of Prefect and MLflow find this project's records.

    They include the password of the servers while `reflow ui` runs them, and the hosts that a
    proxy is not asked for.
    """
    prefect = ("PREFECT_HOME", "PREFECT_API_URL", "PREFECT_API_AUTH_STRING")
    mlflow = ("MLFLOW_TRACKING_URI", *MLFLOW_LOGIN)
    names = (*prefect, *mlflow, "DO_NOT_TRACK", "NO_PROXY", "no_proxy")
    found = {name: os.environ[name] for name in names if name in os.environ}
    kept = living(root)
    if kept and kept.prefect and "PREFECT_API_URL" not in os.environ:
        found["PREFECT_API_URL"] = f"{kept.prefect}/api"
        found["PREFECT_API_AUTH_STRING"] = auth_string(root)
    return found


def _file(root: Path) -> Path:
    return root.resolve() / ".reflow" / "servers.json"
