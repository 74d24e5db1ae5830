"""The Prefect flow: one task run per DVC stage, with the edges of DVC's graph.

Prefect's own cache stays off: DVC alone decides what is up to date, and such a stage is shown
as Cached. Set the environment (`home.configure`) before importing this file.
"""

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
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

from flows import artifacts, records, service, zombies
from flows.schedule import RETRIES, RETRY_DELAYS, Session, may_pass
from flows.server import serving
from fmcore.settings import ReflowError

# One thread per stage and more: a task that waits for another occupies one.
threads: Any = ThreadPoolTaskRunner(max_workers=256)

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


def perform(session: Session) -> None:
    """Run a session's stages as tasks of the flow run that is under way."""
    session.flow_run = str(runtime.flow_run.id or "")
    futures: dict[str, PrefectFuture[Any]] = {}
    with zombies.alive(session.root, session.flow_run):
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


@contextlib.contextmanager
def entered(session: Session) -> Iterator[None]:
    """Let the tasks of the block find the session."""
    token = _session.set(session)
    try:
        yield
    finally:
        _session.reset(token)


@flow(name=zombies.FLOW, task_runner=threads)
def chain(root: str, targets: list[str] | None = None) -> None:
    """Bring every stage of dvc.yaml up to date, or only `targets` and what they depend on."""
    perform(_session.get())


def run(session: Session) -> bool:
    """Run the flow for a session; what became of the stages is in the session afterwards.

    False when the server went away meanwhile: it was said, and stages may be
    left to run.
    """
    with entered(session), serving(session.root) as url:
        with records.best_effort(session.say, "Prefect: runs that died were not looked for"):
            for name in zombies.bury(session.root):
                session.say(f"Prefect: the run {name} had died; it is marked as crashed")
        try:
            state = chain(str(session.root), list(session.stages), return_state=True)
            # The last lines and events go out in the background: before the server goes.
            APILogWorker.drain_all(timeout=10)
            EventsWorker.drain_all(timeout=10)
        except Exception:
            if service.answers(f"{url}/health"):
                raise
            session.say(
                "Prefect's server went away: what came after was not reported to it; the work goes"
                " on without"
            )
            return False
    if session.report().ok or session.report().errors:
        return True
    if not service.answers(f"{url}/health"):
        return False
    if isinstance(state.data, BaseException):
        raise state.data
    raise ReflowError(f"Prefect ended the run: {state.name}: {state.message}")
