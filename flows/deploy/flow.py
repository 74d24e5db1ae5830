"""The flow that a deployment runs, `flows.deploy.flow.scheduled`: one worktree for each run.

Prefect imports this module in a separate process, started in the project's folder.
"""

import os
from pathlib import Path
from typing import Any

from flows.project.environment import configure, find_root

ROOT = find_root(Path.cwd())
configure(ROOT)  # before Prefect is imported: it reads the environment then

from prefect import flow, get_run_logger, runtime  # noqa: E402

from flows.dag import plan  # noqa: E402
from flows.deploy import worktree  # noqa: E402
from flows.deploy.order import Order  # noqa: E402
from flows.run import closing  # noqa: E402
from flows.run.flow import entered, submit_stages, threads  # noqa: E402
from flows.run.schedule import ChainRun, Listeners, RunResult, select  # noqa: E402
from flows.servers import crashed  # noqa: E402
from flows.tracking.live import Live  # noqa: E402

# A deployment stores neither retries nor a time limit: `reflow deploy` sets them by environment.
_RETRIES = int(os.environ.get("REFLOW_RETRIES", "1"))
_TIMEOUT = int(os.environ.get("REFLOW_TIMEOUT", "0")) or None
_runner: Any = threads


@flow(
    name=crashed.FLOW,
    task_runner=_runner,
    retries=_RETRIES,
    retry_delay_seconds=30,
    timeout_seconds=_TIMEOUT,
)
def scheduled(order: Order = Order()) -> None:  # noqa: B008  Prefect makes its form from it
    """Run the chain of a commit, with changed parameters, in a separate git worktree.

    The result is a commit on the branch `reflow/<name of the run>`: parameters, dvc.lock and
    metrics; couplings and models are in DVC's cache, which the worktree shares.
    """
    log = get_run_logger()
    name = f"{runtime.flow_run.name}-{str(runtime.flow_run.id)[:8]}"
    folder = worktree.make(ROOT, order, name)
    log.info("worktree %s, branch %s", folder, worktree.branch(name))
    done = False
    try:
        live = Live(folder, log.info)

        def close(result: RunResult) -> None:
            live.close()
            closing.close(folder, result, say=log.info)

        stages, planned = plan.read_and_plan(folder)
        unchanged = frozenset(p.stage for p in planned if p.state == "unchanged")
        listeners = Listeners(on_event=live.event, closing=close, say=log.info)
        chosen = select(stages, order.targets())
        chain_run = ChainRun(folder, chosen, listeners, unchanged=unchanged)
        with entered(chain_run):
            submit_stages(chain_run)
        done = True
    finally:
        commit = worktree.keep(ROOT, name, done=done)
        log.info("branch %s is at %s", worktree.branch(name), commit)
