"""The commands that keep servers and schedules: `reflow ui`, `reflow env`, `reflow deploy`."""

import shlex
from typing import Annotated

import typer

from flows.console import one_line_errors, project, say

Port = Annotated[int | None, typer.Option(min=1, max=65535, help="Default: a free port.")]


def ui(prefect_port: Port = None, mlflow_port: Port = None) -> None:
    """Serve Prefect's and MLflow's pages of this project on loopback until Ctrl-C."""
    with one_line_errors():
        root = project()
        from flows import ui as pages  # imports Prefect, which reads the environment then

        pages.serve(root, prefect_port=prefect_port, mlflow_port=mlflow_port, say=say)


def env() -> None:
    """Print what points `prefect` and `mlflow` at this project: eval "$(reflow env)"."""
    with one_line_errors():
        root = project()
        from flows.service import environment

        for name, value in environment(root).items():
            print(f"export {name}={shlex.quote(value)}")
