"""Find and create MLflow runs by lineage key."""

import os
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from flows.dag.chain import Chain, Round, flat
from flows.dag.lock import Entry
from flows.project import links, servers
from flows.project.environment import configure
from flows.tracking import data_base, moved, pages
from flows.tracking.origin import origin
from flows.tracking.shown import Point
from fmcore.settings import ReflowError

# A server that is down must cost seconds, not MLflow's default of four minutes.
for _name, _value in (
    ("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2"),
    ("MLFLOW_HTTP_REQUEST_TIMEOUT", "10"),
    ("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false"),
    ("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true"),
):
    os.environ.setdefault(_name, _value)

KEY, CHAIN, KIND = "reflow.key", "reflow.chain", "reflow.kind"
REPLACED = "reflow.replaced"
EXPERIMENT = "reflow"
LOGGED, OLD_LOGGED = "mlflow.reflow.published.", "reflow.published."
"""Tags that say which entry of dvc.lock a part was logged from. MLflow's pages hide tags that begin
with `mlflow.`; earlier versions wrote the second."""


@contextmanager
def answers() -> Iterator[None]:
    """Turn an error of MLflow, or of the way to it, into a ReflowError of one line."""
    try:
        yield
    except Exception as error:
        from mlflow.exceptions import MlflowException

        if not isinstance(error, (OSError, MlflowException)):
            raise
        where = os.environ["MLFLOW_TRACKING_URI"]
        ask = f"; is {where} up?" if where.startswith("http") else f" ({where})"
        raise ReflowError(f"MLflow: {servers.reason(error)}{ask}") from error


class Tracker:
    """An MLflow client bound to this project's experiment."""

    def __init__(self, root: Path) -> None:
        configure(root)
        import logging

        logging.getLogger("alembic").setLevel(logging.WARNING)
        logging.getLogger("mlflow.pyfunc").setLevel(logging.WARNING)
        # It would print the traceback of an error that is raised as well, and told in one line.
        logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)
        import mlflow

        self.root = root
        self.mlflow = mlflow
        self.notes: list[str] = []
        uri = os.environ["MLFLOW_TRACKING_URI"]
        home = moved.own_root(uri)
        if home and (old := moved.correct(home)):
            self.notes.append(f"MLflow: the project was in {old}; its records name {home} now")
        if home:
            data_base.create(home)
        mlflow.set_tracking_uri(uri)
        self.client = mlflow.MlflowClient()
        self.experiment_name = os.environ.get("MLFLOW_EXPERIMENT_NAME", EXPERIMENT)
        self.experiment = self._experiment(self.experiment_name, home)
        if home:
            moved.note(home)

    def _experiment(self, name: str, home: Path | None) -> str:
        found = self.client.get_experiment_by_name(name)
        if found is not None:
            if found.lifecycle_stage == "deleted":
                self._restore(found)
            return str(found.experiment_id)
        local = os.environ["MLFLOW_TRACKING_URI"].startswith("sqlite:")
        location = moved.artifacts(home or self.root).as_uri() if local else None
        return str(
            self.client.create_experiment(name, artifact_location=location, tags=pages.ABOUT)
        )

    def _restore(self, experiment: Any) -> None:
        """Restore a deleted experiment, without the runs that `publish` itself had replaced."""
        number, name = str(experiment.experiment_id), experiment.name
        self.client.restore_experiment(number)
        replaced = f"tags.`{REPLACED}` = 'true'"
        for run in self.client.search_runs([number], filter_string=replaced):
            self.client.delete_run(run.info.run_id)
        self.notes.append(
            f"MLflow: the experiment {name} had been deleted; it is restored"
            " (for another one: MLFLOW_EXPERIMENT_NAME)"
        )

    def replace(self, run: str) -> None:
        """Delete a run that another one replaces."""
        self.client.set_tag(run, REPLACED, "true")
        self.client.delete_run(run)

    def find(self, **tags: str) -> list[Any]:
        """Return the runs with these tags (dots written as __), newest first."""
        terms = [f"tags.`{k.replace('__', '.')}` = '{v}'" for k, v in tags.items()]
        return list(self.client.search_runs([self.experiment], filter_string=" and ".join(terms)))

    def parent(self, chain: Chain) -> str:
        """Return the run of a chain; create it if there is none."""
        if found := self.find(reflow__kind="chain", reflow__chain=chain.key):
            return self._with_params(found[0], flat(chain.settings))
        tags = {
            KIND: "chain",
            CHAIN: chain.key,
            "reflow.recipe": chain.recipe,
            "reflow.rounds": " ".join(r.name for r in chain.rounds),
            **pages.tags_of(chain),
            **origin(self.root),
        }
        run = self.client.create_run(self.experiment, run_name=chain.title, tags=tags)
        return self._with_params(run, flat(chain.settings))

    def child(self, chain: Chain, parent: str, round_: Round, planned: Entry | None) -> str:
        """Return the run of a round in a chain; create it if there is none."""
        shown = flat(planned.settings if planned else {})
        short = {k.replace(f"rounds.{round_.name}.", ""): v for k, v in shown.items()}
        if found := self.find(
            reflow__kind="round", reflow__chain=chain.key, reflow__key=round_.key
        ):
            return self._with_params(found[0], short)
        tags = {
            KIND: "round",
            CHAIN: chain.key,
            KEY: round_.key,
            "reflow.round": round_.name,
            "mlflow.parentRunId": parent,
            "mlflow.note.content": pages.round_note(self.experiment, chain, round_, planned),
            **pages.tags_of(chain),
            **replicate_tags(round_, planned),
            **origin(self.root),
        }
        if elsewhere := self.find(reflow__kind="round", reflow__key=round_.key):
            tags |= {"reflow.reused": "true", "reflow.origin_run": elsewhere[-1].info.run_id}
        run = self.client.create_run(self.experiment, run_name=round_.name, tags=tags)
        return self._with_params(run, short)

    def _with_params(self, run: Any, values: dict[str, str]) -> str:
        """Return the number of a run, which gets the parameters that it does not have.

        MLflow creates a run first and takes its parameters later; a kill may lie in between.
        """
        number = str(run.info.run_id)
        self.set_params(number, {k: v for k, v in values.items() if k not in run.data.params})
        return number

    def set_params(self, run: str, values: dict[str, str]) -> None:
        """Log parameters of a run, cut to the length and in the batches that MLflow allows."""
        from mlflow.entities import Param

        params = [Param(k, v[:6000]) for k, v in values.items()]
        for first in range(0, len(params), 100):
            self.client.log_batch(run, params=params[first : first + 100])

    def show(self, name: str, state: str) -> None:
        """Keep a view of the experiment's runs for MLflow's pages."""
        self.client.set_experiment_tag(self.experiment, f"{links.VIEW}{name}", state)

    def log(self, run: str, points: Sequence[Point]) -> None:
        """Log points in batches of the size MLflow allows."""
        import time

        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        metrics = [Metric(name, value, now, step) for name, value, step in points]
        for first in range(0, len(metrics), 1000):
            self.client.log_batch(run, metrics=metrics[first : first + 1000])

    def points(self, run: str, prefix: str = "", names: Collection[str] = ()) -> list[Point]:
        """Return the points of a run: of the metrics `names`, or of all that begin with `prefix`.

        A metric that was never logged costs no request.
        """
        there = self.client.get_run(run).data.metrics
        asked = [n for n in there if (n in names if names else n.startswith(prefix))]
        return [
            (name, m.value, m.step)
            for name in asked
            for m in self.client.get_metric_history(run, name)
        ]

    def complete(self, run: str, points: Sequence[Point]) -> None:
        """Log only the points that the run does not have, so that no point is logged twice."""
        there = set(self.points(run, names={name for name, _, _ in points}))
        self.log(run, [p for p in points if p not in there])


def replicate_tags(round_: Round, planned: Entry | None) -> dict[str, str]:
    """Return the tags of a replicate, by which its runs are grouped; the round itself is 1."""
    number = planned.setting(f"rounds.{round_.name}", "replicate") if planned else None
    if number is None:
        return {}
    return {"reflow.replicate_of": str(round_.replicate_of), "reflow.replicate": str(number)}
