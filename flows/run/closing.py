"""Record a run in MLflow and Prefect; an error there never fails the run."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from flows.project import servers
from flows.run.schedule import RunResult
from flows.tracking import marker
from fmcore.settings import ReflowError

if TYPE_CHECKING:
    from flows.tracking.registry import Moved

Say = Callable[[str], object]


@contextmanager
def best_effort(say: Say, what: str = "a record was not kept") -> Iterator[None]:
    """Turn any error of a tracking server or its client into one line."""
    try:
        yield
    except ReflowError as error:
        say(f"{what}: {error}")
    except Exception as error:
        say(f"{what} ({servers.reason(error)})")


def _published(root: Path, result: RunResult, say: Say) -> "tuple[str, list[Moved]]":
    """Publish, unless nothing ran since the last time; return the chain's run, and what moved."""
    ran = any(stage.state == "done" for stage in result.stages.values())
    if not ran and (parent := marker.published(root)) is not None:
        return parent, []
    from flows.tracking.publish import publish  # imports MLflow: slow

    done = publish(root)
    for line in [*done.notes, *(f"MLflow: {skipped}" for skipped in done.skipped)]:
        say(line)
    return done.parent, done.moved


def close(
    root: Path, result: RunResult, *, say: Say, mlflow: bool = True, prefect: bool = True
) -> None:
    """Publish to MLflow and put artifacts on the flow run; DVC has recorded the stages already."""
    parent = ""
    moved: list[Moved] = []
    if mlflow:
        with best_effort(say, "MLflow: not published, `reflow publish` records it later"):
            parent, moved = _published(root, result, say)
    if prefect and result.flow_run and moved:
        from flows.run import notices

        with best_effort(say, "Prefect: no event of the alias"):
            notices.aliases(moved)
    if prefect and result.ok and result.flow_run:
        from flows.run import artifacts

        with best_effort(say, "Prefect: no artifacts"):
            artifacts.show(root, parent)
