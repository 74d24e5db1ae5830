"""End a process when its parent ends, so that no orphan writes into the project later.

As a script, `python -P flows/project/process_group.py PARENT MODULE ARGUMENTS...`, it runs a module
that is killed when the process PARENT dies; with `--group` before MODULE, all processes that the
module starts are killed too. Uses only the standard library, so that it starts at once.
"""

import contextlib
import ctypes
import os
import runpy
import signal
import sys
import threading
import time
from pathlib import Path

SHELLS = {"sh", "bash", "dash", "zsh", "fish", "ksh", "busybox"}
_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36


def die_with_parent(parent: int | None = None) -> None:
    """Have the kernel kill this process when `parent` (now its parent) dies; Linux only.

    A shell between DVC and the stage does not die with DVC: if the parent is a shell, a thread
    checks that the shell still has its parent.
    """
    if not sys.platform.startswith("linux"):
        return
    parent = os.getppid() if parent is None else parent
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # it died before the kernel was told
        os.kill(os.getpid(), signal.SIGKILL)
    name, above = _process(parent)
    if name in SHELLS and above > 1:
        threading.Thread(target=_watch, args=(parent, above), daemon=True).start()


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


def _watch(shell: int, above: int) -> None:
    while _process(shell)[1] == above:
        time.sleep(0.5)
    os.kill(os.getpid(), signal.SIGKILL)


def _process(pid: int) -> tuple[str, int]:
    """Return the name and the parent of a process; ("", 0) when there is none."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        head, _, tail = Path(f"/proc/{pid}/stat").read_text().rpartition(")")
        return head.split("(", 1)[1], int(tail.split()[1])
    return "", 0


if __name__ == "__main__":
    if sys.argv[2] == "--group":
        sys.exit(hold_group(int(sys.argv[1]), [sys.executable, "-P", "-m", *sys.argv[3:]]))
    die_with_parent(int(sys.argv[1]))
    sys.argv = sys.argv[2:]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
