"""Starting the workers: processes on this machine, Ray, Dask."""

import logging
import os
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, contextmanager
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from fmcore.settings import ReflowError
from fmcore.work.worker import Payload, start_worker, work

Submit = Callable[[Any], "Future[Any]"]
Started = Iterator[tuple[Submit, int]]
"""The function that submits an item, and the number of items to keep in progress."""

TOKEN = ", give its token (RAY_AUTH_TOKEN, or the file ~/.ray/auth_token)"


class _Worker:
    """One worker process, replaced when it is lost: a pool of one, so that others continue."""

    def __init__(self, payload: Payload, number: int) -> None:
        self.arguments = (payload, number)
        self.future: Future[Any] | None = None
        self._start()

    def _start(self) -> None:
        self.pool = ProcessPoolExecutor(
            1, get_context("spawn"), initializer=start_worker, initargs=self.arguments
        )
        self.pid = self.pool.submit(os.getpid)

    @property
    def free(self) -> bool:
        return self.future is None or self.future.done()

    def submit(self, item: Any) -> "Future[Any]":
        try:
            self.future = self.pool.submit(work, item)
        except BrokenProcessPool:
            self.pool.shutdown()
            self._start()
            self.future = self.pool.submit(work, item)
        return self.future

    def end(self) -> None:
        """Stop the worker, even while it computes an item."""
        if not self.free and self.pid.done() and not self.pid.exception():
            os.kill(self.pid.result(), signal.SIGKILL)
        self.pool.shutdown(cancel_futures=True)


@contextmanager
def on_processes(address: str | None, payload: Payload, count: int) -> Started:
    """Worker processes on this machine, one process each."""
    workers = [_Worker(payload, number) for number in range(count)]
    try:
        yield lambda item: next(s for s in workers if s.free).submit(item), count
    finally:
        for process in workers:
            process.end()


@contextmanager
def on_ray(address: str | None, payload: Payload, count: int) -> Started:
    """Tasks of Ray: on a running cluster, or a new one on this machine."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    remote = address or os.environ.get("RAY_ADDRESS")
    token = "RAY_AUTH_TOKEN" in os.environ or (Path.home() / ".ray" / "auth_token").exists()
    if remote and token:  # the client does not read it itself
        os.environ.setdefault("RAY_AUTH_MODE", "token")
    with _having("ray", address):
        import ray

        threads, gpus = payload.numerics.get("threads", 1), float(payload.device == "cuda")
        if remote:
            import fmcore

            package = str(Path(fmcore.__file__).parent)
            ray.init(remote, runtime_env={"py_modules": [package]}, log_to_driver=False)
            share = "GPU" if gpus else "CPU"
            count = max(1, int(ray.cluster_resources().get(share, 1) / (gpus or threads)))
        else:
            ray.init(
                "local",  # not a cluster that happens to run here
                num_cpus=count * threads,
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.ERROR,
            )
    try:
        held = ray.put(payload)
        task = ray.remote(num_cpus=threads, num_gpus=gpus, max_retries=0)(work)
        yield lambda item: task.remote(item, held).future(), 2 * count
    finally:
        ray.shutdown()


@contextmanager
def on_dask(address: str | None, payload: Payload, count: int) -> Started:
    """Tasks of Dask: on a running cluster, or a new one on this machine."""
    with ExitStack() as stack:
        with _having("dask", address):
            from distributed import Client, LocalCluster, WorkerPlugin

            cluster = address or stack.enter_context(
                LocalCluster(
                    n_workers=count,
                    threads_per_worker=1,
                    host="127.0.0.1",
                    dashboard_address=None,
                    worker_dashboard_address=None,
                    # Without a dashboard it still serves on port 8787, which another may have.
                    scheduler_kwargs={"dashboard_address": "127.0.0.1:0"},
                    silence_logs="ERROR",
                )
            )
            client = stack.enter_context(Client(cluster, timeout=10))
            count = max(1, sum(client.nthreads().values()))

        class Hold(WorkerPlugin):
            """Gives the payload to each worker, also to one that starts later."""

            name = f"reflow-{payload.name}"

            def setup(self, worker: Any) -> None:
                import fmcore.work.worker as here

                here._payload = payload

        client.register_plugin(Hold())
        try:
            pool = client.get_executor(pure=False)
            yield lambda item: pool.submit(work, item), 2 * count
        finally:
            client.unregister_worker_plugin(Hold.name)


@contextmanager
def _having(package: str, address: str | None) -> Iterator[None]:
    """Raise a one-line ReflowError if a package is missing or a cluster cannot be reached."""
    try:
        yield
    except ImportError as error:
        raise ReflowError(
            f"executor {package}: {error.name or error} is not installed; `pip install"
            f" 'reflow-chain[{package}]'`, or use processes:N"
        ) from error
    except (OSError, RuntimeError, ValueError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ReflowError(
            f"executor {address or package}: is not available ({reason[:200]}); start the cluster"
            f"{TOKEN if package == 'ray' else ''}, or use processes:N"
        ) from error
