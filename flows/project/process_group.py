"""End a process when its parent ends, so that no orphan writes into the project later.

As a script, `python -P flows/project/process_group.py PARENT MODULE ARGUMENTS...`, it runs a module
that is killed when the process PARENT dies; with `--group` before MODULE, all processes that the
module starts are killed too. A stage below the module finds its process in `REFLOW_STARTER`. Uses
only the standard library, so that it starts at once.
"""

import contextlib
import ctypes
import os
import runpy
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

STARTER = "REFLOW_STARTER"
"""The environment variable with the mark of the process that a stage must not outlive."""

SHELLS = {"sh", "bash", "dash", "zsh", "fish", "ksh", "busybox"}
_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36


def die_with_parent(parent: int) -> None:
    """Have the kernel kill this process when its parent, the process `parent`, dies; Linux only."""
    if not sys.platform.startswith("linux"):
        return
    _kill_with_parent()
    if os.getppid() != parent:  # it died before the kernel was told
        os.kill(os.getpid(), signal.SIGKILL)


def die_with_starter() -> None:
    """Have this stage die with the process that started it, or at once if that is dead; Linux only.

    Called before anything slow is imported. The parent may have died earlier still, while Python
    started, so what is left of it is looked at: the mark in the environment, which this process
    hands on, and whether the present parent merely adopted this process.
    """
    if not sys.platform.startswith("linux"):
        return
    _kill_with_parent()
    mark, shell, starter = os.environ.get(STARTER, ""), 0, os.getppid()
    while (found := _process(starter))[0] in SHELLS and starter > 1:
        shell, starter = starter, found[1]
    if not _lives(mark) or _adopted(starter):
        os.kill(os.getpid(), signal.SIGKILL)
    if shell and starter > 1:  # a shell does not die with DVC
        _die_unless(lambda: _process(shell)[1] == starter)
    if mark:
        _die_unless(lambda: _lives(mark))


def mark_as_starter() -> None:
    """Let the stages that this process and its children start find it in their environment."""
    if mark := _mark(os.getpid()):
        os.environ[STARTER] = mark


def hold_group(parent: int, command: list[str], grace: int = 10) -> int:
    """Run a command; end its whole process group when `parent` dies or this process is signalled.

    The kernel reports the death of a parent only to its direct children. So this process stays
    between them, adopts processes that lose their parent, and ends after the last of them.
    """
    import subprocess

    def end(number: int, frame: object) -> None:
        for told in (signal.SIGTERM, signal.SIGINT):
            signal.signal(told, signal.SIG_IGN)
        signal.signal(signal.SIGALRM, lambda *_: os.killpg(0, signal.SIGKILL))
        signal.alarm(grace)
        os.killpg(0, signal.SIGTERM)

    signal.signal(signal.SIGTERM, end)
    signal.signal(signal.SIGINT, end)
    if sys.platform.startswith("linux"):
        kernel = ctypes.CDLL(None, use_errno=True)
        kernel.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        kernel.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    child = subprocess.Popen(command)
    if os.getppid() != parent:  # it died before the kernel was told
        end(0, None)
    code = child.wait()
    with contextlib.suppress(ChildProcessError):
        while True:
            os.wait()
    return code


def exists(pid: int) -> bool:
    """Whether there is a process with this number."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _kill_with_parent() -> None:
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def _adopted(starter: int) -> bool:
    """Whether a stage that DVC started has lost it, so that `starter` only adopted the stage.

    DVC's children stay in its process group. A process that leads a group of its own, as those of
    torchrun and srun do, was started by them; one that DVC did not start may have any parent.
    """
    if "DVC_STAGE" not in os.environ or os.getpgrp() == os.getpid():
        return False
    if starter == 1:  # in a container DVC itself may be process 1
        return not _process(1)[0].startswith(("dvc", "python"))
    try:
        return os.getpgid(starter) != os.getpgrp()
    except ProcessLookupError:
        return True


def _mark(pid: int) -> str:
    """Return what names a process among all machines, boots and containers; "" without /proc."""
    with contextlib.suppress(OSError, IndexError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        began = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
        return f"{boot} {Path('/proc/self/ns/pid').readlink()} {pid} {began}"
    return ""


def _lives(mark: str) -> bool:
    """Whether the process of a mark lives; True if it is none of this machine or container."""
    here, given = _mark(os.getpid()).split(), mark.split()
    if len(given) != 4 or given[:2] != here[:2]:
        return True
    return _mark(int(given[2])) == mark and _state(int(given[2])) not in ("Z", "X")


def _die_unless(lives: Callable[[], bool]) -> None:
    """Kill this process as soon as `lives` says no; a thread asks twice a second."""

    def watch() -> None:
        while lives():
            time.sleep(0.5)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()


def _process(pid: int) -> tuple[str, int]:
    """Return the name and the parent of a process; ("", 0) when there is none."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        head, _, tail = Path(f"/proc/{pid}/stat").read_text().rpartition(")")
        return head.split("(", 1)[1], int(tail.split()[1])
    return "", 0


def _state(pid: int) -> str:
    """Return the letter of a process's state; "" when there is none."""
    with contextlib.suppress(OSError, IndexError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    return ""


if __name__ == "__main__":
    if sys.argv[2] == "--group":
        sys.exit(hold_group(int(sys.argv[1]), [sys.executable, "-P", "-m", *sys.argv[3:]]))
    die_with_parent(int(sys.argv[1]))
    sys.argv = sys.argv[2:]
    if os.environ.get("REFLOW_WARM"):
        run_warm = runpy.run_path(str(Path(__file__).with_name("warm.py")))["run_warm"]
        if (status := run_warm(sys.argv[0], sys.argv[1:])) is not None:
            sys.exit(status)
    mark_as_starter()
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
