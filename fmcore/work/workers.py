"""Pure work computed by an executor, and computed again where a worker is lost.

A job is a pure function of its items, so an item has the same bytes wherever it is computed.
Workers run with the threads of the caller and refuse to run where rounding would differ
(`compute.numerics`).
"""

import pickle
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import ExitStack, closing, contextmanager
from typing import Any, Protocol, TypeVar

import torch

from fmcore import own
from fmcore.settings import ReflowError
from fmcore.work.ahead import ahead as made_ahead
from fmcore.work.compute import Compute, numerics
from fmcore.work.executor import Executor
from fmcore.work.pools import Submit, on_dask, on_processes, on_ray
from fmcore.work.worker import Payload

I = TypeVar("I")  # noqa: E741  an item
T = TypeVar("T")
Item = TypeVar("Item", contravariant=True)
Result = TypeVar("Result", covariant=True)
Run = Callable[[Iterable[I]], Iterator[tuple[I, T]]]

TRIES = 3
"""Number of times that an item is tried before its failure ends the work."""


class Job(Protocol[Item, Result]):
    """Work that can be sent to another process by pickle."""

    def on(self, device: torch.device) -> Callable[[Item], Result]:
        """Return the function of one item, with its weights on `device`."""
        ...


@contextmanager
def start_workers(
    executor: Executor, job: Job[I, T], device: torch.device, *, behind: bool | None = None
) -> Iterator[Run[I, T]]:
    """Yield `run`: it computes items on the executor and yields (item, result) as they are done.

    Workers start once, on entering. Raises ReflowError when the executor is unavailable, or when
    the worker of one item is lost `TRIES` times; a ReflowError of the job itself at once.
    `behind` says whether, without other processes, items are computed while the caller works on
    those before; by default so on a GPU. On a CPU both would share the same cores.
    """
    if executor.kind == "in-process":
        call = job.on(device)
        with ExitStack() as stack:

            def run(items: Iterable[I]) -> Iterator[tuple[I, T]]:
                if not (device.type == "cuda" if behind is None else behind):
                    return ((item, call(item)) for item in items)
                return stack.enter_context(closing(made_ahead(call, items)))

            yield run
        return
    payload = Payload(pickle.dumps(job), device.type, numerics(device, Compute()), own.in_use())
    start = {"processes": on_processes, "ray": on_ray, "dask": on_dask}[executor.kind]
    with start(executor.address, payload, executor.count(device)) as (submit, ahead):
        yield lambda items: _drive(submit, ahead, items)


def _drive(submit: Submit, ahead: int, items: Iterable[I]) -> Iterator[tuple[I, Any]]:
    """Keep `ahead` items in progress, so that results do not accumulate; retry a failed one."""
    given, again, tries = enumerate(items), deque[tuple[int, I]](), Counter[int]()
    running: dict[Future[Any], tuple[int, I]] = {}
    while True:
        while len(running) < ahead and (due := again.popleft() if again else next(given, None)):
            running[submit(due[1])] = due
        if not running:
            return
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
            again.append((number, item))


def _failed(error: BaseException) -> BaseException:
    lost = ("BrokenProcessPool", "WorkerCrashedError", "NodeDiedError", "KilledWorker")
    if type(error).__name__ not in (*lost, "OutOfMemoryError", "MemoryError"):
        return error
    return ReflowError(
        f"a worker was lost {TRIES} times over the same work ({type(error).__name__}): out of"
        " memory? lower `batch` or `shard`, or use fewer workers; finished work is kept"
    )
