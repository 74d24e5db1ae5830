"""The Prefect flow: one task run per DVC stage, with the edges of DVC's graph.

Prefect's own cache stays off: DVC alone decides what is up to date, and such a stage is shown
as Cached. Set the environment (`home.configure`) before importing this file.
"""

from contextvars import ContextVar
from functools import partial
from pathlib import Path
from typing import Any

from prefect import flow, runtime, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun
from prefect.events.worker import EventsWorker
from prefect.futures import PrefectFuture, wait
from prefect.logging import get_run_logger
from prefect.logging.handlers import APILogWorker
from prefect.states import Completed
from prefect.task_runners import ThreadPoolTaskRunner

from flows import artifacts, dag, records
from flows.schedule import RETRIES, RETRY_DELAYS, Session, may_pass, select
from flows.server import serving
from fmcore.settings import ReflowError

# One thread per stage and more: a task that waits for another occupies one.
_threads: Any = ThreadPoolTaskRunner(max_workers=256)

_session: ContextVar[Session] = ContextVar("session")


def _worth_another_try(task: Any, task_run: TaskRun, state: State[Any]) -> bool:
    return may_pass(state.data) and not _session.get().processes.stopped


@task(
    name="stage",
    task_run_name="{name}",
    cache_policy=NO_CACHE,
    persist_result=False,
    retries=RETRIES,
    retry_delay_seconds=list(RETRY_DELAYS),
    retry_condition_fn=_worth_another_try,
)
def stage(name: str) -> Any:
    """Bring one stage of dvc.yaml up to date; its lines are the log of the task run."""
    session, log = _session.get(), get_run_logger()
    outcome = session.perform(name, log.info)
    if outcome.state == "cached":
        return Completed(name="Cached", message="DVC: unchanged")
    with records.best_effort(log.warning):
        artifacts.materialised(session.root, session.stages, name)
    return Completed(message=f"ran, because: {'; '.join(outcome.reasons)}")


@flow(name="reflow-chain", task_runner=_threads)
def chain(root: str, targets: list[str] | None = None) -> None:
    """Bring every stage of dvc.yaml up to date, or only `targets` and what they depend on."""
    session = _session.get(None)
    if session is None:  # started by a Prefect deployment, not by `reflow run`
        session = Session(Path(root), select(dag.read(Path(root)), targets))
        session.closing = partial(records.close, session.root, say=get_run_logger().info)
        _session.set(session)
    session.flow_run = str(runtime.flow_run.id or "")
    futures: dict[str, PrefectFuture[Any]] = {}
    try:
        for name, described in session.stages.items():
            upstream = [futures[up] for up in described.upstream]
            futures[name] = stage.submit(name, wait_for=upstream, return_state=False)
        wait(list(futures.values()))
        session.close()
    except BaseException:
        session.processes.stop()
        raise
    report = session.report()
    if not report.ok:
        raise ReflowError("\n".join(report.errors) or "the run was stopped")


def run(session: Session) -> None:
    """Run the flow for a session; what became of the stages is in the session afterwards."""
    token = _session.set(session)
    try:
        with serving(session.root):
            state = chain(str(session.root), list(session.stages), return_state=True)
            # The last lines and events go out in the background: before the server goes.
            APILogWorker.drain_all(timeout=10)
            EventsWorker.drain_all(timeout=10)
    finally:
        _session.reset(token)
    if session.report().ok or session.report().errors:
        return
    if isinstance(state.data, BaseException):
        raise state.data
    raise ReflowError(f"Prefect ended the run: {state.name}: {state.message}")
