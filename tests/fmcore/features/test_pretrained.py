"""Feature networks that others trained: from local files, checked by their hash."""

import hashlib

import pytest
import torch

from fmcore.features.extractor import (
    FeatureSettings,
    extract,
    fingerprint,
    load_extractor,
    metric_name,
    pretrained,
    save_extractor,
    suffix,
)
from fmcore.features.inception import Inception, tf1_resize
from fmcore.features.lite0 import Lite0
from fmcore.features.pretrained import INCEPTION_SHA256
from fmcore.settings import ReflowError


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Random weights in the layout of the real file."""
    torch.manual_seed(0)
    state = dict(Inception().state_dict())
    path = tmp_path_factory.mktemp("inception") / "weights.pth"
    torch.save(state, path)
    return path, hashlib.sha256(path.read_bytes()).hexdigest()


def images(n=2, channels=3, size=32):
    return torch.rand(n, channels, size, size, generator=torch.Generator().manual_seed(1)) * 2 - 1


def test_the_layout_is_that_of_the_real_file(weights):
    """566 tensors, 23.9 million parameters: what the weights of 2015 hold."""
    state = torch.load(weights[0], weights_only=True)
    assert len(state) == 566
    assert sum(v.numel() for v in state.values()) == pytest.approx(23.9e6, rel=0.01)


def test_inception_reads_its_file_and_has_2048_features(weights, tmp_path):
    path, sha = weights
    settings = FeatureSettings(kind="inception", weights=str(path), sha256=sha)
    network = pretrained(settings)
    found = extract(network, images())
    assert found.shape == (2, 2048) and found.isfinite().all()
    gray = extract(network, images(channels=1))
    torch.testing.assert_close(gray, extract(network, images(channels=1).expand(-1, 3, -1, -1)))
    save_extractor(tmp_path / "kept", network)
    again = load_extractor(tmp_path / "kept")
    assert fingerprint(again) == fingerprint(network)
    assert not (tmp_path / "kept" / "model.safetensors").exists()  # 96 MB that are there already


def test_only_the_real_weights_are_called_fid_and_the_name_says_n_and_halves(weights):
    other = FeatureSettings(kind="inception", weights=str(weights[0]), sha256=weights[1])
    assert metric_name(other, 2000) == "fd_inception"
    real = FeatureSettings(kind="inception", weights=str(weights[0]))
    assert metric_name(real, 2000) == "fid_n2000_half"
    named = FeatureSettings(kind="inception", weights=str(weights[0]), sha256=INCEPTION_SHA256)
    assert metric_name(named, 70) == "fid_n70_half"
    assert suffix(real) == "inception"
    with pytest.raises(ReflowError, match=r"sha256 .*expected 6726825d"):
        pretrained(real)


def test_what_cannot_be_read_is_one_line(tmp_path):
    with pytest.raises(ReflowError, match="needs the path of its weights"):
        pretrained(FeatureSettings(kind="inception"))
    with pytest.raises(ReflowError, match="cannot be read"):
        pretrained(FeatureSettings(kind="inception", weights=str(tmp_path / "none")))
    path = tmp_path / "small.pth"
    torch.save({"a": torch.zeros(1)}, path)
    sha = hashlib.sha256(path.read_bytes()).hexdigest()
    with pytest.raises(ReflowError, match="not the Inception of 2015"):
        pretrained(FeatureSettings(kind="inception", weights=str(path), sha256=sha))


def test_tensorflows_resize_takes_pixel_i_at_i_h_over_size():
    x = torch.arange(4.0).reshape(1, 1, 1, 4).expand(1, 1, 4, 4)
    found = tf1_resize(x, 8)[0, 0, 0]
    assert found.tolist() == [0, 0.5, 1, 1.5, 2, 2.5, 3, 3]
    assert torch.equal(tf1_resize(x, 4), x)


def test_lite0_is_a_fixed_network_on_gray_and_rgb(tmp_path):
    pytest.importorskip("efficientnet_lite_pytorch", reason="the extra lite0 is not installed")
    network = Lite0()
    found = extract(network, images(3))
    assert found.shape == (3, 1280)
    assert extract(network, images(1, channels=1, size=8)).shape == (1, 1280)
    save_extractor(tmp_path, network)
    assert torch.equal(extract(load_extractor(tmp_path), images(3)), found)
    with pytest.raises(ReflowError, match="set yardstick.features.kind to identity"):
        extract(network, torch.zeros(2, 5))
