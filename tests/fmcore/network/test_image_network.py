"""Image networks of diffusers: sizes, classes, files that plain diffusers loads, bytes by tile."""

import json
import shutil

import pytest
import torch
from pydantic import TypeAdapter

from fmcore.network.build import Network, build
from fmcore.network.ema import averaged
from fmcore.network.images import DiT, UNet
from fmcore.network.mlp import MLP
from fmcore.network.store import load, save
from fmcore.sampling.flow import Flow
from fmcore.settings import ReflowError
from fmcore.solve.solver import Solver
from fmcore.work.compute import Compute
from tests.chains import CPU

SHAPE = (1, 8, 8)
TINY = {
    "unet": UNet(name="unet", channels=(8, 16), attend=(1,), head=4),
    "dit": DiT(name="dit", heads=2, head=8, depth=2),
}
each = pytest.mark.parametrize("kind", TINY)
X = torch.randn(40, *SHAPE, generator=torch.Generator().manual_seed(0))
T = torch.linspace(0, 1, 40)


def made(kind, classes=0):
    torch.set_num_threads(1)
    network = build(TINY[kind].model_copy(update={"classes": classes}), SHAPE, seed=1)
    return network.eval().requires_grad_(False)


@each
def test_plain_diffusers_loads_what_is_saved(kind, tmp_path):
    import diffusers

    network = made(kind, classes=3)
    ema = averaged(network, 0.9)
    ema.update_parameters(network)
    save(tmp_path / "m", ema, raw=network, about={"round": "rf1"})
    theirs = {"unet": diffusers.UNet2DModel, "dit": diffusers.DiTTransformer2DModel}[kind]
    plain = theirs.from_pretrained(tmp_path / "m" / "diffusers").eval()
    label = torch.arange(40) % 4
    with torch.no_grad():
        found = plain(X, 1000 * T, class_labels=label, return_dict=False)[0]
    torch.testing.assert_close(found, network(X, T, label))
    ours = load(tmp_path / "m")
    assert torch.equal(ours.network(X, T, label), network(X, T, label))
    raw = load(tmp_path / "m", weights="raw")
    assert raw.digest != ours.digest and torch.equal(raw.network(X, T), ours.network(X, T))
    names = {p.name for p in (tmp_path / "m").rglob("*") if p.is_file()}
    assert names == {"config.json", "raw.safetensors", "diffusion_pytorch_model.safetensors"}


def test_a_patch_enters_as_channels_of_one_place(tmp_path):
    import diffusers

    network = build(UNet(name="unet", channels=(8, 16), patch=2), SHAPE, seed=1).eval()
    save(tmp_path / "m", network.requires_grad_(False), about={"round": "rf1"})
    plain = diffusers.UNet2DModel.from_pretrained(tmp_path / "m" / "diffusers").eval()
    cut = X.reshape(40, 4, 2, 4, 2)  # rows and columns of patches, and of pixels in them
    folded = cut.permute(0, 2, 4, 1, 3).reshape(40, 4, 4, 4)
    with torch.no_grad():
        found = plain(folded, 1000 * T, return_dict=False)[0]
    unfolded = found.reshape(40, 2, 2, 4, 4).permute(0, 3, 1, 4, 2).reshape(40, *SHAPE)
    torch.testing.assert_close(unfolded, network(X, T))
    assert torch.equal(load(tmp_path / "m").network(X, T), network(X, T))


@each
def test_weights_are_a_function_of_the_seed_and_time_is_felt(kind):
    a, b = made(kind), made(kind)
    assert all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters()))
    assert a(X, T).shape == X.shape and not torch.allclose(a(X, T), a(X, 1 - T), atol=1e-4)


@each
def test_no_label_is_the_null_class_and_labels_are_felt(kind):
    network = made(kind, classes=3)
    null = network(X, T)
    assert torch.equal(network(X, T, torch.full((40,), 3)), null)
    assert not torch.allclose(network(X, T, torch.zeros(40, dtype=torch.int64)), null, atol=1e-5)
    assert made(kind)(X, T).shape == X.shape


@each
def test_training_mode_draws_nothing_from_the_global_generator(kind):
    network = made(kind, classes=3).train()
    before = torch.get_rng_state()
    network(X, T, torch.arange(40) % 4)
    assert torch.equal(torch.get_rng_state(), before)


@each
def test_tiles_make_the_batch_invisible(kind):
    flow = Flow.of(type("M", (), {"network": made(kind), "config": {}})())
    solver = Solver(name="euler", steps=2)
    whole = flow.sample(X, solver, device=CPU, batch=40).x
    assert all(
        torch.equal(flow.sample(X, solver, device=CPU, batch=b).x, whole) for b in (1, 7, 33)
    )
    assert flow.tile == 32


@each
def test_bfloat16_keeps_a_float32_state_and_comes_close(kind):
    network = made(kind)
    half = Compute(precision="bf16").running(network)
    found, exact = half(X, T), network(X, T)
    assert found.dtype == torch.float32 and not torch.equal(found, exact)
    assert float((found - exact).norm() / exact.norm()) < 0.05
    assert all(p.dtype == torch.float32 for p in network.parameters())


@pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile needs a C++ compiler")
def test_a_compiled_network_is_the_network():
    network = torch.nn.Linear(2, 2).requires_grad_(False)
    x = torch.randn(256, 2)
    torch.testing.assert_close(Compute(compile=True).running(network)(x), network(x))


@pytest.mark.parametrize(
    ("settings", "shape", "says"),
    [
        (TINY["unet"], (2,), "needs images"),
        (TINY["dit"], (64,), "needs images"),
        (
            UNet(name="unet", channels=(8, 8, 8, 8)),
            (1, 28, 28),
            "no multiple of 8; use fewer levels",
        ),
        (
            UNet(name="unet", channels=(8, 8, 8), patch=2),
            (1, 28, 28),
            "patches of 2 2 times.* no multiple of 8; use fewer levels or a smaller patch",
        ),
        (DiT(name="dit", patch=3), (1, 8, 8), "3 does not divide"),
    ],
)
def test_a_network_that_does_not_fit_the_data_is_refused(settings, shape, says):
    with pytest.raises(ReflowError, match=says):
        build(settings, shape, seed=0)


def test_a_network_without_a_name_is_the_mlp():
    parse = TypeAdapter(Network).validate_python
    assert parse({"width": 8}) == MLP(width=8)
    found = parse({"name": "unet", "channels": [128, 256, 256, 256], "blocks": 2, "attend": [1]})
    assert parse(json.loads(found.model_dump_json())) == found
