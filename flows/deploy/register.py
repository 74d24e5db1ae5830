"""`reflow deploy`: the chain as a Prefect deployment, run on a schedule or from the Prefect UI."""

import contextlib
import os
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.client.schemas.objects import ConcurrencyLimitConfig, ConcurrencyLimitStrategy
from prefect.client.schemas.schedules import CronSchedule, IntervalSchedule
from prefect.exceptions import ObjectAlreadyExists
from prefect.settings import get_current_settings
from prefect.types.entrypoint import EntrypointType
from pydantic import ValidationError

from flows.deploy import worktree
from flows.deploy.order import Order
from flows.project import environment, servers
from flows.servers import automations, crashed, prefect_server
from fmcore.expected import mistake
from fmcore.settings import ReflowError

ENTRYPOINT = "flows.deploy.flow.scheduled"
"""A module, not a file: a project has no code of its own where reflow-chain is installed."""


@dataclass(frozen=True)
class Wanted:
    """How the deployment runs: name, schedule, runs at a time, time limit, retries, work pool.

    `notify` is the notification block that is told of failed gates and of better one-step models.
    """

    name: str = "chain"
    cron: str | None = None
    every: int | None = None
    limit: int = 1
    timeout: int | None = None
    retries: int = 1
    pool: str | None = None
    notify: str | None = None


def deploy(root: Path, wanted: Wanted, order: dict[str, Any], say: Any) -> None:
    """Register the chain; without a pool also serve its runs here, until Ctrl-C.

    Everything is checked before anything is registered. Raises ReflowError.
    """
    root = root.resolve()
    checked = _order(order)
    schedule = _schedule(wanted)
    worktree.check(root, checked)
    url, auth = _server(root)
    os.environ["PREFECT_API_URL"] = url  # for the processes of the runs
    if auth:
        os.environ["PREFECT_API_AUTH_STRING"] = auth
    with prefect_server.client_of(root, url) if auth else contextlib.nullcontext():
        _put(root, wanted, checked, schedule, say)


def _put(root: Path, wanted: Wanted, order: Order, schedule: Any, say: Any) -> None:
    from flows.deploy.flow import scheduled

    limits = {"REFLOW_RETRIES": str(wanted.retries), "REFLOW_TIMEOUT": str(wanted.timeout or 0)}
    shared: dict[str, Any] = {
        "schedule": schedule,
        "tags": [crashed.DEPLOYED],
        "parameters": {"order": order.model_dump(exclude_defaults=True)},
        "description": scheduled.__doc__,
        "enforce_parameter_schema": True,
    }
    limit = ConcurrencyLimitConfig(
        limit=wanted.limit, collision_strategy=ConcurrencyLimitStrategy.ENQUEUE
    )
    if wanted.cron:
        say(f"--cron {wanted.cron!r}: in the time zone {schedule.timezone}")
    with get_client(sync_client=True) as client:
        told = None if wanted.notify is None else automations.block(client, wanted.notify)
        crashed.register(client)
        automations.register(client, told)
        if wanted.pool is not None:
            with contextlib.suppress(ObjectAlreadyExists):
                client.create_work_pool(WorkPoolCreate(name=wanted.pool, type="process"))
    where = f"{crashed.FLOW}/{wanted.name}"
    if wanted.pool is None:
        os.environ.update(limits)
        say(f"serving {where}: start it from the Prefect UI; Ctrl-C stops")
        scheduled.serve(
            name=wanted.name, limit=wanted.limit, global_limit=limit, print_starting_message=False,
            entrypoint_type=EntrypointType.MODULE_PATH, **shared,
        )  # fmt: skip
        return
    remote: Any = scheduled.from_source(source=str(root), entrypoint=ENTRYPOINT)
    # Not remote.deploy(): it also asks for the pool's workers, by a request that servers refuse.
    remote.to_deployment(
        name=wanted.name, concurrency_limit=limit, work_pool_name=wanted.pool,
        job_variables={"env": {**limits, **environment.code_first()}}, **shared,
    ).apply()  # fmt: skip
    say(f"deployed {where}; start a worker here: prefect worker start --pool {wanted.pool}")


def _order(given: dict[str, Any]) -> Order:
    try:
        return Order.model_validate(given)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        known = ", ".join(Order.model_fields)
        raise ReflowError(f"order: {place}: {mistake(first)}; parameters are: {known}") from None


def _schedule(wanted: Wanted) -> CronSchedule | IntervalSchedule | None:
    if wanted.cron and wanted.every:
        raise ReflowError("--cron and --every: one of them, or none")
    try:
        if wanted.cron:
            return CronSchedule(cron=wanted.cron, timezone=_timezone())
        if wanted.every:
            return IntervalSchedule(interval=timedelta(seconds=wanted.every))
    except ValidationError:
        raise ReflowError(
            f"--cron: {wanted.cron!r} is no schedule; five fields expected: minute hour day month"
            " weekday, '0 2 * * *' for two at night"
        ) from None
    return None


def _timezone(localtime: Path = Path("/etc/localtime")) -> str:
    """Return the time zone of TZ, else that of this machine; UTC where neither is known."""
    machines = localtime.resolve().as_posix().partition("/zoneinfo/")[2].removeprefix("posix/")
    for name in (os.environ.get("TZ", "").removeprefix(":"), machines):
        with contextlib.suppress(Exception):
            return ZoneInfo(name).key
    return "UTC"


def _server(root: Path) -> tuple[str, str]:
    """Return the API of the server to deploy to and its password; PREFECT_API_URL comes first."""
    settings = get_current_settings()
    if url := settings.api.url:
        if not servers.speaks(f"{url.rstrip('/')}/health"):
            raise ReflowError(f"PREFECT_API_URL: {url} does not answer; start that server")
        return url, ""
    kept = servers.living(root)
    if kept is None or not kept.prefect:
        raise ReflowError(
            "a deployment needs a Prefect server that keeps running: start `reflow ui` in another"
            " shell, or set PREFECT_API_URL"
        )
    return f"{kept.prefect}/api", servers.auth_string(root)
