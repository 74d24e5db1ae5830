"""Aliases of registered models: the best round of all chains on the same data, or one by hand."""

import itertools
import random
from dataclasses import replace

import pytest

from flows.dag.chain import Chain
from flows.dag.lock import Entry
from flows.tracking.client import Tracker
from flows.tracking.promotion import Score, chosen
from flows.tracking.registry import SHIPPED, Offer, Registered, register
from flows.tracking.ship import ship
from fmcore.settings import ReflowError

PREPARE = "python -m flows.stage prepare out=couplings/independent"


def chain_of(key, data=None):
    """A chain on some data."""
    data = data or {"name": "array", "path": "x.npy"}
    prepare = Entry(PREPARE, {}, {}, {"params.yaml": {"data": data}}, key)
    return Chain(key, data["name"], key, {}, [], None, {"prepare": prepare})


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A folder whose MLflow data base all tests share: to make one takes seconds."""
    return tmp_path_factory.mktemp("registry")


def test_a_run_gets_all_of_many_parameters_and_those_that_a_kill_left_out(tracker):
    many = {f"own{i:03}": str(i) for i in range(150)}
    whole = replace(chain_of("many"), settings={"data": {"name": "custom", **many}})
    run = tracker.parent(whole)
    found = tracker.client.get_run(run).data.params
    assert len(found) == 151 and found["data.own149"] == "149"
    half = tracker.client.create_run(tracker.experiment)
    tracker.set_params(half.info.run_id, dict([*many.items()][:100]))
    tracker._with_params(tracker.client.get_run(half.info.run_id), many)
    assert tracker.client.get_run(half.info.run_id).data.params == many


@pytest.fixture
def tracker(project, monkeypatch, request):
    """MLflow with an experiment of the test's own, so with registered models of its own."""
    for name in ("DVC_SITE_CACHE_DIR", "PREFECT_HOME", "MLFLOW_TRACKING_URI"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{project}/mlflow.db")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", request.node.name)
    return Tracker(project)


def published(tracker, key, *rounds):
    """Let MLflow have the runs and models of a chain, as `publish` leaves them."""
    for name in rounds:
        tags = {"reflow.kind": "round", "reflow.chain": key, "reflow.round": name}
        run = tracker.client.create_run(tracker.experiment, run_name=name, tags=tags)
        tracker.client.create_logged_model(
            tracker.experiment, name="velocity", source_run_id=run.info.run_id
        )
    return chain_of(key)


def test_a_server_that_is_down_is_told_in_one_line(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setattr("flows.tracking.ship.lock_entries", lambda _: {})
    monkeypatch.setattr("flows.tracking.ship.chain", lambda *_: chain_of("a"))
    monkeypatch.setattr("flows.tracking.ship.offer", lambda *_: Offer("k", {}, {"rf1": {}}))
    with pytest.raises(ReflowError, match="MLflow: no server answers there") as error:
        ship(tmp_path, "rf1")
    assert "\n" not in str(error.value)


def test_the_settings_of_a_chain_are_the_parameters_of_its_run(tracker):
    settings = {"data": {"name": "gaussian"}, "source": {"name": "two_moons", "samples": "500"}}
    run = tracker.parent(replace(chain_of("with_source"), settings=settings))
    assert tracker.client.get_run(run).data.params == {
        "data.name": "gaussian", "source.name": "two_moons", "source.samples": "500",
    }  # fmt: skip


def offered(distance, round_="rf2", *, error=0.1, yardstick="y", uses=("one_step", "best")):
    by_nfe = {1: (distance, error), 4: (distance - 0.5, error)}
    return Offer(dict.fromkeys(uses, round_), yardstick, {round_: by_nfe})


def aliases(tracker, whole):
    """Return who has each alias: (chain, round) by use."""
    model = Registered(tracker, whole)
    tags = {use: model.versions[v].tags for use, v in model.aliases.items()}
    return {use: (t["reflow.chain"], t["reflow.round"]) for use, t in tags.items()}


def test_a_worse_or_a_quick_trial_never_takes_an_alias_and_says_why(tracker):
    good, worse, trial = (published(tracker, key, "rf2") for key in ("good", "worse", "trial"))
    changed, kept = register(tracker, good, offered(2.0))
    assert len(changed) == 2 and not kept and {moved.before for moved in changed} == {None}
    both = {"one_step": ("good", "rf2"), "best": ("good", "rf2")}
    for whole, given, why in (
        (worse, offered(6.0), "is not better by more than the error: 6 ± 0.1 at NFE 1"),
        (trial, offered(1.0, yardstick="fewer samples"), "measured by another yardstick"),
    ):
        changed, kept = register(tracker, whole, given)
        assert changed == [] and len(kept) == 2 and why in kept[0], kept
        assert "stays version 1 (rf2 of chain good)" in kept[0]
        assert aliases(tracker, good) == both
    assert len(Registered(tracker, good).versions) == 3, "each is registered, so it can be shipped"


def test_a_better_round_takes_the_alias_and_a_tie_leaves_it(tracker):
    first, tie, better = (published(tracker, key, "rf2") for key in ("first", "tie", "better"))
    register(tracker, first, offered(2.0))
    assert register(tracker, tie, offered(1.9))[0] == []  # errors together: 0.14
    assert aliases(tracker, first)["one_step"] == ("first", "rf2")
    changed, _ = register(tracker, better, offered(1.8, uses=("one_step",)))
    (moved,) = changed
    assert str(moved).endswith("@one_step is version 3 (rf2 of chain better)")
    assert (moved.use, moved.version, moved.round) == ("one_step", "3", "rf2")
    assert (moved.now, moved.before) == (Score(1, 1.8, 0.1), Score(1, 2.0, 0.1))
    assert aliases(tracker, first) == {"one_step": ("better", "rf2"), "best": ("first", "rf2")}


def test_the_same_weights_measured_otherwise_are_one_version(tracker):
    first, again = published(tracker, "first", "rf2"), published(tracker, "again", "rf2")
    other = published(tracker, "other", "rf2")
    for run in tracker.find(reflow__kind="round"):
        weights = "v" if run.data.tags["reflow.chain"] == "other" else "w"
        tracker.client.set_tag(run.info.run_id, "reflow.key", weights)
    register(tracker, first, offered(2.0))
    register(tracker, again, offered(2.1, yardstick="z"))
    model = Registered(tracker, first)
    assert [*model.versions] == ["1"] and len(model.measured("1", "y")) == 2
    assert model.measured("1", "z") == {1: (2.1, 0.1), 4: (1.6, 0.1)}
    register(tracker, other, offered(2.2))
    assert len(Registered(tracker, first).versions) == 2


def test_two_checkouts_that_publish_in_turn_come_to_rest(tracker):
    one, two = published(tracker, "one", "rf1", "rf2"), published(tracker, "two", "rf2")
    offers = {"one": offered(2.0), "two": offered(3.0)}
    fewer = replace(offers["one"], yardstick="z")  # the same chain, measured by another yardstick
    for whole, given in ((two, offers["two"]), (one, offers["one"]), (one, fewer)):
        register(tracker, whole, given)
    before = Registered(tracker, one)
    for whole, given in 2 * [(two, offers["two"]), (one, fewer), (one, offers["one"])]:
        assert register(tracker, whole, given)[0] == []
    after = Registered(tracker, one)
    assert aliases(tracker, one)["one_step"] == ("one", "rf2")
    assert (after.aliases, after.tags) == (before.aliases, before.tags)
    for number, version in before.versions.items():
        assert after.versions[number].tags == version.tags


def test_what_was_shipped_by_hand_stays_until_the_rule_is_asked_again(tracker):
    good, trial = published(tracker, "good", "rf2"), published(tracker, "trial", "rf1")
    register(tracker, good, offered(2.0))
    model = Registered(tracker, trial)
    version = model.add("rf1", offered(9.0, "rf1"))
    model.set_tag(f"{SHIPPED}one_step", version)
    model.point("one_step", version, "y")
    changed, kept = register(tracker, good, offered(2.0))
    assert changed == [] and "`reflow ship` put it there" in kept[0]
    found = {"one_step": ("trial", "rf1"), "best": ("good", "rf2")}
    assert aliases(tracker, good) == found
    Registered(tracker, good).set_tag(f"{SHIPPED}one_step", None)
    assert len(register(tracker, good, offered(2.0))[0]) == 1
    assert aliases(tracker, good)["one_step"] == ("good", "rf2")


def test_two_data_sets_of_one_kind_share_no_registered_model(tracker):
    found = published(tracker, "k", "rf2")
    other = chain_of("k", {"name": "array", "path": "x.npy", "limit": 5})
    register(tracker, found, offered(2.0))
    assert aliases(tracker, other) == {}
    assert Registered(tracker, found).name != Registered(tracker, other).name
    assert Registered(tracker, found).name.startswith(f"{tracker.experiment_name}-array-")


def test_a_use_that_there_is_not_is_one_line(tmp_path):
    with pytest.raises(
        ReflowError, match="--as: expected one of one_step, few_step, best, got 'x'"
    ):
        ship(tmp_path, "rf2", ["x"])


def test_the_rule_moves_only_down_so_that_any_order_comes_to_rest():
    draw = random.Random(0)
    for _ in range(200):
        measured = {
            str(i): {1: (draw.uniform(1, 2), draw.choice((0.0, 0.1, 0.3)))} for i in range(6)
        }
        holder = draw.choice(list(measured))
        new = chosen("one_step", holder, measured)
        assert chosen("one_step", new, measured) == new, "a second look moves it again"
        assert measured[new][1][0] <= measured[holder][1][0]
        for order in itertools.islice(itertools.permutations(measured), 0, 720, 60):
            assert chosen("one_step", holder, {k: measured[k] for k in order}) == new
