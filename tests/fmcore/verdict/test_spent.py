"""What rounds cost, their ancestors included, each once; and the rows of samplers."""

from fmcore.verdict.cuts import SamplerCuts
from fmcore.verdict.spent import Made, by_sampler, cumulated

CHAIN = {
    "rf1": Made("independent", []),
    "rf2": Made("rf1", ["rf1"]),
    "rf3": Made("rf2", ["rf2"]),
    "student": Made("rf2", ["rf3", "rf2"]),
}


def test_a_round_pays_for_its_ancestors_each_once():
    training = {"rf1": 1, "rf2": 10, "rf3": 100, "student": 1000}
    found = cumulated(CHAIN, training, {"rf1": 5, "rf2": 50})
    assert found["rf1"] == {"flops_training": 1, "flops_pairs": 0}
    assert found["rf3"] == {"flops_training": 111, "flops_pairs": 55}
    assert found["student"] == {"flops_training": 1111, "flops_pairs": 55}  # rf2's pairs once


def test_a_round_with_an_unknown_ancestor_has_no_cost():
    assert set(cumulated(CHAIN, {"rf1": 1, "rf2": 1}, {})) == {"rf1"}


def test_a_sampler_has_its_distance_its_error_and_published_metrics():
    cuts = [{"fd": 1.0, "kd": 5.0}, {"fd": 3.0, "kd": 5.0}]
    rows = [SamplerCuts("euler_4", 4, cuts), SamplerCuts("dopri5", 30.5, cuts)]
    values = {
        "fd/nfe_4": 2.0, "kd/nfe_4": 5.0, "fid50k_train/nfe_4": 7.0, "fid50k_train/nfe_14": 9.0,
        "fid50k_train/dopri5": 3.0, "nfe/dopri5": 30.5, "nearest_train_raw/nfe_4": 1.0,
        "fd_power_0.05/nfe_4": 1.0, "is50k_sd/nfe_4": 0.1, "is50k_se/nfe_4": 0.03,
        "fd_inception_50k_test_se/nfe_4": 0.2,
    }  # fmt: skip
    raw = SamplerCuts("raw_euler_4", 4, cuts)
    assert by_sampler([*rows, raw], "fd", values) == {
        "euler_4": {
            "nfe": 4,
            "fd": 2.0,
            "fd_se": 1.0,
            "fid50k_train": 7.0,
            "is50k_sd": 0.1,
            "is50k_se": 0.03,
            "fd_inception_50k_test_se": 0.2,
        },
        "dopri5": {"nfe": 30.5, "fd": 2.0, "fd_se": 1.0, "fid50k_train": 3.0},
    }
    assert by_sampler(rows, "energy", values) == {}
