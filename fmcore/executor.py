"""Where pure work is computed: in this process, in others, or on a cluster by Ray or Dask.

A job is a pure function of its items, so an item has the same bytes wherever it is computed, and
one whose worker is lost is computed again. Workers run with the threads of the caller and refuse
to run where the last bits would be others (`compute.numerics`).
"""

import hashlib
import logging
import os
import pickle
import signal
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from multiprocessing import get_context, parent_process
from multiprocessing.connection import wait as wait_for
from typing import Any, Literal, Protocol, TypeVar

import torch
from pydantic import Field

from fmcore.compute import Compute, numerics
from fmcore.settings import ReflowError, Settings

I = TypeVar("I")  # noqa: E741  an item
T = TypeVar("T")
Item = TypeVar("Item", contravariant=True)
Result = TypeVar("Result", covariant=True)
Run = Callable[[Iterable[I]], Iterator[tuple[I, T]]]

TRIES = 3
"""How often an item is computed before its failure ends the work."""

ACCEPTED = "in-process, processes[:N], ray[:N], ray://HOST:PORT, dask[:N], tcp://HOST:PORT (Dask)"


class Executor(Settings):
    """Who computes: never a parameter of a stage, because it does not change a byte.

    `workers` counts processes of this machine, `address` names a cluster that runs already.
    """

    kind: Literal["in-process", "processes", "ray", "dask"] = "in-process"
    workers: int | None = Field(default=None, gt=0)
    address: str | None = None

    @classmethod
    def parse(cls, text: str) -> "Executor":
        """Return the executor that `text` names.

        >>> Executor.parse("processes:4").workers
        4
        >>> Executor.parse("ray://head:10001").kind
        'ray'
        """
        if text.startswith("ray://"):
            return cls(kind="ray", address=text)
        if text.startswith(("tcp://", "tls://")):
            return cls(kind="dask", address=text)
        kind, colon, count = text.partition(":")
        whole = count.isdecimal() and int(count) > 0
        if kind not in ("in-process", "processes", "ray", "dask") or (colon and not whole):
            raise ReflowError(f"executor: expected {ACCEPTED}; got {text!r}")
        if kind == "in-process" and colon:
            raise ReflowError(f"executor: in-process is one process, got {text!r}; use processes:N")
        return cls(kind=kind, workers=int(count) if colon else None)  # type: ignore[arg-type]

    def count(self, device: torch.device) -> int:
        """Return the workers on this machine: as asked for, else one a GPU, or as cores allow."""
        if self.kind == "in-process":
            return 1
        if self.workers:
            return self.workers
        if device.type == "cuda":
            return torch.cuda.device_count()
        return max(1, (os.cpu_count() or 1) // torch.get_num_threads())


IN_PROCESS = Executor()


class Job(Protocol[Item, Result]):
    """Work that can be sent to another process by pickle."""

    def on(self, device: torch.device) -> Callable[[Item], Result]:
        """Return the function of one item, with its weights on `device`."""
        ...


@dataclass(frozen=True)
class Parcel:
    """A job on its way to a worker, and where the last bits of its results must be decided."""

    job: bytes
    device: str
    numerics: dict[str, Any]

    @property
    def name(self) -> str:
        """What tells this parcel from others: its hash."""
        return hashlib.sha256(self.job).hexdigest()


@contextmanager
def crew(executor: Executor, job: Job[I, T], device: torch.device) -> Iterator[Run[I, T]]:
    """Yield `run`: it computes items on the executor and yields (item, result) as they are done.

    Workers start once, on entering. Raises ReflowError when the executor cannot be had, or when
    the worker of one item is lost `TRIES` times; a ReflowError of the job itself at once.
    """
    if executor.kind == "in-process":
        call = job.on(device)
        yield lambda items: ((item, call(item)) for item in items)
        return
    parcel = Parcel(pickle.dumps(job), device.type, numerics(device, Compute()))
    start = {"processes": _processes, "ray": _ray, "dask": _dask}[executor.kind]
    with start(executor, parcel, executor.count(device)) as (submit, ahead):
        yield lambda items: _drive(submit, ahead, items)


Submit = Callable[[Any], "Future[Any]"]
Started = Iterator[tuple[Submit, int]]


def _drive(submit: Submit, ahead: int, items: Iterable[I]) -> Iterator[tuple[I, Any]]:
    """Keep `ahead` items under way, so that results never pile up; try a failed one again."""
    waiting, tries = deque(enumerate(items)), Counter[int]()
    running: dict[Future[Any], tuple[int, I]] = {}
    while waiting or running:
        while waiting and len(running) < ahead:
            number, item = waiting.popleft()
            running[submit(item)] = (number, item)
        for future in wait(running, return_when=FIRST_COMPLETED).done:
            number, item = running.pop(future)
            error = future.exception()
            if error is None:
                yield item, future.result()
                continue
            cause = getattr(error, "cause", None) or error  # Ray wraps what a worker raised
            if isinstance(cause, ReflowError):
                raise ReflowError(str(cause)) from None
            tries[number] += 1
            if tries[number] == TRIES:
                raise _failed(error)
            waiting.appendleft((number, item))


def _failed(error: BaseException) -> BaseException:
    lost = ("BrokenProcessPool", "WorkerCrashedError", "NodeDiedError", "KilledWorker")
    if type(error).__name__ not in (*lost, "OutOfMemoryError", "MemoryError"):
        return error
    return ReflowError(
        f"a worker was lost {TRIES} times over the same work ({type(error).__name__}): out of"
        " memory? lower `batch` or `shard`, or use fewer workers; what is finished is kept"
    )


# What a worker does.

_parcel: Parcel | None = None
_opened: tuple[str, Callable[[Any], Any]] | None = None


def _work(item: Any, parcel: Parcel | None = None) -> Any:
    """Compute an item of `parcel`, or of the one that this process was given when it started."""
    global _opened
    parcel = parcel or _parcel
    assert parcel is not None
    torch.set_num_threads(parcel.numerics.get("threads", 1))  # of this thread: Dask has several
    device = torch.device(parcel.device)
    if device.type == "cuda" and _seat is not None:
        device = torch.device("cuda", _seat % torch.cuda.device_count())
    here = numerics(device, Compute())
    if different := [k for k in parcel.numerics if here.get(k) != parcel.numerics[k]]:
        told = ", ".join(f"{k} {here.get(k)} for {parcel.numerics[k]}" for k in different)
        raise ReflowError(
            f"a worker computes other last bits than the stage ({told}); use workers of one kind:"
            " the same torch and the same GPU or CPU"
        )
    if _opened is None or _opened[0] != parcel.name:
        _opened = (parcel.name, pickle.loads(parcel.job).on(device))
    return _opened[1](item)


_seat: int | None = None


def _sit(parcel: Parcel, seat: int) -> None:
    """Begin a worker process: keep the parcel, leave Ctrl-C to the parent, die with the parent."""
    global _parcel, _seat
    _parcel, _seat = parcel, seat
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = parent_process()
    if parent is not None:
        sentinel = parent.sentinel

        def watch() -> None:
            wait_for([sentinel])
            os._exit(1)

        threading.Thread(target=watch, daemon=True).start()


# Who starts them.


class _Seat:
    """One worker process, replaced when it is lost: a pool of one, so that others work on."""

    def __init__(self, parcel: Parcel, number: int) -> None:
        self.arguments = (parcel, number)
        self.future: Future[Any] | None = None
        self._hire()

    def _hire(self) -> None:
        self.pool = ProcessPoolExecutor(
            1, get_context("spawn"), initializer=_sit, initargs=self.arguments
        )
        self.pid = self.pool.submit(os.getpid)

    @property
    def free(self) -> bool:
        return self.future is None or self.future.done()

    def submit(self, item: Any) -> "Future[Any]":
        try:
            self.future = self.pool.submit(_work, item)
        except BrokenProcessPool:
            self.pool.shutdown()
            self._hire()
            self.future = self.pool.submit(_work, item)
        return self.future

    def end(self) -> None:
        """End the worker, in the middle of an item if there is one."""
        if not self.free and self.pid.done() and not self.pid.exception():
            os.kill(self.pid.result(), signal.SIGKILL)
        self.pool.shutdown(cancel_futures=True)


@contextmanager
def _processes(executor: Executor, parcel: Parcel, count: int) -> Started:
    seats = [_Seat(parcel, number) for number in range(count)]
    try:
        yield lambda item: next(s for s in seats if s.free).submit(item), count
    finally:
        for seat in seats:
            seat.end()


@contextmanager
def _ray(executor: Executor, parcel: Parcel, count: int) -> Started:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    with _having("ray", executor):
        import ray

        threads, gpus = parcel.numerics.get("threads", 1), float(parcel.device == "cuda")
        remote = executor.address or os.environ.get("RAY_ADDRESS")
        if remote:
            import fmcore

            ray.init(remote, runtime_env={"py_modules": [fmcore]}, log_to_driver=False)
            share = "GPU" if gpus else "CPU"
            count = max(1, int(ray.cluster_resources().get(share, 1) / (gpus or threads)))
        else:
            ray.init(
                num_cpus=count * threads,
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.ERROR,
            )
    try:
        held = ray.put(parcel)
        task = ray.remote(num_cpus=threads, num_gpus=gpus, max_retries=0)(_work)
        yield lambda item: task.remote(item, held).future(), 2 * count
    finally:
        ray.shutdown()


@contextmanager
def _dask(executor: Executor, parcel: Parcel, count: int) -> Started:
    with ExitStack() as stack:
        with _having("dask", executor):
            from distributed import Client, LocalCluster, WorkerPlugin

            cluster = executor.address or stack.enter_context(
                LocalCluster(
                    n_workers=count,
                    threads_per_worker=1,
                    host="127.0.0.1",
                    dashboard_address=None,
                    worker_dashboard_address=None,
                    silence_logs="ERROR",
                )
            )
            client = stack.enter_context(Client(cluster, timeout=10))
            count = max(1, sum(client.nthreads().values()))

        class Hold(WorkerPlugin):
            """Gives the parcel to each worker, also to one that comes later."""

            name = f"reflow-{parcel.name}"

            def setup(self, worker: Any) -> None:
                import fmcore.executor as here

                here._parcel = parcel

        client.register_plugin(Hold())
        try:
            pool = client.get_executor(pure=False)
            yield lambda item: pool.submit(_work, item), 2 * count
        finally:
            client.unregister_worker_plugin(Hold.name)


@contextmanager
def _having(package: str, executor: Executor) -> Iterator[None]:
    """Say in one line that a package is not installed or a cluster cannot be reached."""
    try:
        yield
    except ImportError as error:
        raise ReflowError(
            f"executor {executor.kind}: {error.name or error} is not installed; `pip install"
            f" 'reflow-chain[{package}]'`, or use processes:N"
        ) from error
    except (OSError, RuntimeError, ValueError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ReflowError(
            f"executor {executor.address or executor.kind}: cannot be had ({reason[:200]}); start"
            " the cluster, or use processes:N"
        ) from error
