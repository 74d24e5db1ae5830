"""Replicates are rounds that an edit of params.yaml adds; a seed reruns what it is the seed of."""

import pytest
from typer.testing import CliRunner

from flows.cli.main import app
from flows.dag.chain import chain
from flows.dag.lineage import entries, lineage
from flows.params.load import load
from flows.params.reduce import at_root
from flows.params.replicates import replicate, replicated
from flows.params.seeds import depth, seed_of
from flows.tracking.client import replicate_tags
from fmcore.settings import ReflowError
from tests.conftest import SOURCE
from tests.real_chain import PARAMS, real_stages

STAGES = (
    "inputs", "prepare", "initialise", "calibrate", "train", "couple", "evaluate", "compare",
)  # fmt: skip
SHIPPED = sorted((SOURCE / "params").glob("*.yaml"))


@pytest.fixture
def file(tmp_path):
    (tmp_path / "params.yaml").write_text(PARAMS)
    return tmp_path / "params.yaml"


def test_replicates_are_rounds_on_pairs_of_their_own_and_differ_in_their_draws_alone(file):
    assert replicate(file, 3) == ["rf1_r2", "rf2_r2", "rf1_r3", "rf2_r3"]
    params = load(file)
    one, two = params.rounds["rf2"], params.rounds["rf2_r2"]
    assert (two.coupling, two.init) == ("rf1_r2", "rf1_r2") and two.train == one.train
    assert params.couplings["rf1_r2"].round == "rf1_r2"
    assert params.rounds["rf1_r2"].init == "scratch" and depth(params, "rf2_r3") == 2
    for verb, first in (("train", "rf1"), ("train", "rf2"), ("couple", "rf1")):
        drawn = {seed_of(params, verb, f"{first}{end}") for end in ("", "_r2", "_r3")}
        assert len(drawn) == 3
    before = load_text(file, PARAMS)
    for verb, first in (("train", "rf1"), ("train", "rf2"), ("couple", "rf1")):
        assert seed_of(params, verb, first) == seed_of(before, verb, first)


def load_text(file, text):
    other = file.with_name("other.yaml")
    other.write_text(text)
    return load(other)


@pytest.mark.parametrize("shipped", SHIPPED, ids=lambda f: f.stem)
def test_replicates_come_and_go_without_a_trace(shipped):
    text = at_root(shipped.read_text())
    plain = replicated(text, 1)
    three = replicated(text, 3)
    assert replicated(three, 3) == three
    assert replicated(replicated(text, 5), 3) == three
    assert replicated(three, 1) == plain
    assert three.count("replicate: 2}") == three.count("replicate: 3}") > 0
    assert [line for line in text.splitlines() if "#" in line] == [
        line for line in three.splitlines() if "#" in line
    ]


def test_a_round_alone_is_repeated_on_the_pairs_there_are(file):
    assert replicate(file, 2, ["rf2"]) == ["rf2_r2"]
    params = load(file)
    again = params.rounds["rf2_r2"]
    assert (again.coupling, again.init) == ("rf1", "rf1") and list(params.couplings) == ["rf1"]
    assert seed_of(params, "train", "rf2") != seed_of(params, "train", "rf2_r2")


def test_a_seed_of_its_own_is_not_repeated(file):
    file.write_text(PARAMS.replace("    init: rf1\n", "    init: rf1\n    seed: 5\n"))
    replicate(file, 2)
    params = load(file)
    assert params.rounds["rf2"].seed == 5 and params.rounds["rf2_r2"].seed is None
    assert seed_of(params, "train", "rf2_r2") != 5


def test_a_coupling_or_a_round_of_the_users_own_is_left_alone(file):
    replicate(file, 2)
    train = "train: {steps: 1, lr: 1.0e-3}"
    own = f"  more: {{coupling: big, init: rf1_r2, {train}}}\ncouplings:\n"
    text = file.read_text().replace("\ncouplings:\n", f"\n{own}")
    text += "  big: {round: rf1_r2, pairs: 500}\n  big_r2: {round: rf1_r2, pairs: 300}\n"
    file.write_text(text)
    replicate(file, 2, ["rf1", "rf2"])
    params = load(file)
    assert params.couplings["big"].pairs == 500 and params.rounds["more"].coupling == "big"
    before = file.read_text()
    with pytest.raises(ReflowError, match="no round 'rf1_r2'"):
        replicate(file, 1)  # its rounds would be gone
    assert file.read_text() == before


REFUSED = [
    ("replicate_of: rf2, replicate: 2", "replicate: 2", "belong together"),
    ("replicate_of: rf2", "replicate_of: rf9", "no round 'rf9' that could be repeated"),
    ("replicate_of: rf2", "replicate_of: rf1_r2", "no round 'rf1_r2' that could be repeated"),
    ("replicate_of: rf2", "replicate_of: rf1", "rf1_r2 is replicate 2 of rf1 already"),
    ("init: rf1_r2", "init: scratch", "rf2_r2.*: init is not that of rf2"),
    ("coupling: rf1_r2", "coupling: independent", "rf2_r2.*: coupling is not that of rf2"),
    ("{round: rf1_r2, pairs: 2000", "{round: rf1_r2, pairs: 1000", "coupling is not that of rf2"),
    ("replicate_of: rf2, replicate: 2", "replicate_of: rf2, replicate: 1", "of at least 2"),
]


@pytest.mark.parametrize(("old", "new", "message"), REFUSED, ids=[m for *_, m in REFUSED])
def test_what_is_no_replicate_is_refused_in_one_line(file, old, new, message):
    replicate(file, 2)
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new, 1))
    with pytest.raises(ReflowError, match=message) as error:
        load(file)
    assert "\n" not in str(error.value) and "params.yaml:" in str(error.value)


def test_replicates_of_changed_settings_are_written_again(file):
    replicate(file, 2)
    text = file.read_text()
    changed = text.replace("steps: 200", "steps: 100", 1)
    file.write_text(changed)
    with pytest.raises(ReflowError, match="train is not that of rf2.*`reflow replicate`"):
        load(file)
    assert replicate(file, 2) == ["rf1_r2", "rf2_r2"]
    assert load(file).rounds["rf2_r2"].train.steps == 100


def test_a_file_that_is_no_chain_is_told_as_ever(file):
    for text, message in (("seed: 0\n", "rounds: is missing"), ("rounds: [a]\n", "a section")):
        file.write_text(text)
        with pytest.raises(ReflowError, match=message):
            replicate(file, 2)
        assert file.read_text() == text


@pytest.mark.parametrize(
    ("count", "only", "message"),
    [(0, (), "expected 1 to 1000, got 0"), (2, ("rf7",), "no round 'rf7' to repeat")],
)
def test_an_edit_that_cannot_be_leaves_the_file_as_it_is(file, count, only, message):
    with pytest.raises(ReflowError, match=message):
        replicate(file, count, only)
    assert file.read_text() == PARAMS


def test_a_name_that_is_taken_is_refused(file):
    taken = PARAMS.replace("couplings:", "  rf1_r2: {coupling: independent, init: scratch, "
                           "train: {steps: 1, lr: 1.0e-3}}\ncouplings:")  # fmt: skip
    file.write_text(taken)
    with pytest.raises(ReflowError, match="rounds.rf1_r2: a replicate needs this name"):
        replicate(file, 2)
    assert file.read_text() == taken


def test_the_command_writes_replicates_and_says_so(empty, monkeypatch):
    empty.write("dvc.yaml", "stages: {}\n")
    empty.write("params.yaml", PARAMS)
    monkeypatch.chdir(empty.root)
    done = CliRunner().invoke(app, ["replicate", "2", "--round", "rf2"])
    assert done.exit_code == 0 and done.stdout == "params.yaml has replicates rf2_r2\n"
    assert CliRunner().invoke(app, ["replicate", "1"]).stdout == "params.yaml has no replicates\n"
    assert "replicate" not in (empty.root / "params.yaml").read_text()


@pytest.fixture
def real(empty):
    real_stages(empty, *STAGES)
    empty.write("params.yaml", PARAMS)
    return empty


def test_a_seed_reruns_the_stages_that_it_is_of_and_those_after_them(real):
    first = lineage(entries(real.root))
    measured = {"evaluate@rf1", "evaluate@rf2", "compare"}
    for old, new, expected in (
        ("trajectories: 500}", "trajectories: 500, seed: 5}", measured),
        ("splits: 2}", "splits: 2, seed: 5}", {"calibrate", *measured}),
        ("samples: 4000}", "samples: 4000, seed: 5}", {*first} - {"inputs"}),
        ("    init: rf1\n", "    init: rf1\n    seed: 5\n",
         {"train@rf2", "evaluate@rf2", "compare"}),
        ("shard: 512", "shard: 512, seed: 5",
         {"couple@rf1", "train@rf2", "evaluate@rf2", "compare"}),
    ):  # fmt: skip
        real.write("params.yaml", PARAMS.replace(old, new))
        found = lineage(entries(real.root))
        assert {name for name in first if found[name] != first[name]} == expected, new


def test_replicates_leave_every_other_stage_as_it_was(real):
    first = lineage(entries(real.root))
    replicate(real.root / "params.yaml", 2)
    found = lineage(entries(real.root))
    new = {"train@rf1_r2", "train@rf2_r2", "couple@rf1_r2", "evaluate@rf1_r2", "evaluate@rf2_r2"}
    assert {*found} - {*first} == new
    assert {name for name in first if found[name] != first[name]} == {"compare"}


def test_the_records_of_a_replicate_say_whose_it_is_and_the_rounds_keep_their_places(real):
    replicate(real.root / "params.yaml", 2)
    planned = entries(real.root)
    rounds = chain(planned, {}).rounds
    assert [(r.name, r.index, r.replicate_of) for r in rounds] == [
        ("rf1", 1, None), ("rf2", 2, None), ("rf1_r2", 3, "rf1"), ("rf2_r2", 4, "rf2"),
    ]  # fmt: skip
    tags = [replicate_tags(r, planned[f"train@{r.name}"]) for r in rounds]
    assert tags[:2] == [{}, {}]
    assert tags[3] == {"reflow.replicate_of": "rf2", "reflow.replicate": "2"}


def test_chains_that_differ_in_seeds_alone_have_one_recipe(real):
    def recipe(text):
        real.write("params.yaml", text)
        return chain(entries(real.root), {}).recipe

    first = recipe(PARAMS)
    fixed = PARAMS.replace("samples: 4000}", "samples: 4000, seed: 0}")
    fixed = fixed.replace("splits: 2}", "splits: 2, seed: 0}").replace("seed: 0\n", "seed: 1\n", 1)
    assert recipe(fixed) == first
    assert recipe(PARAMS.replace("steps: 200", "steps: 201")) != first
