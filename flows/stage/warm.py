"""The warm process of `reflow run`: it imports what DVC and the stages import, then forks.

`python -m flows.stage.warm SOCKET PARENT`, where SOCKET is the number of a socket that listens,
imports once what takes seconds, starts no thread and touches no GPU. For each module that a process
asks for (`flows/project/warm.py`) it forks a keeper, and the keeper forks the worker, which becomes
that module. The keeper tells how the worker ended, hands signals on to it, and kills it when the
one that asked is gone; the worker dies with its keeper. If a file that was imported has changed
since, the warm process ends, and the next modules run cold.
"""

import atexit
import gc
import json
import os
import runpy
import select
import signal
import socket
import struct
import sys
import threading
import time
import weakref
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any

from flows.project.process_group import die_with_parent, mark_as_starter
from flows.project.warm import FORWARDED, OWN, SOCKET, circumstances, received

MODULES = (
    "dvc.cli.parser", "dvc.commands.repro", "dvc.repo", "dvc.repo.reproduce",
    "dvc.cachemgr", "dvc.data_cloud", "dvc.dirs", "dvc.repo.artifacts", "dvc.repo.datasets",
    "dvc.repo.graph", "dvc.repo.plots", "dvc.repo.stage", "dvc.repo.trie", "dvc.utils.strictyaml",
    "dvc_data.hashfile.db.local", "dulwich.ignore", "dulwich.worktree", "configobj",
    "fsspec.implementations.memory", "platformdirs.unix", "ruamel.yaml.mergevalue",
    "flows.dag.inputs", "flows.stage.verbs",
    "fmcore.prepare", "fmcore.initialise", "fmcore.calibrate", "fmcore.train", "fmcore.couple",
    "fmcore.evaluate", "fmcore.compare", "fmcore.measure.preview", "safetensors.numpy",
    "torch._dynamo", "scipy.optimize", "matplotlib.backends.backend_agg", "pyarrow.dataset",
    "PIL.BmpImagePlugin", "PIL.GifImagePlugin", "PIL.JpegImagePlugin", "PIL.PpmImagePlugin",
    "tabulate",  # by which torch._dynamo says at the exit what it compiled
)  # fmt: skip
"""What is imported, also what DVC and the stages import late: in a fork it would be each stage's
cost. Nothing here may start a thread, open a file for long, or ask for a GPU."""

HARMLESS = {"jemalloc_bg_thd"}
"""Threads that may run beside the main one: pyarrow's allocator stops its own for a fork."""

Told = dict[str, Any]
Seen = dict[str, tuple[int, ...]]


def main(listening: socket.socket, parent: int) -> None:
    """Serve until the process `parent`, which started this one, ends it or dies."""
    began, mine = time.time_ns(), circumstances()
    die_with_parent(parent)
    for module in MODULES:
        import_module(module)
    gc.collect()
    gc.freeze()
    seen = _sources()
    if _alone() and all(max(times[:2]) < began for times in seen.values()):
        _serve(listening, seen, mine)


def _serve(listening: socket.socket, seen: Seen, mine: Told) -> None:
    """Fork a keeper for each that asks, until a source has changed."""
    signal.signal(signal.SIGCHLD, lambda *_: _reap())
    while True:
        link, _ = listening.accept()
        if _sources(seen) != seen:
            return
        if os.fork() == 0:
            listening.close()
            _keep(link, mine)
        link.close()


def _reap() -> None:
    """Wait for the keepers that have ended, so that their time counts as that of the run."""
    with suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def _keep(link: socket.socket, mine: Told) -> None:
    """Be a keeper: let a worker do what is asked, and say how it ended. Does not return."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    pid, user, _ = struct.unpack("3i", link.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    try:
        told, files = _asked(link)
    except (OSError, ValueError, EOFError):
        os._exit(0)
    if user != os.getuid() or not _fits(told, mine):
        os._exit(0)
    leads = not _joined(pid)
    before = {number: signal.getsignal(number) for number in FORWARDED}
    for number in FORWARDED:
        signal.signal(number, signal.SIG_IGN)
    me = os.getpid()
    with suppress(OSError):  # if this is the last thing that it hears, the module was killed
        link.send(struct.pack("q", me if leads else 0))
    worker = os.fork()
    if worker == 0:
        die_with_parent(me)
        link.close()
        for number, handler in before.items():
            signal.signal(number, handler)
        _become(told, files, mine)
    for file in files:
        os.close(file)
    with suppress(OSError):
        link.send(struct.pack("q", _watched(link, worker)))
    if leads:
        os.killpg(0, signal.SIGKILL)
    os._exit(0)


def _watched(link: socket.socket, worker: int) -> int:
    """Return how the worker ended; hand signals on to it; kill it if the link is cut."""
    end = os.pidfd_open(worker)
    while True:
        ready, _, _ = select.select([link.fileno(), end], [], [])
        if end in ready:
            return os.waitpid(worker, 0)[1]
        told = link.recv(1)
        os.kill(worker, told[0] if told else signal.SIGKILL)
        if not told:
            return os.waitpid(worker, 0)[1]


def _joined(pid: int) -> bool:
    """Join the process group of a process, or lead one: a group lies in one session."""
    with suppress(OSError):
        os.setpgid(0, os.getpgid(pid))
        return True
    os.setpgid(0, 0)
    return False


def _asked(link: socket.socket) -> tuple[Told, list[int]]:
    link.settimeout(5.0)
    head, files, _, _ = socket.recv_fds(link, 8, 3)
    head += received(link, 8 - len(head))
    told: Told = json.loads(received(link, struct.unpack("q", head)[0]))
    link.settimeout(None)
    return told, files


def _fits(told: Told, mine: Told) -> bool:
    """Whether a fork of this process is what a process of its own would be.

    DVC is started without the folder in its path, which the modules of stages are found by.
    """
    theirs, ours = ({k: v for k, v in one["env"].items() if k not in OWN} for one in (told, mine))
    same = (told["same"], told["cwd"], theirs) == (mine["same"], mine["cwd"], ours)
    return same and told["path"] in (mine["path"], mine["path"][1:])


def _become(told: Told, files: list[int], mine: Told) -> None:
    """Be the module that was asked for, as `python -m` starts it. Does not return."""
    for number, file in enumerate(files):
        os.dup2(file, number)
        os.close(file)
    os.umask(told["umask"])
    module = told["module"]
    by_imports = {k: v for k, v in os.environ.items() if k not in mine["env"]}
    os.environ.clear()
    os.environ.update(told["env"])
    sys.path[:] = told["path"]
    if module == "dvc":
        mark_as_starter()
    else:
        os.environ.update({**by_imports, **told["env"]})
        del os.environ[SOCKET]  # what a stage starts runs cold
    for finalizer in list(weakref.finalize._registry):  # type: ignore[attr-defined]
        finalizer.atexit = False  # what the imports made ends with the process that imported it
    sys.argv = [module, *told["words"]]
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
        status = 0
    except SystemExit as end:
        if end.code is not None and not isinstance(end.code, int):
            raise
        status = end.code or 0
    _leave(status)


def _leave(status: int) -> None:
    """End as Python does, but free nothing: that would copy all pages which the forks share.

    It took a quarter of a second of CPU. An error ends in Python's own way.
    """
    threading._shutdown()  # type: ignore[attr-defined]  # waits for threads that are no daemons
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError, AttributeError):
            stream.flush()
    os._exit(status & 0xFF)


def _alone() -> bool:
    """Whether no thread runs that a fork would lose. The first fork ends those of OpenBLAS."""
    if (child := os.fork()) == 0:
        os._exit(0)
    os.waitpid(child, 0)
    threads = [task for task in Path("/proc/self/task").iterdir() if task.name != str(os.getpid())]
    return all((task / "comm").read_text().strip() in HARMLESS for task in threads)


def _sources(known: Seen | None = None) -> Seen:
    """Return what tells that a file of a module has changed: its times, size and number, by path.

    A time of change (ctime) cannot be set back. Files that are not there are left out.
    """
    found: Seen = {}
    modules = [getattr(module, "__file__", None) for module in list(sys.modules.values())]
    for path in known or {path for path in modules if path}:
        with suppress(OSError):
            about = os.stat(path)  # noqa: PTH116  thousands of files, for each fork
            found[path] = (about.st_mtime_ns, about.st_ctime_ns, about.st_size, about.st_ino)
    return found


if __name__ == "__main__":
    main(socket.socket(fileno=int(sys.argv[1])), int(sys.argv[2]))
