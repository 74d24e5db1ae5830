"""Run the chain: every stage of dvc.yaml once, each as soon as its dependencies are done."""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import FrameType

from flows.dag import absent, plan
from flows.dag.receipts import timings
from flows.project import environment, servers
from flows.project.journal import Journal, StageLine, State, path_of
from flows.run.repro import Processes
from flows.run.schedule import (
    RETRIES,
    RETRY_DELAYS,
    ChainRun,
    Listeners,
    RunResult,
    may_pass,
    select,
)
from flows.run.warm import warmed
from fmcore.settings import ReflowError
from fmcore.verdict.drawing import data_name


def update_chain(
    root: Path,
    *,
    targets: list[str] | None = None,
    prefect: bool = True,
    pull: bool = False,
    listeners: Listeners = Listeners(),  # noqa: B008  frozen
) -> RunResult:
    """Bring the chain up to date, or only `targets` and what they depend on.

    With Prefect each stage is a task run of the flow `reflow-chain`; without, the same schedule
    runs in threads alone. With `pull`, stages that anyone ran before come from the default remote.
    Raises ReflowError before anything starts if a stage that runs needs a path that is not there.
    A failing stage blocks only its dependents. If the run is interrupted (Ctrl-C, SIGTERM), all of
    its processes end; the next run continues where this one stopped.
    """
    root = root.resolve()
    environment.configure(root)
    if pull:
        _ask_the_remote(root)
    stages, planned = plan.read_and_plan(root)
    unchanged = frozenset(p.stage for p in planned if p.state == "unchanged")
    chain_run = ChainRun(root, select(stages, targets), listeners, pull, unchanged=unchanged)
    absent.refuse(p for p in planned if p.stage in chain_run.stages)
    if chain_run.nothing_to_do and not _prefect_runs_already(root):
        prefect = False  # do not start a server only to report that nothing ran
    url = os.environ.get("PREFECT_API_URL", "")
    if prefect and url and not servers.speaks(f"{url.rstrip('/')}/health"):
        prefect = False  # Prefect itself would wait a minute for each of many answers
        listeners.say(f"Prefect: {url} does not answer; the run is not recorded there")
    run = [stage for name, stage in chain_run.stages.items() if name not in unchanged]
    with (
        recorded(chain_run),
        _ends_its_processes(chain_run.processes),
        warmed(root, run, chain_run.processes),
    ):
        if prefect:
            from flows.run import (
                flow,  # imports Prefect: slow, and only after environment.configure
            )

            told = flow.run_as_flow(chain_run)
        if not prefect or not told:
            _run_in_threads(chain_run)
            chain_run.close()
    return chain_run.result()


@contextlib.contextmanager
def recorded(chain_run: ChainRun) -> Iterator[None]:
    """Write the journal of the run in the block; an interrupted stage has been stopped.

    A run that has nothing to do writes none: another one may be under way, whose it would replace.
    """
    if chain_run.nothing_to_do:
        yield
        return
    took = {stage: seconds for (stage, _), seconds in timings(chain_run.root).items()}
    stages = [
        StageLine(name, list(stage.upstream), stage.paths.get("curve", ""), took.get(name))
        for name, stage in chain_run.stages.items()
    ]
    chain_run.journal = journal = Journal(path_of(chain_run.root), _title(chain_run), stages)
    try:
        yield
    finally:
        ends: dict[str, State] = {n: r.state for n, r in chain_run.result().stages.items()}
        if chain_run.processes.stopped:
            running = {name for name, state in ends.items() if state == "failed"}
            ends |= dict.fromkeys(running, "stopped")
        journal.end(ends)


def _title(chain_run: ChainRun) -> str:
    """Return what a run is of: the name of its data; of a chain without any, its folder's."""
    prepare = chain_run.stages.get("prepare")
    found = prepare.params.get("params.yaml", {}).get("data") if prepare else None
    return data_name(found if isinstance(found, dict) else None) or chain_run.root.name


def _ask_the_remote(root: Path) -> None:
    """Raise ReflowError now, not in each stage, if there is no remote or it does not answer."""
    from flows.dag.outputs import store

    nothing = "0" * 32 + ".dir"  # a hash that nothing has
    store.held(root, store.default_remote(root), [nothing])


def _prefect_runs_already(root: Path) -> bool:
    """Whether a Prefect server of the user, or of `reflow ui`, runs already."""
    if os.environ.get("PREFECT_API_URL"):
        return True
    kept = servers.living(root)
    return bool(kept and kept.prefect)


def _run_in_threads(chain_run: ChainRun) -> None:
    def work(name: str, upstream: list[Future[bool]]) -> bool:
        if not all([future.result() for future in upstream]):
            return False
        if name in chain_run.results:  # it ran before the Prefect server stopped
            return chain_run.results[name].state != "failed"
        for attempt in range(RETRIES + 1):
            try:
                chain_run.update(name, lambda line: None)
                return True
            except ReflowError as error:
                if not may_pass(error) or attempt == RETRIES or chain_run.processes.stopped:
                    return False
            time.sleep(RETRY_DELAYS[attempt])
        return False

    futures: dict[str, Future[bool]] = {}
    pool = ThreadPoolExecutor(max_workers=max(1, len(chain_run.stages)))
    try:
        for name, stage in chain_run.stages.items():
            futures[name] = pool.submit(work, name, [futures[up] for up in stage.upstream])
        for future in futures.values():
            future.result()
    except BaseException:
        chain_run.processes.stop()
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
