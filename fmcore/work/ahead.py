"""Results computed by threads while their consumer works on those before."""

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

I = TypeVar("I")  # noqa: E741  an item
T = TypeVar("T")


def ahead(
    call: Callable[[I], T], items: Iterable[I], at_once: int = 2
) -> Generator[tuple[I, T], None, None]:
    """Yield (item, call(item)) in the order of the items; at most `at_once` + 1 are begun.

    So a GPU goes on while finished shards are written and hashed by the caller, and, as there are
    two threads, while the noise of the next shard is drawn and the last one is packed: what needs
    the GPU waits its turn in `Flow`. What a call raises is raised where its result would have come.
    Closing ends the threads after the items that they work on.
    """
    pool, given = ThreadPoolExecutor(at_once, thread_name_prefix="ahead"), iter(items)
    begun: deque[tuple[I, Future[T]]] = deque()
    try:
        while True:
            for item in islice(given, at_once + 1 - len(begun)):
                begun.append((item, pool.submit(call, item)))
            if not begun:
                return
            yield begun[0][0], _next(begun)
    finally:
        pool.shutdown(cancel_futures=True)


def _next(begun: deque[tuple[I, Future[T]]]) -> T:
    """Return the next result and keep no reference to it, so that it lives as its user wants."""
    return begun.popleft()[1].result()
