"""Ask a warm process, which has imported all that stages need, to run a module in a fork of itself.

`reflow run` starts that process (`flows/stage/warm.py`) and puts the path of its socket into the
environment of what it starts; without it, and whenever anything about the two processes differs,
the module runs cold, in the process that asked. Uses only the standard library.
"""

import json
import os
import resource
import signal
import socket
import struct
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

SOCKET = "REFLOW_WARM"
"""Set to 0, `reflow run` starts no warm process; what a run starts finds the path of the socket
there."""

OWN = {
    SOCKET, "REFLOW_STARTER", "DVC_ROOT", "DVC_STAGE", "PWD", "OLDPWD", "SHLVL", "_",
}  # fmt: skip
"""Variables that nothing reads when it is imported: of all others, the two must have the same."""

FORWARDED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
PATIENCE = 120.0
"""Seconds to wait for the imports, after which the module runs cold."""


def run_warm(module: str, words: list[str]) -> int | None:
    """Have a module run as `python -m module *words` does, here and now; return its exit status.

    None if there is no warm process, or if it may not do that. It has the files, folder, and
    environment of this process, gets the signals that this one gets, and dies with it.
    """
    path = os.environ.get(SOCKET, "")
    if not Path(path).is_absolute() or not sys.platform.startswith("linux"):
        return None
    try:
        link = socket.socket(socket.AF_UNIX)
        with address(Path(path)) as short:
            link.connect(short)
        told = json.dumps({"module": module, "words": words, **circumstances()}).encode()
        socket.send_fds(link, [struct.pack("q", len(told))], [0, 1, 2])
        link.sendall(told)
        link.settimeout(PATIENCE)
        group = struct.unpack("q", received(link, 8))[0]
    except (OSError, ValueError, EOFError):
        return None
    link.settimeout(None)
    for number in FORWARDED:
        signal.signal(number, lambda number, _: link.send(bytes([number])))
    status: int
    try:
        status = struct.unpack("q", received(link, 8))[0]
    except (OSError, EOFError):  # the keeper was killed, and the module with it
        status = signal.SIGKILL.value
        if group:
            os.killpg(group, signal.SIGKILL)
    if os.WIFSIGNALED(status):
        died_of = os.WTERMSIG(status)
        if died_of != signal.SIGKILL:
            signal.signal(died_of, signal.SIG_DFL)
        os.kill(os.getpid(), died_of)
    return os.waitstatus_to_exitcode(status)


def circumstances() -> dict[str, Any]:
    """Return what a fork takes from its parent and a new process from elsewhere, as JSON holds it.

    `umask`, `path` and some of `env` can be given to a fork; all the rest must be equal.
    """
    umask = os.umask(0o077)
    os.umask(umask)
    limits = [getattr(resource, name) for name in dir(resource) if name.startswith("RLIMIT_")]
    spaces = ("cgroup", "ipc", "mnt", "net", "pid", "user", "uts")
    same = {
        "python": [sys.executable, sys.version],
        "user": [os.getresuid(), os.getresgid(), sorted(os.getgroups())],
        "limits": [resource.getrlimit(limit) for limit in limits],
        "cores": sorted(os.sched_getaffinity(0)),
        "priority": [os.getpriority(os.PRIO_PROCESS, 0), os.sched_getscheduler(0)],
        "memory": Path("/proc/self/oom_score_adj").read_text(),
        "cgroup": Path("/proc/self/cgroup").read_text(),
        "spaces": [str(Path(f"/proc/self/ns/{space}").readlink()) for space in spaces],
        "ignored": [signal.getsignal(number) == signal.SIG_IGN for number in FORWARDED],
    }
    env, cwd = dict(os.environ), str(Path.cwd())
    whole = {"same": same, "env": env, "cwd": cwd, "umask": umask, "path": sys.path}
    return json.loads(json.dumps(whole))  # type: ignore[no-any-return]


@contextmanager
def address(path: Path) -> Iterator[str]:
    """Yield a short name of a socket's path, which may have 107 bytes only."""
    folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{folder}/{path.name}"
    finally:
        os.close(folder)


def received(link: socket.socket, size: int) -> bytes:
    """Return the next `size` bytes. Raises EOFError if the other side has gone before."""
    found = b""
    while len(found) < size:
        if not (part := link.recv(size - len(found))):
            raise EOFError
        found += part
    return found
