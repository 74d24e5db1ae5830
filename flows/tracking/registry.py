"""The registry: what `compare` says to ship, as versions of one model with an alias for each use.

`models:/reflow-digits@one_step` is the round with the least distance at NFE 1 of the chain that
was published last. A version names its chain, round and commit, so older chains can be found.
"""

from flows.dag.chain import Chain
from flows.tracking.client import CHAIN, Tracker
from fmcore.settings import ReflowError
from fmcore.verdict.comparison import Choice

USES = ("one_step", "few_step", "best")


def model_name(tracker: Tracker, whole: Chain) -> str:
    """Return the registered name: the experiment's, then the data set's."""
    return f"{tracker.experiment_name}-{whole.name}"


def register(tracker: Tracker, whole: Chain, ship: dict[str, Choice]) -> list[str]:
    """Point the aliases at the rounds to ship, registering those that are not; say what changed.

    A version that exists is used again, so that publishing twice changes nothing.
    """
    name, client = model_name(tracker, whole), tracker.client
    known = {m.name: m for m in client.search_registered_models(f"name = '{name}'")}
    if name not in known:
        client.create_registered_model(name, {"reflow.data": whole.name}, NOTE)
    aliases = dict(known[name].aliases) if name in known else {}
    changed = []
    for use in USES:
        if use not in ship:
            continue
        version = _version(tracker, name, whole, ship[use].round)
        if str(aliases.get(use)) != version:
            client.set_registered_model_alias(name, use, version)
            changed.append(f"models:/{name}@{use} is {ship[use].round} (version {version})")
    for stale in set(aliases) & set(USES) - set(ship):
        client.delete_registered_model_alias(name, stale)
        changed.append(f"models:/{name}@{stale} is gone: the comparison names no round for it")
    return changed


def _version(tracker: Tracker, name: str, whole: Chain, round_: str) -> str:
    """Return the version of a round of this chain; register one if there is none."""
    client = tracker.client
    found = tracker.find(reflow__kind="round", reflow__chain=whole.key, reflow__round=round_)
    models = client.search_logged_models(
        [tracker.experiment], filter_string=f"source_run_id = '{found[0].info.run_id}'"
    )
    if not models:
        raise ReflowError(f"{round_}: its model is not in MLflow yet; `reflow publish` logs it")
    model, run = models[0], found[0]
    for version in client.search_model_versions(f"name = '{name}'"):
        if version.source == model.model_uri or version.model_id == model.model_id:
            return str(version.version)
    tags = {CHAIN: whole.key, "reflow.round": round_}
    tags |= {k: run.data.tags[k] for k in GIT if k in run.data.tags}
    made = client.create_model_version(
        name, model.model_uri, run.info.run_id, tags, model_id=model.model_id
    )
    return str(made.version)


GIT = ("mlflow.source.git.commit", "git.dirty", "dvc.model.md5")

NOTE = (
    "Rounds of a reflow chain. `predict(noise, params={'nfe': 1})`, or `predict([], params={'seed':"
    " 0, 'count': 64})`. `one_step`: the least distance at NFE 1; `few_step`: at the NFE nearest to"
    " 4; `best`: at any NFE."
)
