"""Train with several processes: the stage becomes torchrun's agent, which starts and ends them."""

import os
import sys

from flows.project.process_group import mark_as_starter
from fmcore.settings import ReflowError


def launch(processes: int, arguments: list[str], threads: int) -> int:
    """Run this stage in `processes` processes of this machine; return the exit status.

    It does what torchrun does, but does not print torchrun's long report if a process fails: the
    process has printed why in one line. For several machines start torchrun on each
    (docs/scaling.md).
    """
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    mark_as_starter()
    os.environ.setdefault("OMP_NUM_THREADS", str(threads))
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        run_id="reflow",
        max_restarts=0,
        monitor_interval=0.5,
    )
    command = [sys.executable, "-m", "flows.stage", *arguments]
    try:
        elastic_launch(config, command[0])(*command[1:])
    except ChildFailedError as failed:
        codes = [failure.exitcode for failure in failed.failures.values()]
        return max((code for code in codes if code > 0), default=137)
    except OSError as error:
        raise ReflowError(f"{processes} processes could not be started: {error}") from error
    return 0
