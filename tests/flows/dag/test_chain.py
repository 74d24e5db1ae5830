"""What dvc.lock records belongs to a chain only while it is of what the chain has now."""

import json
from dataclasses import replace

import pytest

from flows.compare import tables
from flows.dag.chain import chain, current
from flows.dag.lock import Entry, File
from fmcore.settings import ReflowError
from fmcore.verdict.comparison import Comparison


def entry(words, deps, outs, settings=None):
    cmd, params = f"python -m flows.stage {words}", {"params.yaml": settings or {}}
    files = [{path: File(md5) for path, md5 in of.items()} for of in (deps, outs)]
    return Entry(cmd, *files, params, str((words, deps, outs, settings)))


def lock(model="m1", read="m1", nfe=(1,), gates=0):
    """A round, its evaluation and the comparison; the evaluation read the model `read`."""
    return {
        "prepare": entry("prepare out=d", {}, {"d": "d1"}, {"data": {"name": "digits"}}),
        "initialise": entry("initialise data=d out=s", {"d": "d1"}, {"s": "s1"}),
        "train@rf1": entry("train rf1 init=s out=m/rf1", {"d": "d1", "s": "s1"}, {"m/rf1": model}),
        "evaluate@rf1": entry(
            "evaluate rf1 model=m/rf1 out=p straightness=c",
            {"d": "d1", "m/rf1": read}, {"p": "p1", "c": "c1"}, {"evaluate": {"nfe": list(nfe)}},
        ),
        "compare": entry("compare out=r", {"c": "c1"}, {"r": "r1"}, {"gates": gates}),
    }  # fmt: skip


def of(entries):
    return chain(entries, entries)


def test_a_measurement_of_the_model_before_is_not_of_the_chain():
    whole = of(lock())
    assert whole.rounds[0].evaluate and whole.compare
    trained_again = of(lock(model="m2"))
    assert trained_again.rounds[0].train
    assert trained_again.rounds[0].evaluate is None and trained_again.compare is None
    assert set(current(lock(model="m2"))) == {"prepare", "initialise", "train@rf1"}
    assert of(lock(model="m2", read="m2")).compare


def test_a_comparison_of_the_models_before_is_not_shown(tmp_path, monkeypatch):
    found = Comparison("fd", "f", 0.1, [], {}, [], [])
    (tmp_path / "rounds.json").write_text(json.dumps(found.as_dict()))
    monkeypatch.setattr(tables, "paths", lambda *_: {"out": tmp_path})
    monkeypatch.setattr(tables, "timings", lambda _: {})
    monkeypatch.setattr(tables.lineage, "lock_entries", lambda _: lock())
    assert tables.comparison(tmp_path).found.metric == "fd"
    monkeypatch.setattr(tables.lineage, "lock_entries", lambda _: lock(model="m2"))
    with pytest.raises(ReflowError, match="rounds.json: measured on models that were made again"):
        tables.comparison(tmp_path)


def test_what_a_folder_holds_counts_and_the_stage_inputs_does_not():
    entries = lock()
    inside = {"m/rf1/weights": File("w1")}
    entries["other"] = replace(entries["compare"], deps=inside, outs={"o": File("o")})
    entries["inputs"] = entry("inputs", {}, {"inputs/train/rf1.json": "new"})
    asked = {**entries["train@rf1"].deps, "inputs/train/rf1.json": File("old")}
    entries["train@rf1"] = replace(entries["train@rf1"], deps=asked)
    assert set(current(entries)) == set(entries)
    entries["initialise"] = replace(entries["initialise"], outs={"s": File("s2")})
    assert set(current(entries)) == {"prepare", "initialise", "inputs"}


def test_the_key_is_that_of_trainings_measurements_and_gates():
    assert of(lock()).key == of(lock()).key
    others = [of(lock(nfe=(1, 2))), of(lock(gates=1))]
    assert len({of(lock()).key, *(other.key for other in others)}) == 3
    assert {other.rounds[0].key for other in others} == {of(lock()).rounds[0].key}
