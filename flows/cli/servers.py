"""The commands for servers and schedules: `reflow ui`, `reflow env`, `reflow deploy`."""

import json
import shlex
from typing import Annotated, Any

import typer

from flows.cli.console import AsJson, one_line_errors, project, say
from flows.project.environment import code_first
from flows.tracking import moved
from fmcore.settings import ReflowError

Port = Annotated[int | None, typer.Option(min=1, max=65535, help="Default: a free port.")]


def ui(prefect_port: Port = None, mlflow_port: Port = None) -> None:
    """Serve the Prefect UI and the MLflow UI of this project on loopback until Ctrl-C."""
    with one_line_errors():
        root = project()
        from flows.servers import (
            serve as pages,  # imports Prefect, which reads the environment then
        )

        moved.correct(root)
        pages.serve(root, prefect_port=prefect_port, mlflow_port=mlflow_port, say=say)


def env(as_json: AsJson = False) -> None:
    """Print variables that direct `prefect` and `mlflow` to this project: eval "$(reflow env)"."""
    with one_line_errors():
        root = project()
        from flows.project.servers import environment

        moved.correct(root)
        found = environment(root) | code_first()
        if as_json:
            print(json.dumps(found, indent=2))
            return
        for name, value in found.items():
            print(f"export {name}={shlex.quote(value)}")


def deploy(  # noqa: PLR0913  # each is an option of the command
    name: Annotated[str, typer.Option(help="Name of the deployment.")] = "chain",
    cron: Annotated[
        str | None,
        typer.Option(help="Cron: '0 2 * * *' for 2:00 each day, in the time zone of TZ or here."),
    ] = None,
    every: Annotated[int | None, typer.Option(min=30, help="Or an interval in seconds.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="Runs at a time; one per GPU.")] = 1,
    retries: Annotated[int, typer.Option(min=0, help="How often a failed run is tried again.")] = 1,
    timeout: Annotated[int | None, typer.Option(min=1, help="Seconds that a run may take.")] = None,
    pool: Annotated[
        str | None, typer.Option(help="Register for this process work pool; do not run it here.")
    ] = None,
    notify: Annotated[
        str | None,
        typer.Option(help="Prefect's notification block, TYPE/NAME, that its automations tell."),
    ] = None,
    order: Annotated[
        str, typer.Option(help='Parameters of its runs, JSON: {"seed": 1, "rev": "main"}.')
    ] = "{}",
) -> None:
    """Register the chain with Prefect: runs on a schedule or from the Prefect UI, in worktrees."""
    with one_line_errors():
        root = project()
        from flows.deploy.register import Wanted
        from flows.deploy.register import deploy as register

        wanted = Wanted(name, cron, every, limit, timeout, retries, pool, notify)
        register(root, wanted, _json(order), say)


def _json(text: str) -> dict[str, Any]:
    try:
        given = json.loads(text)
    except ValueError as error:
        raise ReflowError(f'--order: not JSON ({error}); for one: {{"seed": 1}}') from None
    if not isinstance(given, dict):
        raise ReflowError(f"--order: expected a mapping, got {text[:80]}")
    return given
