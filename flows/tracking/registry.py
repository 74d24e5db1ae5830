"""The registry: rounds to ship as versions of one model for each data set, an alias for each use.

`models:/reflow-digits-1a2b3c4d@one_step` is the round with the least distance at NFE 1 among the
registered rounds of all chains on that data (`promotion` has the rule), or the one that `reflow
ship` named. The name ends in a digest of the data. A version names its chain, round and commit.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flows.dag.chain import Chain
from flows.dag.identity import data_key, yardstick_key
from flows.dag.receipts import metrics, read_comparison
from flows.tracking import pages
from flows.tracking.client import CHAIN, KEY, Tracker
from flows.tracking.promotion import USES, Distances, Score, chosen, score
from fmcore.settings import ReflowError
from fmcore.verdict import keys

MEASURED, YARDSTICK, SHIPPED = "reflow.distances.", "reflow.yardstick.", "reflow.shipped."
"""Tags: on a version, its distances by yardstick; on a model, by use, the yardstick that its alias
goes by, and the version that `reflow ship` named."""

GIT = ("mlflow.source.git.commit", "git.dirty", "dvc.model.md5")

NOTE = (
    "Rounds of reflow chains on one data set. `one_step`: the least distance at NFE 1; `few_step`:"
    " at the NFE nearest to 4; `best`: at any NFE. A round takes an alias if it is better by more"
    " than the error, by the same yardstick; `reflow ship ROUND` moves one by hand.\n\n"
)


@dataclass(frozen=True)
class Offer:
    """The rounds that a chain offers: the best of them by use, and the distances of every round.

    `yardstick` is the key of what measured them.
    """

    best: dict[str, str]
    yardstick: str
    distances: dict[str, Distances]


def offer(root: Path, whole: Chain) -> Offer:
    """Return what the chain in dvc.lock offers. Raises ReflowError if its receipts are missing."""
    if whole.compare is None:
        raise ReflowError("dvc.lock has no comparison yet; `reflow run` first")
    found = read_comparison(root, whole.compare)
    scored = {r.name: r for r in whole.rounds if r.evaluate is not None}
    names = [r.name for r in found.rounds if r.name in scored]
    if not names:
        raise ReflowError("the comparison has no round of dvc.lock; `reflow run` first")
    distances: dict[str, Distances] = {}
    for name in names:
        entry = scored[name].evaluate
        values = metrics(root, entry) if entry else {}
        error = keys.by_nfe(values, keys.error(found.metric))
        by_nfe = keys.by_nfe(values, found.metric)
        distances[name] = {nfe: (value, error.get(nfe, 0.0)) for nfe, value in by_nfe.items()}
    return Offer(
        best={use: choice.round for use, choice in found.ship.items()},
        yardstick=yardstick_key(root, whole, scored[names[0]], found)[:16],
        distances=distances,
    )


@dataclass(frozen=True)
class Moved:
    """An alias that moved to a version: its score at that use, and that of the version before.

    `before` is None if the alias is new.
    """

    use: str
    model: str
    version: str
    round: str
    now: Score | None
    before: Score | None
    says: str

    def __str__(self) -> str:
        return self.says


class Registered:
    """The registered model of one data set, and its versions."""

    def __init__(self, tracker: Tracker, whole: Chain) -> None:
        """Find the registered model of the chain's data; make it if there is none."""
        key = data_key(tracker.root, whole)
        self.tracker, self.whole, self.client = tracker, whole, tracker.client
        self.name = f"{tracker.experiment_name}-{whole.name}-{key[:8]}"
        if not self.client.search_registered_models(f"name = '{self.name}'"):
            tags = {"reflow.data": whole.name, "reflow.data.key": key}
            about = NOTE + pages.loading(f"models:/{self.name}@one_step")
            self.client.create_registered_model(self.name, tags, about)
        model = self.client.get_registered_model(self.name)
        self.aliases = {use: str(version) for use, version in model.aliases.items()}
        self.tags: dict[str, str] = dict(model.tags)
        self.versions: dict[str, Any] = {str(v.version): v for v in self._versions()}

    def _versions(self) -> Iterable[Any]:
        token = None
        while True:
            page = self.client.search_model_versions(f"name = '{self.name}'", page_token=token)
            yield from page
            token = page.token
            if not token:
                return

    def add(self, round_: str, given: Offer) -> str:
        """Return the version of a round of the chain, registering it if there is none.

        Distances by another yardstick stay beside those of the offer. Those that are there
        already are not written again, so that two checkouts do not undo one another.
        """
        version = self._of(round_)
        tag = f"{MEASURED}{given.yardstick}"
        there = self.measured(version, given.yardstick)
        whole = {**given.distances[round_], **there}
        if whole != there:
            text = json.dumps({str(nfe): whole[nfe] for nfe in sorted(whole)})
            self.client.set_model_version_tag(self.name, version, tag, text)
            self.versions[version] = self.client.get_model_version(self.name, version)
        return version

    def _of(self, round_: str) -> str:
        tracker, client = self.tracker, self.client
        key = self.whole.key
        found = tracker.find(reflow__kind="round", reflow__chain=key, reflow__round=round_)
        models = found and client.search_logged_models(
            [tracker.experiment], filter_string=f"source_run_id = '{found[0].info.run_id}'"
        )
        if not models:
            raise ReflowError(
                f"{round_}: its model is not in MLflow yet; `reflow run` restores and publishes it"
            )
        model, run = models[0], found[0]
        weights = run.data.tags.get(KEY)  # the same model measured otherwise is the same version
        for number, version in self.versions.items():
            same = version.source == model.model_uri or version.model_id == model.model_id
            if same or (weights and version.tags.get(KEY) == weights):
                return number
        tags = {CHAIN: key, "reflow.round": round_}
        tags |= {k: run.data.tags[k] for k in (*GIT, KEY) if k in run.data.tags}
        about = f"Round {round_} of the chain {key[:7]} on {self.whole.name}.\n\n"
        made = client.create_model_version(
            self.name, model.model_uri, run.info.run_id, tags, model_id=model.model_id,
            description=about + model.tags.get("mlflow.note.content", ""),
        )  # fmt: skip
        self.versions[str(made.version)] = made
        return str(made.version)

    def measured(self, version: str, yardstick: str) -> Distances:
        """Return the distances of a version by a yardstick; empty if that did not measure it."""
        text = self.versions[version].tags.get(f"{MEASURED}{yardstick}", "{}")
        return {int(nfe): (float(d), float(error)) for nfe, (d, error) in json.loads(text).items()}

    def shipped(self, use: str) -> bool:
        """Whether the alias of a use is where `reflow ship` put it."""
        return use in self.aliases and self.tags.get(f"{SHIPPED}{use}") == self.aliases[use]

    def point(self, use: str, version: str, yardstick: str) -> None:
        """Point the alias of a use at a version that a yardstick measured."""
        self.set_tag(f"{YARDSTICK}{use}", yardstick)
        self.client.set_registered_model_alias(self.name, use, version)
        self.aliases[use] = version

    def set_tag(self, key: str, value: str | None) -> None:
        """Set a tag of the registered model, or remove it if `value` is None."""
        if self.tags.get(key) == value:
            return
        if value is None:
            self.client.delete_registered_model_tag(self.name, key)
            self.tags.pop(key)
        else:
            self.client.set_registered_model_tag(self.name, key, value)
            self.tags[key] = value

    def describe(self, version: str) -> str:
        """Return a version in words: its number, round and chain."""
        tags: Mapping[str, str] = self.versions[version].tags if version in self.versions else {}
        round_, chain = tags.get("reflow.round", "of another origin"), tags.get(CHAIN, "")
        return f"version {version} ({round_}{f' of chain {chain[:7]}' if chain else ''})"


def register(tracker: Tracker, whole: Chain, given: Offer) -> tuple[list[Moved], list[str]]:
    """Register the best rounds of a chain and let the rule say who has each alias.

    Returns the aliases that moved, and in words what did not change though the chain has another
    round to offer. Publishing again changes nothing, from this checkout or from another.
    """
    model = Registered(tracker, whole)
    moved: list[Moved] = []
    kept: list[str] = []
    for use in (use for use in USES if use in given.best):
        round_ = given.best[use]
        own, holder = model.add(round_, given), model.aliases.get(use)
        place = f"models:/{model.name}@{use}"
        winner = _winner(model, use, given.yardstick)
        if winner != holder:
            model.point(use, winner, given.yardstick)
            moved.append(_moved(model, use, winner, holder, given.yardstick))
        elif holder != own:
            kept.append(f"{place} stays {model.describe(holder)}: {_why(model, use, own, given)}")
    return moved, kept


def _moved(model: Registered, use: str, winner: str, holder: str | None, yardstick: str) -> Moved:
    like = model.measured(holder, yardstick) if holder else None
    return Moved(
        use=use,
        model=model.name,
        version=winner,
        round=model.versions[winner].tags.get("reflow.round", ""),
        now=score(use, model.measured(winner, yardstick), like),
        before=score(use, like) if like else None,
        says=f"models:/{model.name}@{use} is {model.describe(winner)}",
    )


def _winner(model: Registered, use: str, yardstick: str) -> str:
    """Return the version that has the alias of a use by the rule, among all versions."""
    holder = model.aliases.get(use)
    ruling = model.tags.get(f"{YARDSTICK}{use}") if holder else yardstick
    if holder and (model.shipped(use) or ruling != yardstick):
        return holder
    by_version = {v: model.measured(v, yardstick) for v in sorted(model.versions, key=int)}
    winner = chosen(use, holder, {v: distances for v, distances in by_version.items() if distances})
    assert winner is not None, "the round that was added has distances"
    return winner


def _why(model: Registered, use: str, own: str, given: Offer) -> str:
    """Say why the round that a chain offers does not take an alias."""
    holder = model.aliases[use]
    mine = model.describe(own)
    if model.shipped(use):
        return f"`reflow ship` put it there; `reflow ship --rule` compares it with {mine} again"
    like = model.measured(holder, given.yardstick)
    if model.tags.get(f"{YARDSTICK}{use}") != given.yardstick or not like:
        return f"{mine} was measured by another yardstick; `reflow ship` moves the alias by hand"
    return f"{score(use, like)}; {mine} is not better by more than the error:" + (
        f" {score(use, model.measured(own, given.yardstick), like) or 'not measured at that NFE'}"
    )
