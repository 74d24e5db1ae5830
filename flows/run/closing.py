"""The records of a run: MLflow brought up to date, the chain shown in Prefect. Never in the way."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from flows.run.schedule import RunResult
from fmcore.settings import ReflowError

Say = Callable[[str], object]


@contextmanager
def best_effort(say: Say, what: str = "a record was not kept") -> Iterator[None]:
    """Turn whatever a tracking server or its client raises into one line."""
    try:
        yield
    except ReflowError as error:
        say(f"{what}: {error}")
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        say(f"{what} ({reason[:200]})")


def close(
    root: Path, report: RunResult, *, say: Say, mlflow: bool = True, prefect: bool = True
) -> None:
    """Publish to MLflow and put artifacts on the flow run; the work itself is done and safe."""
    parent = ""
    if mlflow:
        from flows.tracking.publish import publish

        with best_effort(say, "MLflow: not published, `reflow publish` records it later"):
            done = publish(root)
            parent = done.parent
            for skipped in done.skipped:
                say(f"MLflow: {skipped}")
    if prefect and report.ok and report.flow_run:
        from flows.run import artifacts

        with best_effort(say, "Prefect: no artifacts"):
            artifacts.show(root, parent)
