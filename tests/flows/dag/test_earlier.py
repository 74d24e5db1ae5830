"""Which earlier runs have the same inputs, from what dvc.lock and the run cache record."""

import pytest
from ruamel.yaml import YAML

from flows.dag.outputs.earlier import entry_of, moved, other_names, other_sizes

SETTINGS = {"pairs": 100, "shard": 64}


def couple(key, model, *, pairs=100, more=None, seed=0):
    """Return command, dependencies and parameters of sampling the coupling `key`."""
    cmd = (
        f"python -m flows.stage couple {key} model=models/{model} data=d out=couplings/{key}"
        f" metrics=metrics/{key}.json"
    )
    deps = {f"models/{model}": "m.dir", "d": "d.dir", f"inputs/couple/{key}.json": "i"}
    chosen = {**SETTINGS, "pairs": pairs, "round": model, **(more or {})}
    return cmd, deps, {"params.yaml": {"seed": seed, f"couplings.{key}": chosen}}


def record(run, made):
    """Return a run as dvc.lock and the run cache record it."""
    cmd, deps, params = run
    out, metrics = (word.split("=")[1] for word in cmd.split()[-2:])
    files = [{"path": path, "hash": "md5", "md5": md5} for path, md5 in deps.items()]
    outs = [{"path": out, "md5": made}, {"path": metrics, "md5": f"{made} metrics"}]
    return {"cmd": cmd, "deps": files, "params": params, "outs": outs}


@pytest.fixture
def known(tmp_path):
    """Record runs: in dvc.lock those with a name, in the run cache the others."""

    def write(*cached, **locked):
        with (tmp_path / "dvc.lock").open("w") as file:
            YAML(typ="safe").dump({"schema": "2.0", "stages": locked}, file)
        folder = tmp_path / "runs/ab/key"
        folder.mkdir(parents=True)
        for i, entry in enumerate(cached):
            with (folder / str(i)).open("w") as file:
                YAML(typ="safe").dump(entry, file)
        (folder / "damaged").write_bytes(b"m.dir d.dir: [\xff")
        return tmp_path, tmp_path / "runs"

    return write


@pytest.mark.parametrize("where", ["lock", "cache"])
def test_a_coupling_of_another_size_is_found_in_both_records(known, where):
    entry = record(couple("rf1", "rf1", pairs=50), "small.dir")
    root, cache = known(**{"couple@rf1": entry}) if where == "lock" else known(entry)
    now = entry_of(*couple("rf1", "rf1", pairs=200))
    assert other_sizes(root, cache, now) == ["small.dir"]
    assert other_names(root, cache, now) == []


@pytest.mark.parametrize(
    "other",
    [
        {"more": {"shard": 50}},
        {"more": {"seed": 5}},
        {"seed": 1},
    ],
)
def test_other_parameters_are_another_coupling(known, other):
    root, cache = known(record(couple("rf1", "rf1", pairs=50, **other), "other.dir"))
    assert other_sizes(root, cache, entry_of(*couple("rf1", "rf1"))) == []


@pytest.mark.parametrize("path", ["models/rf1", "d", "inputs/couple/rf1.json"])
def test_another_model_other_data_or_other_code_is_another_coupling(known, path):
    cmd, deps, params = couple("rf1", "rf1", pairs=50)
    root, cache = known(record((cmd, {**deps, path: "another"}, params), "other.dir"))
    assert other_sizes(root, cache, entry_of(*couple("rf1", "rf1"))) == []


def test_the_same_inputs_under_another_name_give_its_outputs(known):
    entry = record(couple("rf1", "rf1"), "same.dir")
    root, cache = known(record(couple("more", "rf1", pairs=999), "more.dir"), **{"c@rf1": entry})
    now = entry_of(*couple("made", "teacher"))
    (found,) = other_names(root, cache, now)
    assert moved(now, found) == {
        "couplings/made": "same.dir",
        "metrics/made.json": "same.dir metrics",
    }


def test_a_stage_that_ran_under_its_own_name_is_forced_and_takes_nothing(known):
    same = record(couple("rf1", "rf1"), "same.dir")
    other = record(couple("old", "rf1"), "same.dir")
    root, cache = known(other, record(couple("rf1", "rf1", pairs=50), "s.dir"), **{"c": same})
    now = entry_of(*couple("rf1", "rf1"))
    assert other_names(root, cache, now) == [] and other_sizes(root, cache, now) == []
