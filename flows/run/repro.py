"""Run one stage: skip it in milliseconds when nothing changed, else `dvc repro --single-item`."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from flows.dag import graph, plan
from flows.dag.outputs import mend
from flows.project import process_group
from flows.project.events import OnEvent, followed, path_of
from flows.project.locks import EX_DATAERR, EX_TEMPFAIL
from fmcore.settings import ReflowError

Emit = Callable[[str], None]

MAY_PASS = re.compile(
    r"out of memory|OutOfMemoryError|MemoryError|cannot allocate memory"
    r"|unable to acquire lock|it is being blocked by",
    re.IGNORECASE,
)
"""What torch or DVC prints if the same stage may succeed later; our errors use an exit status."""

BLOCKED = re.compile(r"('[^'\n]*') is busy, it is being blocked by:((?:\n\s+\(PID \d+\): .*)+)")
"""What DVC prints, over some lines, if another DVC works on a file of the stage."""

KILLED = {signal.SIGHUP, signal.SIGINT, signal.SIGKILL, signal.SIGTERM}
"""Signals that come from outside; a process that crashes by itself will do so again."""

HINTS = ("To track the changes", "To enable auto staging", "\tgit add", "\tdvc config", "Use `dvc ")


@dataclass(frozen=True)
class Outcome:
    """A stage that is up to date: unchanged or restored (`cached`) or run (`done`), and why."""

    stage: str
    state: Literal["cached", "done"]
    seconds: float
    reasons: tuple[str, ...] = ()


class StageFailed(ReflowError):
    """A stage failed; `retryable` says whether the same command may succeed a little later.

    `damaged` says that a file which it reads is damaged; `holders` are the processes that work on
    the same files: when they have ended, it may succeed.
    """

    def __init__(
        self,
        stage: str,
        reason: str,
        *,
        retryable: bool,
        damaged: bool = False,
        holders: tuple[int, ...] = (),
    ) -> None:
        super().__init__(f"{stage}: {reason}")
        self.holders = holders
        self.stage = stage
        self.reason = reason
        self.retryable = retryable
        self.damaged = damaged


class Processes:
    """The processes of one run of the chain, each with its process group, so that all can end.

    `env` is the environment of its stages, as the run began: what MLflow and Prefect set in this
    process later is none of theirs, and a warm process (`run/warm.py`) must have the same.
    """

    def __init__(self) -> None:
        self.stopped = False
        self.env = environment()
        self._live: set[subprocess.Popen[str]] = set()
        self._lock = threading.Lock()

    def start(
        self, command: Sequence[str], cwd: Path, env: dict[str, str]
    ) -> subprocess.Popen[str]:
        """Start a command whose output, errors included, comes as lines of `stdout`."""
        with self._lock:
            if self.stopped:
                raise ReflowError("the run was stopped")
            process = subprocess.Popen(
                command,
                cwd=cwd,
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                encoding="utf-8",
                errors="replace",
                start_new_session=True,
            )
            self._live.add(process)
        # Children of a killed DVC would keep the pipe open and write later.
        threading.Thread(target=self._end, args=(process,), daemon=True).start()
        return process

    def stop(self, grace: float = 3.0) -> None:
        """End every process group: terminate, then kill after `grace` seconds; start no more."""
        with self._lock:
            self.stopped = True
            live = list(self._live)
        for process in live:
            _signal(process, signal.SIGTERM)
        deadline = time.monotonic() + grace
        for process in live:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(max(0.0, deadline - time.monotonic()))
            _signal(process, signal.SIGKILL)

    def _end(self, process: subprocess.Popen[str]) -> None:
        process.wait()
        _signal(process, signal.SIGKILL)
        with self._lock:
            self._live.discard(process)


def update_stage(
    root: Path,
    name: str,
    emit: Emit,
    processes: Processes | None = None,
    room: AbstractContextManager[None] | None = None,
    *,
    on_event: OnEvent | None = None,
    pull: bool = False,
) -> Outcome:
    """Bring the stage `name` up to date, giving each line that it prints to `emit`.

    `on_event` is called with its events, in a separate thread, with all of them before this
    returns. `room` (CPU cores) is entered only if the stage has to run, and held while it runs.
    A damaged file that the stage reads is restored, or made again by its stage, first. With `pull`
    a stage that anyone ran before comes from the default remote, with its run cache.

    Raises StageFailed with the stage's own error line.
    """
    root = root.resolve()
    processes = processes or Processes()
    start = time.monotonic()
    reasons = tuple(plan.changed(root, name))
    if not reasons:
        return Outcome(name, "cached", time.monotonic() - start)
    with room or nullcontext(), followed(path_of(root, name), on_event):
        start = time.monotonic()
        try:
            cached = _repro(root, name, emit, processes, pull)
        except StageFailed as error:
            if not error.damaged:
                raise
            _mend(root, name, emit, processes)
            cached = _repro(root, name, emit, processes, pull)
    state: Literal["cached", "done"] = "cached" if cached else "done"
    return Outcome(name, state, time.monotonic() - start, reasons)


def _repro(root: Path, name: str, emit: Emit, processes: Processes, pull: bool) -> bool:
    """Run `dvc repro` for the stage; say whether the stage did not have to run."""
    env = processes.env
    process = processes.start(_command(name, pull), root, env)
    return _restored(name, process, emit, processes)


def _mend(root: Path, name: str, emit: Emit, processes: Processes) -> None:
    """Mend what the stage reads; a stage above makes its output again if no copy is good."""
    for maker in mend.mend(root, graph.read(root)[name].deps, emit).remake:
        emit(f"{maker} runs again")
        update_stage(root, maker, emit, processes)


def _restored(name: str, process: subprocess.Popen[str], emit: Emit, processes: Processes) -> bool:
    """Read DVC's output to its end, line by line; say whether the stage did not have to run."""
    lines: deque[str] = deque(maxlen=200)
    cached = False
    assert process.stdout is not None
    try:
        for line in process.stdout:
            line = line.rstrip()
            if not line or line.startswith(HINTS):
                continue
            cached = (cached or _skipped(line, name)) and line != f"Running stage '{name}':"
            lines.append(line)
            emit(line)
        code = process.wait()
    finally:
        _signal(process, signal.SIGKILL)
    if processes.stopped and code:
        raise StageFailed(name, "stopped with the run", retryable=False)
    if code:
        raise failure(name, code, list(lines))
    return cached


def failure(name: str, code: int, lines: list[str]) -> StageFailed:
    """Say in one line why a stage failed, from what it and DVC printed."""
    text = "\n".join(lines)
    if blocked := BLOCKED.search(text):
        held = re.findall(r"\(PID (\d+)\): (.*)", blocked[2])
        who = ", ".join(f"process {pid} (`{_shortened(cmd)}`)" for pid, cmd in held)
        reason = f"{blocked[1]} is in use by {who}; wait for it to end, or end it"
        return StageFailed(name, reason, retryable=True, holders=tuple(int(p) for p, _ in held))
    exits = re.findall(r"exited with (-?\d+)", text)
    stage_code = int(exits[-1]) if exits else code
    number = -stage_code if stage_code < 0 else stage_code - 128
    killed = number in KILLED
    own = [line.removeprefix("error:").strip() for line in lines if line.startswith("error:")]
    dvc = [line.removeprefix("ERROR:").strip() for line in lines if line.startswith("ERROR:")]
    said = [line for line in lines if not line.startswith(("ERROR:", "WARNING:", ">", "Running"))]
    if own:
        reason = own[-1]
    elif killed:
        reason = f"was killed ({signal.Signals(number).name}); out of memory?"
    elif exits and said:
        reason = f"{said[-1].strip()} (exit {stage_code})"
    else:
        reason = dvc[-1] if dvc else f"dvc exited with {code} and said nothing"
    may_pass = stage_code == EX_TEMPFAIL or bool(MAY_PASS.search(text))
    retryable = may_pass or (killed and not own)
    damaged = stage_code == EX_DATAERR
    return StageFailed(name, reason, retryable=retryable, damaged=damaged)


def _shortened(command: str) -> str:
    """Return a command of DVC as one types it.

    >>> _shortened("/usr/lib/dvc/__main__.py --wait-for-lock repro --single-item train@rf1")
    'dvc repro --single-item train@rf1'
    """
    return re.sub(r"^\S*/(dvc|__main__\.py)(?= )", "dvc", command).replace(" --wait-for-lock", "")


def _skipped(line: str, name: str) -> bool:
    """Say whether DVC's line means that the stage was not run after all."""
    said = (
        f"Stage '{name}' is cached - skipping run",
        f"Stage '{name}' didn't change, skipping",
        "taken from ",  # flows/stage/taken.py
        f"Pulling data for stage: '{name}'",  # it says so, too, when that fails and the stage runs
    )
    return line.startswith(said)


def _command(name: str, pull: bool) -> list[str]:
    repro = ["dvc", "--wait-for-lock", "repro", "--single-item", name]
    repro += ["--pull"] if pull else []
    return [sys.executable, "-P", str(process_group.__file__), str(os.getpid()), *repro]


def environment() -> dict[str, str]:
    """The environment of a stage: `python` is the one that runs the chain."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    # What it prints is read as UTF-8, whatever the terminal of this run knows.
    more = {"PYTHONUNBUFFERED": "1", "PYTHONIOENCODING": "utf-8", "DVC_NO_ANALYTICS": "1"}
    return {**os.environ, "PATH": path, **more}


def _signal(process: subprocess.Popen[str], number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, number)
