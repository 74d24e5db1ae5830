"""Mark flow runs as crashed whose process no longer exists.

There are two ways, because a dead process cannot report. On a server that keeps running, an
automation marks runs that sent no heartbeat for a while. And each run holds a file lock, which the
kernel releases however the process ends: the next run of the project finds locks without owner.
"""

import contextlib
import fcntl
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId
from prefect.client.schemas.objects import State, StateType
from prefect.client.schemas.sorting import TaskRunSort
from prefect.events.actions import ChangeFlowRunState
from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture
from prefect.events.schemas.events import ResourceSpecification
from prefect.exceptions import ObjectNotFound
from prefect.states import Crashed

FLOW = "reflow-chain"
DEPLOYED = "reflow"
"""The tag of every run that a deployment started."""

SILENCE = 100
"""Seconds without a heartbeat (there is one every 30 s) after which a run counts as dead."""

FORGET = 30 * 86400
"""Seconds after which the lock file of a dead run of some other server is removed."""

ENDED = ("Completed", "Failed", "Cancelled", "Cancelling", "Crashed", "TimedOut", "Paused")


def register(client: SyncPrefectClient, silence: float = SILENCE) -> None:
    """Register the two automations: end silent runs, continue crashed runs of a deployment."""
    for automation in (_end_silent(silence), _continue_crashed()):
        known = client.read_automations_by_name(automation.name)
        for extra in known[1:]:
            client.delete_automation(extra.id)
        if known:
            client.update_automation(known[0].id, automation)
        else:
            client.create_automation(automation)


def _end_silent(silence: float) -> AutomationCore:
    heartbeat, starts = "prefect.flow-run.heartbeat", "prefect.flow-run.Running"
    return AutomationCore(
        name="reflow: a run that fell silent has crashed",
        description="Its process was killed, or its machine died; what it finished is kept.",
        trigger=EventTrigger(
            match=ResourceSpecification({"prefect.resource.id": "prefect.flow-run.*"}),
            match_related=_related("flow", "name", FLOW),
            for_each={"prefect.resource.id"},
            after={heartbeat, starts},
            expect={heartbeat, *(f"prefect.flow-run.{state}" for state in ENDED)},
            posture=Posture.Proactive,
            threshold=1,
            within=timedelta(seconds=silence),
        ),
        actions=[
            ChangeFlowRunState(
                state=StateType.CRASHED,
                name=None,
                message=f"no sign of life for {silence:g} s: killed, or its machine died",
            )
        ],
    )


def _continue_crashed() -> AutomationCore:
    return AutomationCore(
        name="reflow: a crashed run of a deployment goes on",
        description="The same run, in the same worktree: finished stages are not repeated.",
        trigger=EventTrigger(
            match=ResourceSpecification({"prefect.resource.id": "prefect.flow-run.*"}),
            match_related=_related("tag", "id", f"prefect.tag.{DEPLOYED}"),
            for_each={"prefect.resource.id"},
            expect={"prefect.flow-run.Crashed"},
            posture=Posture.Reactive,
            threshold=1,
        ),
        actions=[
            ChangeFlowRunState(
                state=StateType.SCHEDULED, name="AwaitingRetry", message="it crashed: it goes on"
            )
        ],
    )


def _related(role: str, key: str, value: str) -> ResourceSpecification:
    return ResourceSpecification({"prefect.resource.role": role, f"prefect.resource.{key}": value})


@contextlib.contextmanager
def alive(root: Path, flow_run: str) -> Iterator[None]:
    """Hold the lock of a flow run while the block runs."""
    path = _folder(root) / flow_run
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


def mark_crashed(root: Path) -> list[str]:
    """Set the runs of this project whose process is dead to Crashed; return their names.

    Runs that the server in use does not know belong to another server, and stay as they are.
    """
    marked = []
    with get_client(sync_client=True) as client:
        for path in sorted(_folder(root).glob("*")):
            if (flow_run := _flow_run(path.name)) is None:
                continue
            with path.open("a") as file:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    continue  # its process exists
                try:
                    marked += _mark_crashed(client, flow_run)
                except ObjectNotFound:
                    if time.time() - path.stat().st_mtime < FORGET:
                        continue
                path.unlink(missing_ok=True)
    return marked


def _flow_run(name: str) -> UUID | None:
    """Return the flow run whose lock has this name; None for a file that is no lock of ours.

    >>> _flow_run(".DS_Store")
    """
    try:
        return UUID(name)
    except ValueError:
        return None


def _mark_crashed(client: SyncPrefectClient, flow_run: UUID) -> list[str]:
    found = client.read_flow_run(flow_run)
    if not _unfinished(found.state):
        return []
    said: State[None] = Crashed(message="its process is gone: killed, or the machine died")
    client.set_flow_run_state(flow_run, said)
    its = FlowRunFilter(id=FlowRunFilterId(any_=[flow_run]))
    for task_run in client.read_task_runs(flow_run_filter=its, sort=TaskRunSort.ID_DESC, limit=200):
        if _unfinished(task_run.state):
            client.set_task_run_state(task_run.id, said, force=True)
    return [found.name]


def _unfinished(state: "State[object] | None") -> bool:
    return state is not None and state.type in (StateType.RUNNING, StateType.CANCELLING)


def _folder(root: Path) -> Path:
    return root.resolve() / ".reflow" / "runs"
