"""params.yaml: one clear line for each mistake, with its place and the mend."""

import shutil
import subprocess
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from flows.params.edit import edited
from flows.params.load import WithoutGpu, load
from flows.params.reduce import fitted, reductions
from flows.params.use import use_params
from fmcore.settings import ReflowError

ROOT = Path(__file__).parents[3]
GOOD = (ROOT / "params.yaml").read_text()
GOOD = GOOD.replace("time: {name: beta, a: 1.5, b: 0.5}", "time: u_shaped")


@pytest.mark.parametrize(
    "file", ["params.yaml", *(f"params/{p.name}" for p in (ROOT / "params").iterdir())]
)
def test_every_parameter_file_is_good(file):
    assert len(load(ROOT / file).rounds) >= 2


CASES = [
    (
        "steps: 4000",
        "steps: -3",
        r"params.yaml:\d+: rounds.rf2.train.steps: expected a number above 0, got -3",
    ),
    ("steps: 4000", "steps: many", r"rounds.rf2.train.steps: expected a whole number, got 'many'"),
    ("steps: 4000", "steps: true", r"rounds.rf2.train.steps: expected a whole number, got true"),
    ("steps: 4000", "stpes: 4000", r"rounds.rf2.train.stpes: unknown key; did you mean 'steps'\?"),
    (
        "steps: 4000, batch: 256, lr: 2.0e-3",
        "steps: 4000, lr: .nan",
        r"rounds.rf2.train.lr: expected a finite number, got nan",
    ),
    (
        "steps: 4000",
        "steps: 4000, ema: 2",
        r"rounds.rf2.train.ema: expected a number below 1, got 2",
    ),
    (
        "steps: 4000",
        "steps: 4000, ema: {half_lives: 9}",
        r"rounds.rf2.train.ema.half_lives: unknown key; did you mean 'half_life'\?",
    ),
    (
        "pairs: 30000",
        "weights: 0.1, pairs: 30000",
        r"couplings.rf1.weights: 0.1 is a power average, and rf1 keeps none; set"
        r" rounds.rf1.train.power_ema",
    ),
    ("pairs: 30000", "weights: emma, pairs: 30000", r"couplings.rf1.weights: .*'ema' or 'raw'"),
    (
        "pairs: 30000",
        "weights: 0.5, pairs: 30000",
        r"couplings.rf1.weights: expected a number of at most 0.28",
    ),
    (
        "init: rf1\n    train: {steps: 4000",
        "init: scratch\n    train: {adapter: {kind: lora}, steps: 4000",
        r"rounds.rf2.init: scratch is untrained, and an adapter .*; name a round, or leave",
    ),
    (
        "steps: 4000",
        "steps: 4000, adapter: {kind: lora}, power_ema: {}",
        r"rounds.rf2.train.power_ema: its averages are sums of whole weights.*; leave it or",
    ),
    (
        "steps: 4000",
        "steps: 4000, adapter: {kind: lora}, processes: 2, shard: full",
        r"rounds.rf2.train.shard: full divides the weights that are trained.*; use replicate",
    ),
    ("steps: 4000", "steps: 4000, adapter: {kind: dora}", r"train.adapter.kind: .*got 'dora'"),
    ("steps: 4000", "steps: 4000, adapter: {rank: 0}", r"train.adapter.rank: .*at least 1"),
    (
        "init: rf1",
        "init: rf9",
        r"params.yaml:\d+: rounds.rf2.init: no round 'rf9'; use one of: scratch",
    ),
    ("coupling: rf1", "coupling: rf7", r"rounds.rf2.coupling: no coupling 'rf7'; add it under"),
    ("init: scratch", "init: rf2", r"the rounds go in a circle: rf1 -> rf2 -> rf1"),
    ("{round: rf1,", "{round: rf5,", r"couplings.rf1.round: no round 'rf5'"),
    (
        "data: {name: digits}",
        "data: {name: digit}",
        r"params.yaml:\d+: data.name: expected one of .*'digits'.*got 'digit'",
    ),
    ("data: {name: digits}", "", r"data: is missing"),
    ("seed: 0", "seed: 0\nsede: 1", r"params.yaml:\d+: sede: unknown key; did you mean 'seed'"),
    ("  rf2:", "  2:", r"rounds.2"),
    ("  rf2:", "  RF2:", r"rounds.RF2: a name is lower-case"),
    ("seed: 0", "seed: [0", r"params.yaml:\d+: not valid YAML"),
    (
        "network: {width: 320",
        "network: {classes: 9, width: 320",
        r"params.yaml:\d+: network.classes: 9 is below the 10 classes of this data; raise it",
    ),
    (
        "data: {name: digits}\nnetwork: {width: 320",
        "data: {name: checkerboard}\nnetwork: {classes: 2, width: 320",
        r"network.classes: this data has no labels; set it to 0",
    ),
    (
        "data: {name: digits}",
        "data: {name: digits, scale: standardize}",
        r"params.yaml:\d+: data.scale.name: expected one of 'none', 'standardise', 'range'",
    ),
    (
        "data: {name: digits}",
        "data: {name: digits}\nsource: {name: two_moons}",
        r"params.yaml:\d+: source: data and source need one shape, got \[1, 8, 8\] and \[2\]",
    ),
    (
        "data: {name: digits}",
        "data: {name: digits}\nsource: {name: digits, scale: standardise}",
        r"params.yaml:\d+: source.scale: both sides are mapped by data.scale",
    ),
    (
        "data: {name: digits}\n",
        "data: {name: digits}\nsource: {name: fashion}\n",
        r"params.yaml:\d+: source.name: expected one of 'noise', .*got 'fashion'",
    ),
    (
        "evaluate:\n",
        "source: {name: digits}\nevaluate:\n  likelihood: {}\n",
        r"evaluate.likelihood: needs the density of the source, known for noise alone",
    ),
    (GOOD, "- a\n- b\n", r"params.yaml: expected a mapping"),
    ("device: auto", "device: gpu", r"compute.device: .*'auto', 'cpu' or 'cuda', got 'gpu'"),
    ("nfe: [1, 2, 4, 8, 16, 32, 64]", "nfe: []", r"evaluate.nfe"),
    ("solver: {name: heun, steps: 32}", "solver: heun", r"evaluate.solver: .*got 'heun'"),
    ("nfe: [1, 2, 4, 8, 16, 32, 64]", "nfe: [0]", r"evaluate.nfe.0: .*above 0, got 0"),
    (
        "name: ab4, steps: 23, shift: 0.5",
        "name: auto, steps: 3",
        r"couplings.rf1.solver.steps: unknown key; accepted: error, name$",
    ),
    (
        "name: ab4, steps: 23, shift: 0.5",
        "name: dopri5, step: 3",
        r"solver.step: unknown key; .*accepted: atol, max_steps, name, rtol$",
    ),
    (
        "name: ab4, steps: 23, shift: 0.5",
        "name: hoyn, steps: 18",
        r"couplings.rf1.solver.name: .*got 'hoyn'",
    ),
    (
        "steps: 5000",
        "steps: 5000, time: u_shape",
        r"rf1.train.time.name: expected one of 'uniform'",
    ),
    (
        "ab4, steps: 23, shift: 0.5",
        "ab4, times: [1, 0.5]",
        r"rf1.solver: times must fall from 1 to 0",
    ),
    ("pairs: 30000", "pairs: 30000, mix: {generated: 0.5}", r"couplings.rf1: mix: shares must add"),
    ("pairs: 30000", "pairs: 30000, guidance: 2.0", r"rf1.guidance: .*set network.classes"),
    ("steps: 4000", "steps: 4000, pairing: optimal", r"rf2.train.pairing: pairs anew .*'rf1'"),
    ("steps: 5000", "steps: 5000, drop_longest: 0.1", r"rf1.train.drop_longest: .*no fixed pairs"),
    (
        "steps: 5000",
        "steps: 5000, interpolant: {name: custom, path: 'no_module:X'}",
        r"rounds.rf1.train.interpolant: no_module:X: the project has no no_module.py",
    ),
    ("warn: 4, fail: 6", "warn: 7, fail: 6", r"gates.noise_z: warn 7 lies above fail 6"),
    ("gates: ", "gatse: ", r"gates: is missing; add it"),
    ("seed: 0", "seed: 0\nseed: 1", r"params.yaml:\d+: not valid YAML: found duplicate key"),
    (GOOD, "", r"params.yaml: expected a mapping of settings, got nothing"),
    (
        "data: {name: digits}",
        "data: {name: custom, path: my_flows:Rings}",
        r"params.yaml:\d+: not valid YAML: found unexpected ':'; put text with a colon in quotes",
    ),
]


@pytest.mark.parametrize(("before", "after", "message"), CASES)
def test_a_mistake_gets_one_line_with_place_and_mend(tmp_path, before, after, message):
    assert before in GOOD
    path = tmp_path / "params.yaml"
    path.write_text(GOOD.replace(before, after, 1))
    with pytest.raises(ReflowError, match=message) as error:
        load(path)
    assert all(line.startswith("params.yaml") for line in str(error.value).splitlines())


def test_a_flow_map_may_be_an_adapter(tmp_path):
    path = tmp_path / "params.yaml"
    adapted = GOOD.replace("steps: 4000", "adapter: {kind: lora}, steps: 4000")
    for text in (adapted, adapted.replace("adapter:", "objective: mean_flow, adapter:")):
        path.write_text(text.replace("time: u_shaped, ", ""))
        assert load(path).rounds["rf2"].train.adapter.rank == 16


def test_without_a_gpu_a_chain_can_be_a_share_of_its_size():
    whole = load(ROOT / "params" / "fashion_mnist.yaml")
    part = reductions(whole, WithoutGpu(share=0.01, batch=64))
    assert part["rounds.rf1.train.steps"] == 40 and whole.rounds["rf1"].train.steps == 4000
    assert part["couplings.rf1.pairs"] == 400 and part["yardstick.samples"] == 256
    assert part["evaluate.trajectories"] == 256 and part["rounds.rf1.train.batch"] == 64
    assert part["rounds.rf1.train.warmup"] == 2
    assert part["rounds.rf1.train.ema"] == pytest.approx(0.9)
    assert "network" not in part


def test_a_half_life_in_samples_is_shortened_with_the_samples(tmp_path):
    path = tmp_path / "params.yaml"
    text = (ROOT / "params" / "fashion_mnist.yaml").read_text()
    path.write_text(text.replace("ema: 0.999", "ema: {half_life: 500000}"))
    part = reductions(load(path), WithoutGpu(share=0.01, batch=64))
    assert part["rounds.rf1.train.ema.half_life"] == 0.01 * 500000 * 64 / 256
    small = YAML(typ="safe").load(edited(path.read_text(), part))
    assert small["rounds"]["rf1"]["train"]["ema"] == {"half_life": 1250.0}


def test_a_share_of_one_changes_nothing():
    path = ROOT / "params" / "fashion_mnist.yaml"
    whole = load(path)
    same = edited(path.read_text(), reductions(whole, WithoutGpu(share=1.0)))
    assert YAML(typ="safe").load(same)["rounds"] == YAML(typ="safe").load(path)["rounds"]


def test_what_is_cut_down_is_what_the_file_says(tmp_path):
    """No stage chooses a size of its own: DVC and MLflow would record another than was run."""
    text = (ROOT / "params" / "fashion_mnist.yaml").read_text()
    path = tmp_path / "params.yaml"
    path.write_text(text.replace("device: auto", "device: cpu"))  # also on a machine with a GPU
    cut = load(path).without_gpu
    found, said = fitted(path)
    assert said.startswith(f"no GPU: {cut.share:g} of steps, pairs and samples, batch")
    assert said in found.splitlines()[0] and "# the standard levels" in found
    assert found.splitlines()[1] == "# yaml-language-server: $schema=params.schema.json"
    path.write_text(found)
    small = load(path)
    assert small.network == cut.network and small.rounds["rf1"].train.steps == 600
    assert small.without_gpu is None and fitted(path) == (found, "")


def test_use_takes_the_size_of_the_machine_and_loses_no_edits(tmp_path):
    (tmp_path / "params").mkdir()
    file, current = tmp_path / "params" / "big.yaml", tmp_path / "params.yaml"
    text = (ROOT / "params" / "fashion_mnist.yaml").read_text()
    file.write_text(text.replace("device: auto", "device: cpu"))
    shutil.copy(ROOT / "params.yaml", current)
    for words in (["init", "-q"], ["add", "-A"]):
        subprocess.run(["git", *words], cwd=tmp_path, check=True)
    who = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
    subprocess.run(["git", *who, "commit", "-qm", "a"], cwd=tmp_path, check=True)
    assert "0.15 of steps" in use_params(tmp_path, file, force=False, whole=False)
    assert load(current).rounds["rf1"].train.steps == 600
    assert use_params(tmp_path, file, force=False, whole=True) == ""  # no edit of a person is lost
    assert current.read_text() == file.read_text().replace("../params.schema", "params.schema")
    current.write_text(current.read_text().replace("seed: 0", "seed: 1"))
    with pytest.raises(ReflowError, match="edits that git does not have"):
        use_params(tmp_path, file, force=False, whole=False)
    assert load(current).seed == 1
    use_params(tmp_path, file, force=True, whole=False)
    assert load(current).rounds["rf1"].train.steps == 600


def test_a_third_round_and_a_branch_are_data(tmp_path):
    path = tmp_path / "params.yaml"
    extra = (
        "  rf3:\n    coupling: rf2\n    init: rf2\n    train: {steps: 10}\n"
        "  rf2_long:\n    coupling: rf1\n    init: rf1\n    train: {steps: 20}\n\ncouplings:"
    )
    text = GOOD.replace("\ncouplings:", extra) + "  rf2: {round: rf2, pairs: 100}\n"
    path.write_text(text)
    assert set(load(path).rounds) == {"rf1", "rf2", "rf3", "rf2_long"}


def test_a_folder_is_no_parameter_file(tmp_path):
    with pytest.raises(ReflowError, match="cannot be read"):
        load(tmp_path)


def test_a_missing_file(tmp_path):
    with pytest.raises(ReflowError, match="not found"):
        load(tmp_path / "params.yaml")
