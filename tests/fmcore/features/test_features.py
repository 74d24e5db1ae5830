"""The feature extractor by itself; measure/test_yardstick.py has what is measured with it."""

import hashlib
import math

import pytest
import torch

from fmcore.dataset.public import Digits
from fmcore.features.extractor import (
    Extractor,
    FeatureSettings,
    extract,
    fingerprint,
    fit_classifier,
    load_extractor,
    metric_name,
    quantise,
    rows_at_once,
    save_extractor,
)
from fmcore.settings import ReflowError
from tests.chains import silent

ONE_EPOCH = FeatureSettings(epochs=1)


@pytest.fixture(scope="module")
def digits():
    torch.set_num_threads(1)
    return Digits(name="digits").read(0)


def fit(digits, seed, settings=ONE_EPOCH):
    return fit_classifier(digits.target[:500], digits.label[:500], settings, seed, silent)


@pytest.mark.parametrize("shape", [(1, 8, 8), (1, 28, 28), (3, 32, 32), (1, 7, 5)])
def test_images_of_any_size_have_64_features(shape):
    extractor = Extractor(shape, 10, 4)
    x = torch.zeros(3, *shape)
    assert extract(extractor, x).shape == (3, 64)
    assert extractor(x).shape == (3, 10)


def test_equal_seeds_write_equal_bytes(digits, tmp_path):
    def digest(name, seed):
        save_extractor(tmp_path / name, fit(digits, seed))
        files = sorted((tmp_path / name).iterdir())
        assert [f.name for f in files] == ["config.json", "model.safetensors"]
        return hashlib.sha256(b"".join(f.read_bytes() for f in files)).hexdigest()

    first = digest("a", 1)
    torch.manual_seed(123)  # the caller's generator must not matter
    assert digest("b", 1) == first
    assert digest("c", 2) != first


def test_the_callers_generator_is_left_alone(digits):
    before = torch.random.get_rng_state()
    fit(digits, 0)
    assert torch.equal(before, torch.random.get_rng_state())


def test_progress_is_logged_by_epoch(digits):
    log = []
    settings = FeatureSettings(epochs=3)
    fit_classifier(
        digits.target, digits.label, settings, 0, lambda values, step: log.append((step, values))
    )
    assert [step for step, _ in log] == [1, 2, 3]
    assert log[2][1]["accuracy"] > log[0][1]["accuracy"]
    assert log[2][1]["loss"] < log[0][1]["loss"]


def test_features_do_not_depend_on_the_batch_and_survive_the_disk(digits, tmp_path):
    extractor = fit(digits, 0)
    x = digits.target[500:600]
    torch.testing.assert_close(extract(extractor, x, batch=7), extract(extractor, x))
    save_extractor(tmp_path, extractor)
    again = load_extractor(tmp_path)
    assert fingerprint(again) == fingerprint(extractor)
    assert torch.equal(extract(again, x), extract(extractor, x))
    assert not extract(again, x).requires_grad


def test_features_are_those_of_the_layers_and_a_sample_that_is_not_finite_shows(digits):
    extractor, x = fit(digits, 0), digits.target[500:800].clone()
    assert rows_at_once(extractor, x) == 256
    torch.testing.assert_close(extract(extractor, x), extractor.trunk(x))
    x[7, 0, 2, 2] = math.nan
    bad = ~extract(extractor, x).isfinite().all(1)
    assert bad.nonzero().flatten().tolist() == [7]


def test_the_fingerprint_sees_one_weight_and_the_config(digits):
    extractor = fit(digits, 0)
    before = fingerprint(extractor)
    extractor.head.bias[0] += 1e-6
    after = fingerprint(extractor)
    extractor.config["width"] += 1
    assert len({before, after, fingerprint(extractor), fingerprint(None)}) == 4


def test_identity_flattens():
    x = torch.arange(24.0).reshape(2, 3, 4)
    assert torch.equal(extract(None, x), x.reshape(2, 12))


def test_the_name_says_the_features_and_never_fid():
    assert metric_name(FeatureSettings(), 5) == "fd_clf"
    assert metric_name(FeatureSettings(kind="identity"), 5) == "fd_identity"


def test_quantised_images_have_256_levels():
    levels = ((quantise(torch.linspace(-1.5, 1.5, 100_001)) + 1) * 127.5).round()
    assert levels.unique().tolist() == list(range(256))


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_damaged_file_names_the_folder(digits, tmp_path, name):
    save_extractor(tmp_path, fit(digits, 0))
    (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:20])
    with pytest.raises(ReflowError, match=f"{tmp_path.name}: damaged.*calibrate again"):
        load_extractor(tmp_path)
