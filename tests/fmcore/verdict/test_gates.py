"""Gates: levels, words, and what a wrong coupling looks like to them."""

import json

import pytest
import torch

from fmcore.coupling.checks import measure
from fmcore.coupling.noise import gaussian_noise
from fmcore.coupling.read import open_coupling
from fmcore.coupling.write import About, finish, table, write_shard
from fmcore.matching.interpolant import Linear
from fmcore.measure.harness import Evaluate
from fmcore.network.field import Field
from fmcore.training.held_out import held_out_losses, held_out_sides
from fmcore.verdict.gates import LEAST_ROWS, STAGES, WORDS, Gates, Level, absent, judge
from tests.chains import CPU, gaussian_data


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


def test_a_gate_without_a_value_says_that_it_was_not_measured():
    found = absent("evaluate", {"cost_rise": 0.0, "budget_defect": 0.0, "recall_lost": 0.0})
    assert [(v.gate, v.state) for v in found] == [
        ("drift_rel", "not measured"), ("memorised", "not measured"),
    ]  # fmt: skip
    assert found[1].says == "memorised was not measured: no data is held out"
    assert sorted(name for names in STAGES.values() for name in names) == sorted(Gates.model_fields)


def test_a_few_audited_pairs_do_not_decide_on_the_solver():
    said = {n: judge(Gates(), {"solver_gap_rel": 0.3, "audited": n})[0] for n in (4, 64)}
    assert said[4].state == "undecided" and "4 audited, 64 needed" in said[4].says
    assert said[64].state == "fail"
    assert judge(Gates(), {"solver_gap_rel": 0.3})[0].state == "fail"


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


def ratio_of(errors, others):
    """Return the metrics of held_out_losses for losses of held-out and of trained pairs."""
    n, a, b = len(errors), errors.mean(), others.mean()
    relative = ((errors.var() / n) / a**2 + (others.var() / n) / b**2) ** 0.5
    ratio = float(a / b)
    return {
        "held_out_ratio": ratio,
        "held_out_ratio_se": float(ratio * relative),
        "held_out_pairs": n,
    }


@pytest.mark.parametrize("rows", [5, 20, 64, 200])
def test_noise_stops_a_chain_at_most_at_the_nominal_rate(rows):
    """Losses of pairs vary by their own size (exponential); their true ratio is the fail level."""
    generator = torch.Generator().manual_seed(rows)
    draws = torch.empty(2, 2000, rows, dtype=torch.float64).exponential_(generator=generator)
    failed = [
        judge(Gates(), ratio_of(2 * a, b))[0].state == "fail"
        for a, b in zip(draws[0], draws[1], strict=True)
    ]
    share = sum(failed) / len(failed)
    assert share == 0 if rows < LEAST_ROWS else 0.003 < share < 0.0228 + 0.01  # N(0, 1) above 2


def test_a_ratio_clearly_above_its_level_fails_and_a_true_one_never():
    generator = torch.Generator().manual_seed(0)
    a, b = torch.empty(2, 300, 200, dtype=torch.float64).exponential_(generator=generator)
    states = [judge(Gates(), ratio_of(3.5 * x, y))[0].state for x, y in zip(a, b, strict=True)]
    assert states.count("fail") > 0.98 * len(states)
    states = [judge(Gates(), ratio_of(x, y))[0].state for x, y in zip(a, b, strict=True)]
    assert "fail" not in states


def test_few_rows_decide_nothing_and_say_so():
    (verdict,) = judge(Gates(), {"held_out_ratio": 2.21, "held_out_pairs": 5})
    assert verdict.state == "undecided"
    assert verdict.says == "held_out_ratio 2.21 is not decided: 5 pairs, 64 needed"
    (verdict,) = judge(Gates(), {"held_out_ratio": float("nan"), "held_out_pairs": 5})
    assert verdict.state == "fail", "what is not finite needs no more rows"
    (verdict,) = judge(Gates(), {"cost_rise": 0.02, "cost_rise_se": 0.02})
    assert verdict.state == "ok" and verdict.says == "cost_rise 0.02 ± 0.02", "noise is no warning"
    few = {"recall_lost": 0.3, "recall_lost_se": 0.04}
    assert judge(Gates(), few)[0].state == "warn"
    assert judge(Gates(), {**few, "recall_lost_cuts": 4})[0].state == "ok", "Student's t is wider"
    (verdict,) = judge(Gates(), {"held_out_ratio": 2.1, "held_out_ratio_se": 0.4})
    assert verdict.state == "warn" and "within the standard error 0.4" in verdict.says


def test_noise_above_both_levels_warns_no_more_often_than_nominal():
    """The true rise is 0, its error as large as the fail level."""
    draws = 0.1 * torch.randn(2000, generator=torch.Generator().manual_seed(0))
    states = [
        judge(Gates(), {"cost_rise": rise, "cost_rise_se": 0.1})[0].state for rise in draws.tolist()
    ]
    assert states.count("warn") + states.count("fail") < 0.04 * len(states)
    (verdict,) = judge(Gates(), {"cost_rise": 0.12, "cost_rise_se": 0.06})
    assert verdict.state == "undecided"
    assert verdict.says == "cost_rise 0.12 ± 0.06 is not decided: its error is too large"
    assert judge(Gates(), {"cost_rise": 0.12, "cost_rise_se": 0.04})[0].state == "warn"


def test_a_shift_of_the_endpoints_names_training_steps_and_scale_as_cures():
    """A root mean square of all features hides one whose mean or deviation is far away."""
    for known in ({}, {"target_rms": 1.0}, {"target_rms": 4.0}):
        (verdict,) = judge(Gates(), {"endpoint_shift": 0.8, **known})
        assert verdict.state == "fail" and "set data.scale" in verdict.says
        assert "train the round longer, solve with more steps" in verdict.says
    (verdict,) = judge(Gates(), {"endpoint_shift": 0.8, "target_rms": 40.0})
    assert "root mean square 40" in verdict.says and "longer" not in verdict.says


@pytest.mark.parametrize("size", [1e4, 500.0, 1e-6])
def test_data_far_from_unit_scale_is_named_as_the_cause(size):
    (verdict,) = judge(Gates(), {"held_out_ratio": 3.0, "target_rms": size})
    assert "data.scale" in verdict.says and "remembers" not in verdict.says
    (verdict,) = judge(Gates(), {"held_out_ratio": 3.0, "target_rms": 4.0})
    assert "data.scale" not in verdict.says and "remembers" in verdict.says


def test_the_standard_error_of_a_held_out_loss_is_that_over_pairs(tmp_path):
    """The spread of the losses of several draws of pairs is what each of them states."""
    found = []
    for seed in range(16):
        gaussian_data(tmp_path / str(seed), mu=[0.0, 0.0], s=[1.0, 1.0], pairs=2000, seed=seed)
        field = Field(lambda x, t: torch.zeros_like(x), Linear())
        sides = held_out_sides(open_coupling(tmp_path / str(seed)), 400)
        found.append(held_out_losses(field, sides, seed=0, device=CPU, limit=400))
    losses = torch.tensor([f["held_out_loss"] for f in found])
    stated = sum(f["held_out_loss_se"] for f in found) / len(found)
    assert 70 < found[0]["held_out_pairs"] < 130  # 5 % of 2,000, by their content
    assert stated == pytest.approx(float(losses.std()), rel=0.45)
    assert stated == pytest.approx((2.0**2 * 2 / 2 / 100) ** 0.5, rel=0.15)
