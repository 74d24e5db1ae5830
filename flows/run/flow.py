"""The Prefect flow: one task run per DVC stage, with the edges of DVC's graph.

Prefect's own cache stays off: DVC alone decides what is up to date, and such a stage is shown
as Cached. Set the environment (`environment.configure`) before importing this file.
"""

import contextlib
import logging
import threading
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any

from prefect import flow, runtime, tags, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun
from prefect.context import FlowRunContext
from prefect.events.worker import EventsWorker
from prefect.futures import PrefectFuture, wait
from prefect.logging import get_run_logger
from prefect.logging.handlers import APILogWorker
from prefect.states import Cancelled, Completed
from prefect.task_runners import ThreadPoolTaskRunner

from flows.project import servers
from flows.run import artifacts, closing, notices
from flows.run.about import About, about
from flows.run.schedule import RETRIES, RETRY_DELAYS, ChainRun, may_pass
from flows.servers import crashed
from flows.servers.prefect_server import serving
from fmcore.settings import ReflowError

# More threads than stages: a task that waits for another one occupies a thread.
threads: Any = ThreadPoolTaskRunner(max_workers=256)

_current: ContextVar[ChainRun] = ContextVar("chain_run")


def _worth_another_try(task: Any, task_run: TaskRun, state: State[Any]) -> bool:
    return may_pass(state.data) and not _current.get().processes.stopped


@task(
    name="stage",
    task_run_name="{name}",
    cache_policy=NO_CACHE,
    persist_result=False,
    retries=RETRIES,
    retry_delay_seconds=list(RETRY_DELAYS),
    retry_condition_fn=_worth_another_try,
)
def stage_task(name: str) -> Any:
    """Bring one stage of dvc.yaml up to date; the lines it prints are the log of the task run."""
    chain_run, log = _current.get(), get_run_logger()
    try:
        outcome = chain_run.update(name, log.info)
    except ReflowError:
        if _suspension().is_requested():
            return Cancelled(name="Suspended", message="Resume goes on from its checkpoint")
        raise
    finally:
        with closing.best_effort(log.warning):
            notices.gates(name, chain_run.judged.pop(name, ()))
    if outcome.state == "cached":
        return Completed(name="Cached", message="DVC: unchanged")
    with closing.best_effort(log.warning):
        artifacts.materialised(chain_run.root, chain_run.stages, name)
        if name.startswith("evaluate@"):
            artifacts.rounds_so_far(chain_run)
    return Completed(message=f"ran, because: {'; '.join(outcome.reasons)}")


def _suspension() -> Any:
    """Return what knows whether someone suspended the flow run in the Prefect UI."""
    context = FlowRunContext.get()
    assert context, "called in a flow run"
    return context.flow_run_suspension_request


@contextlib.contextmanager
def _stopped_if_suspended(chain_run: ChainRun) -> Iterator[None]:
    """End the stages that run when the run is suspended; Prefect alone would let them finish."""
    asked, ended = _suspension(), threading.Event()

    def watch() -> None:
        while not ended.wait(1.0):
            if asked.is_requested():
                chain_run.processes.stop()
                return

    threading.Thread(target=watch, name="suspension", daemon=True).start()
    try:
        yield
    finally:
        ended.set()
    asked.raise_if_requested()


def submit_stages(chain_run: ChainRun) -> None:
    """Run the stages as tasks of the flow run that is under way."""
    chain_run.flow_run = str(runtime.flow_run.id or "")
    futures: dict[str, PrefectFuture[Any]] = {}
    with crashed.alive(chain_run.root, chain_run.flow_run), _stopped_if_suspended(chain_run):
        try:
            for name, described in chain_run.stages.items():
                upstream = [futures[up] for up in described.upstream]
                named = stage_task.with_options(name=name)  # so it has its name before it begins
                futures[name] = named.submit(name, wait_for=upstream, return_state=False)
            wait(list(futures.values()))
            chain_run.close()
        except BaseException:
            chain_run.processes.stop()
            raise
    result = chain_run.result()
    if not result.ok:
        raise ReflowError("\n".join(result.errors) or "the run was stopped")


@contextlib.contextmanager
def entered(chain_run: ChainRun) -> Iterator[None]:
    """Make the chain_run available to the tasks in the block."""
    token = _current.set(chain_run)
    try:
        yield
    finally:
        _current.reset(token)


@flow(name=crashed.FLOW, task_runner=threads)
def reflow_chain(data: str, seed: int, rounds: list[str], to_run: list[str], project: str) -> None:
    """Bring the stages of a chain up to date; those `to_run` are not, as the run begins."""
    submit_stages(_current.get())


def run_as_flow(chain_run: ChainRun) -> bool:
    """Run the flow for a chain_run, which has the results of the stages afterwards.

    Returns False if the server stopped meanwhile: the user was told, and some stages may not have
    run yet. The chain_run has no flow run then, because nothing more can be reported to it.
    """
    told = _run(chain_run)
    if not told:
        chain_run.flow_run = ""
    return told


def _run(chain_run: ChainRun) -> bool:
    say = chain_run.listeners.say
    with entered(chain_run), serving(chain_run.root) as url:
        with closing.best_effort(say, "Prefect: crashed runs were not looked for"):
            for name in crashed.mark_crashed(chain_run.root):
                say(f"Prefect: the run {name} had died; it is marked as crashed")
        own = About(chain_run.root.name, "", 0, [], list(chain_run.stages))
        with closing.best_effort(say, "Prefect: the run has no name of its own"):
            own = about(chain_run)
        try:
            with tags(*own.tags):
                state = reflow_chain.with_options(flow_run_name=own.name)(
                    own.data, own.seed, own.rounds, own.to_run, chain_run.root.name,
                    return_state=True,
                )  # fmt: skip
            # The last lines and events are sent in the background: wait before the server stops.
            APILogWorker.drain_all(timeout=10)
            EventsWorker.drain_all(timeout=10)
        except Exception:
            if servers.speaks(f"{url}/health"):
                raise
            say(
                "Prefect's server went away: later events were not reported to it; the work goes on"
                " without it"
            )
            return False
        except BaseException:  # interrupted: the server stops with unsent lines, about which its
            logging.raiseExceptions = False  # client would print several of its own
            raise
    if chain_run.result().ok or chain_run.result().errors:
        return True
    if not servers.speaks(f"{url}/health"):
        return False
    if isinstance(state.data, BaseException):
        raise state.data
    raise ReflowError(f"Prefect ended the run: {state.name}: {state.message}")
