"""The scale of data: closed forms of the map, and a chain that is the same in any units."""

import json
import math

import numpy as np
import pytest
import torch

from fmcore import own
from fmcore.calibrate import YardstickSettings, calibrate
from fmcore.couple import Couple, couple
from fmcore.coupling.read import open_coupling, read
from fmcore.dataset.arrays import Array
from fmcore.dataset.densities import Checkerboard, EightGaussians, Gaussian, TwoMoons
from fmcore.dataset.kinds import Dataset
from fmcore.dataset.public import Digits
from fmcore.evaluate import Evaluate, EvaluatePaths, evaluate
from fmcore.features.extractor import FeatureSettings
from fmcore.initialise import initialise
from fmcore.kept import write_coupling
from fmcore.measure.likelihood import Likelihood
from fmcore.network.mlp import MLP
from fmcore.own import read as checked
from fmcore.prepare import prepare
from fmcore.sampling.reverse_sde import Sde
from fmcore.scale import Affine, AsIs, Range, Scale, Standardise, advice_on_scale
from fmcore.settings import ReflowError
from fmcore.solve.solver import Solver
from fmcore.tensors import fit_flow, load_flow, rectify
from fmcore.train import Train, train
from fmcore.work.work import Work

STANDARDISE = Standardise(name="standardise")


def points(shape, *, mean=500.0, std=30.0):
    draw = torch.Generator().manual_seed(0)
    return mean + std * torch.randn(shape, generator=draw)


@pytest.mark.parametrize("shape", [(64, 3), (64, 1), (64, 3, 4, 5), (64, 2, 7)])
@pytest.mark.parametrize("std", [1e-6, 1.0, 30.0, 1e4])
def test_the_inverse_undoes_the_map(shape, std):
    x = points(shape, std=std)
    kinds = (STANDARDISE, Range(name="range"), Affine(mean=[3.0], std=[7.0]))
    for scale in (kind.fit(x) for kind in kinds):
        torch.testing.assert_close(
            scale.inverse(scale.forward(x)), x, rtol=0, atol=2e-7 * float(x.abs().max())
        )
        assert Scale.of(json.loads(json.dumps(scale.record))) == scale


def test_standardised_features_have_mean_0_and_deviation_1_and_a_constant_moves_to_0():
    x = points((500, 3)) * torch.tensor([1.0, 1e-3, 0.0]) + torch.tensor([0.0, 5.0, 5.1])
    y = STANDARDISE.fit(x).forward(x).double()
    assert y.mean(0).abs().max() < 1e-4 and not y[:, 2].any()
    torch.testing.assert_close(y[:, :2].std(0, unbiased=False), torch.ones(2).double(), atol=1e-3,
                               rtol=0)  # fmt: skip


def test_channels_are_standardised_as_a_whole_and_a_range_is_one_map():
    x = points((50, 2, 4, 4)) * torch.tensor([1.0, 2.0])[:, None, None]
    scale = STANDARDISE.fit(x)
    assert len(scale.mean) == 2 and scale.std[1] == pytest.approx(2 * scale.std[0], rel=0.2)
    assert scale.forward(x).transpose(0, 1).flatten(1).std(1).tolist() == pytest.approx(
        [1, 1], 0.01
    )
    y = Range(name="range").fit(x).forward(x)
    assert (float(y.min()), float(y.max())) == pytest.approx((-1, 1), abs=1e-6)


def test_the_log_of_the_map_is_that_of_its_jacobian():
    scale = Scale((1.0, 2.0), (3.0, 0.5))
    jacobian = torch.autograd.functional.jacobian(
        lambda x: scale.forward(x.reshape(1, 2, 3)).flatten(), torch.zeros(6)
    )
    assert scale.log_std((2, 3)) == pytest.approx(-float(jacobian.logdet()), rel=1e-5)
    assert Scale().log_std((2, 3)) == 0


def test_no_scale_is_no_change_at_all():
    x = points((4, 2))
    scale = AsIs().fit(x)
    assert scale.forward(x) is x and scale.inverse(x) is x and scale.record is None


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ("standardize", "'standardise'"),
        ({"mean": 1.0}, "std: is missing"),
        ({"mean": 1.0, "std": 0.0}, "above 0"),
        ({"mean": 1.0, "std": float("nan")}, "finite"),
        ({"mean": [], "std": 1.0}, "at least 1"),
        (3, "a section"),
    ],
)
def test_a_wrong_scale_is_one_line(given, says):
    with pytest.raises(ReflowError, match=says) as error:
        checked(Dataset, {"name": "digits", "scale": given}, "params.yaml: data")
    assert "\n" not in str(error.value)


def test_a_scale_of_another_length_is_refused(tmp_path):
    law = Gaussian(name="gaussian", mean=[0.0] * 3, std=[1.0] * 3, samples=50,
                   scale=Affine(mean=[1.0, 2.0], std=[1.0]))  # fmt: skip
    with pytest.raises(ReflowError, match="data.scale.mean: 2 numbers for samples of shape"):
        prepare(tmp_path / "data", law, seed=0)


@pytest.mark.parametrize(
    ("mean", "std", "warns"),
    [
        (0.0, 1.0, False), (9.0, 1.0, False), (11.0, 1.0, True), (0.0, 19.0, False),
        (0.0, 21.0, True), (0.0, 0.06, False), (0.0, 0.04, True), (5.0, 1e-6, True),
        (500.0, 30.0, True),
    ],
)  # fmt: skip
def test_data_far_from_the_noise_is_told_with_its_numbers_and_the_cure(mean, std, warns):
    x = torch.cat([points((4000, 1), mean=0.0, std=1.0), points((4000, 1), mean=mean, std=std)], 1)
    said = advice_on_scale(x)
    assert (said is not None) == warns
    assert advice_on_scale(STANDARDISE.fit(x).forward(x)) is None
    if said:
        assert "data.scale: standardise" in said and "feature 1 has mean" in said


def test_built_in_data_is_near_the_noise():
    for law in (
        EightGaussians(name="eight_gaussians", samples=2000),
        TwoMoons(name="two_moons", samples=2000),
        Checkerboard(name="checkerboard", samples=2000),
        Digits(name="digits"),
    ):
        assert advice_on_scale(law.read(0).target) is None


def test_a_constant_feature_is_no_reason_to_warn():
    x = torch.cat([points((99, 1), mean=0, std=1), torch.ones(99, 1)], 1)
    assert advice_on_scale(x) is None


def pixels(folder, *, levels):
    """Write an array of images [40, 1, 4, 4] with values from 0 to `levels`."""
    draw = np.random.default_rng(0)
    x = draw.integers(0, 256, (40, 1, 4, 4)).astype(np.float32) * levels / 255
    x[0, 0, 0, :2] = 0, levels
    np.save(folder / "x.npy", x)
    return dict(name="array", path=str(folder / "x.npy"), low=0.0, high=255.0)


def test_images_outside_of_their_range_are_brought_into_it_for_good(tmp_path):
    given, said = pixels(tmp_path, levels=255), []
    prepare(tmp_path / "a", Array(**given), seed=0, warn=said.append)
    assert "data.scale: range" in said[0]
    with pytest.raises(ReflowError, match="from 0 to 255; set data.scale: range"):
        prepare(tmp_path / "b", Array(**given, scale="standardise"), seed=0)
    prepare(tmp_path / "c", Array(**given, scale="range"), seed=0)
    coupling = open_coupling(tmp_path / "c")
    x = read(coupling).target
    assert (float(x.min()), float(x.max()), coupling.about.scale) == (-1, 1, None)


def test_images_within_their_range_keep_their_units(tmp_path):
    prepare(tmp_path / "a", Array(**pixels(tmp_path, levels=1), scale="standardise"), seed=0)
    coupling = open_coupling(tmp_path / "a")
    x = coupling.about.units.inverse(read(coupling).target)
    assert (float(x.min()), float(x.max())) == pytest.approx((0, 1), abs=1e-6)


def test_what_is_common_to_all_data_among_the_settings_of_a_class_of_ones_own_is_refused(tmp_path):
    (tmp_path / "mine.py").write_text(MINE)
    own.trust(tmp_path, ["mine:Mine"])
    custom = {"name": "custom", "path": "mine:Mine"}
    with pytest.raises(ReflowError, match="scale belongs beside path"):
        checked(Dataset, {**custom, "settings": {"scale": "range"}}, "data")
    with pytest.raises(ReflowError, match=r"conditions belongs beside path.*data\.conditions"):
        checked(Dataset, {**custom, "settings": {"conditions": {"column": "text"}}}, "data")
    law = checked(Dataset, {**custom, "scale": "standardise"}, "data")
    prepare(tmp_path / "data", law, seed=0)
    about = open_coupling(tmp_path / "data").about
    assert about.scale == {"mean": [3.0], "std": [1.0]} and about.data == {**custom, "settings": {}}


MINE = """
import torch
from fmcore.dataset.samples import Data, Samples


class Mine(Data):
    def read(self, seed):
        return Samples(torch.tensor([[2.0], [4.0]]), None, image=False)
"""


def test_the_factor_of_two_moons_is_read_by_its_former_name_too():
    moons = checked(Dataset, {"name": "two_moons", "scale": 1.5}, "data")
    assert moons.size == 1.5 and moons.scale == AsIs()
    both = checked(Dataset, {"name": "two_moons", "size": 1.5, "scale": "range"}, "data")
    assert both.size == 1.5 and isinstance(both.scale, Range)


def chain(root, law):
    """Prepare, calibrate, train, couple and evaluate one tiny round."""
    warnings = []
    prepare(root / "data", law, seed=0, warn=warnings.append)
    work = Work(scratch=root / "tmp")
    features = FeatureSettings(kind="identity")
    settings = YardstickSettings(features=features, samples=150, splits=2)
    calibrate(root / "data", root / "yardstick", settings, work)
    initialise(root / "data", root / "scratch", MLP(width=16, depth=1, time_features=4), seed=0)
    train(
        root / "data", root / "scratch", root / "rf1", root / "rf1.csv", root / "train.json",
        Train(steps=60, batch=128, lr=1e-2, warmup=5, ema=0.9), name="rf1", work=work,
    )  # fmt: skip
    couple(root / "rf1", root / "data", root / "pairs", root / "couple.json",
           Couple(pairs=200, solver=Solver(steps=8)), Work(scratch=root / "tmp2"))  # fmt: skip
    paths = EvaluatePaths(
        root / "rf1", root / "data", root / "data", root / "yardstick", root / "evaluate.json",
        root / "fd.csv", root / "gap.csv", root / "pictures",
    )  # fmt: skip
    solver = Solver(name="heun", steps=8)
    wanted = Evaluate(
        nfe=(1, 4), solver=solver, trajectories=200, reconstructions=50, sde=(Sde(steps=8),),
        likelihood=Likelihood(samples=30, solver=solver),
    )  # fmt: skip
    return evaluate(paths, wanted, work), warnings


@pytest.fixture(scope="module")
def twins(tmp_path_factory):
    """A chain on data of mean 500 and deviations 32 and 16, and one on the same data near 0."""
    torch.set_num_threads(1)
    root = tmp_path_factory.mktemp("twins")
    far = Gaussian(name="gaussian", mean=[500.0, 532.0], std=[32.0, 16.0], samples=400,
                   scale=Affine(mean=[500.0], std=[32.0]))  # fmt: skip
    near = Gaussian(name="gaussian", mean=[0.0, 1.0], std=[1.0, 0.5], samples=400)
    with pytest.MonkeyPatch.context() as patched:  # other contents would be held out
        patched.setattr("fmcore.prepare.identities", lambda x: np.arange(len(x)))
        return root, chain(root / "far", far), chain(root / "near", near)


def test_distances_are_in_the_units_of_the_data_and_paths_in_those_of_the_model(twins):
    _, (far, warned), (near, _) = twins
    assert far.keys() == near.keys() and not warned
    for key, value in near.items():
        factor = 1.0
        if key.startswith("fd_"):
            factor = 32.0**2
        elif key.startswith(("w2", "sliced_w2", "energy", "nearest_train", "raw_minus_ema")):
            factor = 32.0
        if key.startswith("kd_"):  # its kernel depends on the origin
            continue
        if key in ("nll", "nll/floor"):
            assert far[key] == pytest.approx(value + 2 * math.log(32), abs=1e-3), key
        else:
            assert far[key] == pytest.approx(factor * value, rel=2e-3, abs=2e-3 * factor), key


def test_the_map_is_kept_with_the_coupling_and_the_model(twins):
    root, *_ = twins
    record = {"mean": [500.0], "std": [32.0]}
    assert open_coupling(root / "far" / "data").about.scale == record
    assert open_coupling(root / "far" / "pairs").about.scale == record
    for name in ("scratch", "rf1"):
        assert json.loads((root / "far" / name / "config.json").read_text())["scale"] == record
        assert "scale" not in json.loads((root / "near" / name / "config.json").read_text())
    assert "scale" not in (root / "near" / "data" / "_manifest.json").read_text()


def test_pairs_are_in_model_units_and_samples_come_back_in_those_of_the_data(twins):
    root, *_ = twins
    for name in ("data", "pairs"):
        far, near = (read(open_coupling(root / side / name)).target for side in ("far", "near"))
        torch.testing.assert_close(far, near, rtol=0, atol=1e-3)
    flow = load_flow(root / "far" / "rf1")
    x = flow.scale.inverse(flow.sample(points((300, 2), mean=0, std=1), Solver(steps=8)).x)
    assert x.mean(0).tolist() == pytest.approx([500, 532], abs=12)


def test_in_a_notebook_the_map_stays_with_the_flow_and_the_coupling(twins, tmp_path):
    root, *_ = twins
    flow = load_flow(root / "far" / "rf1")
    pairs = rectify(flow, 40, Solver(steps=4))
    write_coupling(tmp_path / "pairs", pairs, scale=flow.scale)
    assert open_coupling(tmp_path / "pairs").about.units == flow.scale != Scale()
    assert fit_flow(pairs, Train(steps=1, batch=8), init=flow).scale == flow.scale


def test_a_model_of_other_units_is_refused(twins, tmp_path):
    root, *_ = twins
    with pytest.raises(ReflowError, match="other units than the model"):
        couple(root / "far" / "rf1", root / "near" / "data", tmp_path / "a", tmp_path / "b.json",
               Couple(pairs=10), Work(scratch=tmp_path / "c"))  # fmt: skip
    with pytest.raises(ReflowError, match="other units than the model"):
        train(
            root / "near" / "data", root / "far" / "rf1", tmp_path / "d", tmp_path / "e.csv",
            tmp_path / "f.json", Train(steps=1), name="a", work=Work(scratch=tmp_path / "g"),
        )  # fmt: skip


def test_a_warning_at_prepare_and_none_with_the_cure(tmp_path):
    said: list[str] = []
    law = dict(name="gaussian", mean=[500.0], std=[30.0], samples=100)
    prepare(tmp_path / "a", Gaussian(**law), seed=0, warn=said.append)
    assert len(said) == 1 and "data.scale: standardise" in said[0]
    prepare(tmp_path / "b", Gaussian(**law, scale=STANDARDISE), seed=0, warn=said.append)
    assert len(said) == 1
    x = read(open_coupling(tmp_path / "b")).target
    assert float(x.mean()) == pytest.approx(0, abs=1e-5)
    assert np.isclose(float(x.std(unbiased=False)), 1, atol=1e-5)
