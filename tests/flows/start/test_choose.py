"""`reflow new` of images: the network, the recipe and the precision, by size and by machine."""

import numpy as np
import pytest
import torch

import flows.start.choose
from flows.params.load import load
from flows.start.new import Source, new
from fmcore.choices.multistep import AdamsBashforth


@pytest.fixture
def written(tmp_path):
    """Return what gives the parameters, and the text of their file, for images of a shape."""

    def write(shape, *, gpu=False):
        levels = np.random.default_rng(0).integers(256, size=(60, *shape), dtype=np.uint8)
        np.save(tmp_path / "x.npy", levels)
        file, _ = new(tmp_path, "mine", Source(array=tmp_path / "x.npy"), gpu=gpu, force=True)
        return load(file, tmp_path), " ".join(file.read_text().replace("#", "").split())

    return write


@pytest.mark.parametrize(
    ("shape", "patch", "channels"),
    [
        ((1, 28, 28), 2, (64, 64)),
        ((3, 32, 32), 2, (64, 64)),
        ((3, 64, 64), 4, (64, 64)),
        ((3, 64, 48), 4, (64, 64)),
        ((3, 30, 30), 2, (64,)),
        ((3, 34, 34), 2, (64,)),
        ((1, 128, 128), 4, (64, 64, 64)),
    ],
)
def test_without_a_gpu_images_get_the_recipe_of_the_record(written, shape, patch, channels):
    params, text = written(shape)
    assert (params.network.patch, params.network.channels) == (patch, channels)
    network = params.network.build(shape)
    assert network(torch.zeros(1, *shape), torch.zeros(1)).shape == (1, *shape)
    rf1, rf2 = (params.rounds[name].train for name in ("rf1", "rf2"))
    assert (rf1.lr, rf2.lr, rf2.time.name, rf2.loss.name) == (2e-3, 1e-3, "beta", "pseudo_huber")
    solver = params.couplings["rf1"].solver
    assert solver == AdamsBashforth(name="ab4", steps=23) and "2026-11_small_images.md" in text


@pytest.mark.parametrize(
    ("flags", "precision", "says"),
    [
        ("fpu avx512_bf16 avx", "bf16", "this CPU has avx512_bf16, elsewhere take fp32"),
        ("fpu amx_bf16 avx512_bf16", "bf16", "this CPU has amx_bf16"),
        ("fpu avx512f", "fp32", "no bf16 was seen on this CPU"),
        (None, "fp32", "no bf16 was seen on this CPU"),
    ],
)
def test_bf16_is_chosen_where_the_cpu_computes_in_it(
    written, tmp_path, monkeypatch, flags, precision, says
):
    monkeypatch.setattr(flows.start.choose, "CPU", tmp_path / "cpuinfo")
    if flags:
        (tmp_path / "cpuinfo").write_text(f"processor\t: 0\nflags\t\t: {flags}\n")
    params, text = written((1, 32, 32))
    assert params.compute.precision == precision and params.compute.threads == 1
    assert says in text


@pytest.mark.parametrize(("has", "precision"), [(True, "auto"), (False, "fp32")])
def test_bf16_is_chosen_where_the_gpu_computes_in_it(written, monkeypatch, has, precision):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: has)
    params, _ = written((3, 64, 64), gpu=True)
    assert params.compute.precision == precision
    assert (params.network.patch, params.network.channels) == (2, (128, 256, 256))


def test_images_with_an_odd_side_are_for_an_mlp(written):
    params, _ = written((1, 27, 28))
    assert params.network.name == "residual_mlp" and params.compute.precision == "fp32"
