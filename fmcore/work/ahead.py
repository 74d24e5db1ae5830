"""Items made by a thread while their consumer works on those before."""

import threading
from collections.abc import Generator, Iterable
from queue import Empty, Full, Queue
from typing import TypeVar

T = TypeVar("T")

PATIENCE = 0.1
"""Seconds after which a thread that waits looks whether the other one is still there."""


def ahead(items: Iterable[T], most: int = 2) -> Generator[T, None, None]:
    """Yield the items in their order, made by one thread; at most `most` of them wait.

    So a GPU goes on while finished shards are written and hashed by the caller. What the items
    raise is raised where the next one would have come. Closing ends the thread after the item that
    it is making.
    """
    ready: Queue[tuple[T, None] | tuple[None, BaseException]] = Queue(most)
    stopped = threading.Event()

    def put(found: tuple[T, None] | tuple[None, BaseException]) -> bool:
        while not stopped.is_set():
            try:
                ready.put(found, timeout=PATIENCE)
                return True
            except Full:
                continue
        return False

    def make() -> None:
        try:
            for item in items:
                if not put((item, None)):
                    return
            put((None, StopIteration()))
        except BaseException as error:
            put((None, error))

    thread = threading.Thread(target=make, name="ahead", daemon=True)
    thread.start()
    try:
        while True:
            try:
                item, error = ready.get(timeout=PATIENCE)  # Ctrl-C is seen between two waits
            except Empty:
                continue
            if isinstance(error, StopIteration):
                return
            if error is not None:
                raise error
            yield item  # type: ignore[misc]
    finally:
        stopped.set()
        thread.join()
