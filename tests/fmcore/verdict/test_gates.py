"""Gates: levels, words, and what a wrong coupling looks like to them."""

import json

import pytest
import torch

from fmcore.coupling.checks import measure
from fmcore.coupling.noise import gaussian_noise
from fmcore.coupling.write import About, finish, table, write_shard
from fmcore.measure.harness import Evaluate
from fmcore.verdict.gates import WORDS, Gates, Level, judge
from tests.chains import gaussian_data


def test_every_gate_has_words():
    assert set(WORDS) == set(Gates.model_fields)


@pytest.mark.parametrize(
    ("value", "state"), [(1.1, "ok"), (1.3, "warn"), (2.5, "fail"), (float("nan"), "fail")]
)
def test_levels(value, state):
    (verdict,) = judge(Gates(), {"held_out_ratio": value, "unrelated": 9.0})
    assert verdict.state == state
    if state != "ok":
        assert "gates.held_out_ratio" in verdict.says and "more pairs" in verdict.says


def test_a_defect_counts_in_both_directions_and_null_never():
    assert judge(Gates(), {"budget_defect": -0.5})[0].state == "warn"
    assert judge(Gates(budget_defect=Level()), {"budget_defect": -0.5})[0].state == "ok"
    assert judge(Gates(), {"cost_rise": -0.5})[0].state == "ok"
    with pytest.raises(ValueError, match="above fail"):
        Level(warn=3, fail=2)


def coupling(folder, target, source):
    ids = torch.arange(len(target)).numpy()
    about = About(kind="generated", shape=[2], pairs=len(target), seed=0, nfe=4)
    write_shard(
        folder, 0, table(about, ids, target, source, solver_gap=torch.zeros(len(ids)).numpy())
    )
    finish(folder, about, 1)
    return about


def states(tmp_path, target, source):
    data = gaussian_data(tmp_path / "data", mu=[4.0, 0.0], s=[1.0, 0.5])
    about = coupling(tmp_path / "coupling", target, source)
    found = measure(tmp_path / "coupling", data, about)
    return {v.gate: v.state for v in judge(Gates(), found)}


NOISE = gaussian_noise(0, torch.arange(4000).numpy(), (2,))
DATA = torch.tensor([4.0, 0.0]) + torch.tensor([1.0, 0.5]) * NOISE


def test_a_true_coupling_passes(tmp_path):
    assert set(states(tmp_path, DATA, NOISE).values()) == {"ok"}


def test_swapped_ends_are_found(tmp_path):
    found = states(tmp_path, NOISE, DATA)
    assert found["noise_z"] == "fail" and found["endpoint_shift"] == "fail"


def test_repeated_noise_is_found(tmp_path):
    again = NOISE.clone()
    again[7] = again[3]
    assert states(tmp_path, DATA, again)["noise_repeats"] == "fail"


def test_shrunken_endpoints_are_found(tmp_path):
    shrunken = DATA.mean(0) + 0.6 * (DATA - DATA.mean(0))
    assert states(tmp_path, shrunken, NOISE)["endpoint_shift"] == "warn"


def test_defaults_are_settings_like_any_other():
    assert Gates.model_validate(json.loads(Gates().model_dump_json())) == Gates()
    assert Evaluate().guidance == 1
