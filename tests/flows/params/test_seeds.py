"""A seed comes from the place in the chain: names are free, and rf1, rf2 draw what they did."""

import pytest

from flows.params.load import load, parents
from flows.params.seeds import depth, seed_of
from fmcore.settings import ReflowError, derive_seed
from tests.conftest import SOURCE
from tests.real_chain import PARAMS

BRANCHED = (
    PARAMS
    + """  rf2: {round: rf2, pairs: 2000}
  more: {round: rf1, pairs: 500, seed: 7}
"""
)
TRAIN = "train: {steps: 1, lr: 1.0e-3}"
ROUNDS = f"""
  rf3: {{coupling: rf2, init: rf2, {TRAIN}}}
  branch: {{coupling: rf1, init: scratch, {TRAIN}}}
  own: {{coupling: rf2, init: rf1, {TRAIN}, seed: 11}}
couplings:
"""


@pytest.fixture
def params(tmp_path):
    (tmp_path / "params.yaml").write_text(BRANCHED.replace("\ncouplings:\n", ROUNDS))
    return load(tmp_path / "params.yaml")


def test_rounds_named_by_their_depth_keep_the_seeds_that_their_names_gave(params):
    for name in ("rf1", "rf2", "rf3"):
        assert seed_of(params, "train", name) == derive_seed(0, "train", name)
    for name in ("rf1", "rf2"):
        assert seed_of(params, "couple", name) == derive_seed(0, "couple", name)


def test_depth_is_the_longest_way_by_weights_and_by_pairs(params):
    found = {name: depth(params, name) for name in params.rounds}
    assert found == {"rf1": 1, "rf2": 2, "rf3": 3, "branch": 2, "own": 3}


def test_a_seed_in_the_settings_is_the_seed_itself(params):
    assert (seed_of(params, "train", "own"), seed_of(params, "couple", "more")) == (11, 7)


def test_a_renamed_chain_has_the_same_seeds_and_a_branch_draws_as_its_sibling(params, tmp_path):
    text = (tmp_path / "params.yaml").read_text()
    for old, new in (("rf1", "teacher"), ("rf2", "final"), ("rf3", "last")):
        text = text.replace(old, new)
    (tmp_path / "params.yaml").write_text(text)
    renamed = load(tmp_path / "params.yaml")
    for verb, names in (("train", list(params.rounds)), ("couple", list(params.couplings))):
        new = renamed.couplings if verb == "couple" else renamed.rounds
        seeds = [seed_of(params, verb, name) for name in names]
        assert seeds == [seed_of(renamed, verb, name) for name in new]
    assert seed_of(params, "train", "branch") == seed_of(params, "train", "rf2")


def test_a_seed_below_zero_is_one_line(tmp_path):
    (tmp_path / "params.yaml").write_text(BRANCHED.replace("seed: 7", "seed: -1"))
    with pytest.raises(ReflowError, match=r"couplings\.more\.seed: .*of at least 0"):
        load(tmp_path / "params.yaml")


@pytest.mark.parametrize("file", sorted((SOURCE / "params").glob("*.yaml")), ids=lambda f: f.stem)
def test_the_rounds_of_the_chains_that_ship_are_named_by_depth_or_not_numbered(file):
    params = load(file)
    for name in (n for n in params.rounds if n[:2] == "rf" and n[2:].isdigit()):
        assert depth(params, name) == int(name[2:])


def test_the_data_the_yardstick_and_the_evaluation_take_their_own_seed_or_the_chains(tmp_path):
    file = tmp_path / "params.yaml"
    text = BRANCHED.replace("seed: 0", "seed: 3")
    file.write_text(text)
    shared = ("prepare", "calibrate", "evaluate")
    assert [seed_of(load(file), verb) for verb in shared] == [3, 3, 3]
    for verb, old in (
        ("prepare", "samples: 4000"), ("calibrate", "splits: 2"), ("evaluate", "trajectories: 500")
    ):  # fmt: skip
        file.write_text(text.replace(old, f"{old}, seed: 0"))
        found = load(file)
        assert [seed_of(found, v) for v in shared] == [0 if v == verb else 3 for v in shared]
        assert seed_of(found, "train", "rf1") == derive_seed(3, "train", "rf1")


def test_of_many_rounds_with_many_ways_to_each_none_is_asked_often(tmp_path, monkeypatch):
    """Each starts from the round before and trains on the pairs of the one before that."""
    rounds, couplings, count = "", "", 60
    for n in range(3, count):
        rounds += f"  rf{n}: {{coupling: c{n - 2}, init: rf{n - 1}, {TRAIN}}}\n"
        couplings += f"  c{n - 2}: {{round: rf{n - 2}, pairs: 9}}\n"
    text = PARAMS.replace("\ncouplings:\n", f"\n{rounds}couplings:\n") + couplings
    (tmp_path / "params.yaml").write_text(text)
    asked: list[str] = []

    def counted(params, name):
        asked.append(name)
        assert len(asked) < 10 * count  # there are 2e12 ways
        return parents(params, name)

    monkeypatch.setattr("flows.params.load.parents", counted)
    monkeypatch.setattr("flows.params.seeds.parents", counted)
    params = load(tmp_path / "params.yaml")
    assert depth(params, f"rf{count - 1}") == count - 1
