"""Run the chain: every stage of dvc.yaml once, each as soon as what it depends on is there."""

import contextlib
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import FrameType

from flows import dag, home
from flows.execute import Processes
from flows.schedule import (
    RETRIES,
    RETRY_DELAYS,
    Closing,
    Observer,
    OnLine,
    Report,
    Say,
    Session,
    may_pass,
    select,
)
from fmcore.settings import ReflowError


def run(
    root: Path,
    *,
    targets: list[str] | None = None,
    prefect: bool = True,
    observer: Observer | None = None,
    on_line: OnLine | None = None,
    closing: Closing | None = None,
    say: Say = lambda _: None,
) -> Report:
    """Bring the chain up to date, or only `targets` and what they depend on.

    With Prefect each stage is a task run of the flow `reflow-chain`; without, the same schedule
    runs in threads alone. A failing stage blocks only its dependents. Interrupted (Ctrl-C,
    SIGTERM), every process of the run ends; the next run goes on where this one stopped.
    """
    root = root.resolve()
    home.configure(root)
    stages = select(dag.read(root), targets)
    session = Session(root, stages, observer, on_line, closing, say=say)
    with _ends_its_processes(session.processes):
        if prefect:
            from flows import chain  # imports Prefect: slow, and only after home.configure

            told = chain.run(session)
        if not prefect or not told:
            _run_in_threads(session)
            session.close()
    return session.report()


def _run_in_threads(session: Session) -> None:
    def work(name: str, upstream: list[Future[bool]]) -> bool:
        if not all([future.result() for future in upstream]):
            return False
        if name in session.reports:  # a server of Prefect's that went away had it run
            return session.reports[name].state != "failed"
        for attempt in range(RETRIES + 1):
            try:
                session.perform(name, lambda line: None)
                return True
            except ReflowError as error:
                if not may_pass(error) or attempt == RETRIES or session.processes.stopped:
                    return False
            time.sleep(RETRY_DELAYS[attempt])
        return False

    futures: dict[str, Future[bool]] = {}
    pool = ThreadPoolExecutor(max_workers=max(1, len(session.stages)))
    try:
        for name, stage in session.stages.items():
            futures[name] = pool.submit(work, name, [futures[up] for up in stage.upstream])
        for future in futures.values():
            future.result()
    except BaseException:
        session.processes.stop()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


@contextlib.contextmanager
def _ends_its_processes(processes: Processes) -> Iterator[None]:
    """End the processes when the run is interrupted; SIGTERM interrupts like Ctrl-C."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    main = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGTERM, interrupt) if main else None
    try:
        yield
    except BaseException:
        processes.stop()
        raise
    finally:
        if main:
            signal.signal(signal.SIGTERM, before)
