"""The input for spans of every network: nothing before training, exact forward-mode products."""

import math
from copy import deepcopy

import pytest
import torch
from torch import nn

from fmcore import own
from fmcore.matching.interpolant import Linear
from fmcore.matching.loss import Loss, flow_matching_loss
from fmcore.matching.maps import Batch, Improved, Lagrangian, MeanFlow
from fmcore.network.build import build, with_spans
from fmcore.network.ema import averaged
from fmcore.network.images import DiT, UNet
from fmcore.network.mlp import MLP
from fmcore.network.own import Custom
from fmcore.network.store import load, save
from fmcore.settings import ReflowError
from fmcore.work.compute import Compute

SHAPE = (1, 8, 8)
TINY = {
    "mlp": MLP(width=16, depth=2, time_features=8),
    "unet": UNet(name="unet", channels=(8, 16), attend=(1,), head=4, time_scale=10.0),
    "dit": DiT(name="dit", heads=2, head=8, depth=2, time_scale=10.0),
    "labels": DiT(name="dit", heads=2, head=8, depth=1, classes=3, time_scale=10.0),
}
each = pytest.mark.parametrize("kind", TINY)
images = pytest.mark.parametrize("kind", ["unet", "dit"])
X = torch.randn(5, *SHAPE, generator=torch.Generator().manual_seed(0))
T, SPAN = torch.linspace(0.2, 1, 5), torch.linspace(0.1, 0.9, 5)
LABEL = torch.arange(5) % 4


def with_weights(kind):
    """Return a network whose weights are all felt: those that begin at 0 are drawn."""
    network = with_spans(build(TINY[kind], SHAPE, seed=1))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for weight in network.parameters():
            if not weight.any():
                nn.init.normal_(weight, std=0.1)
    return network.eval()


def exact_waves(self, t):
    """Return what diffusers' `Timesteps` does, in the precision of t and not in float32."""
    half = self.num_channels // 2
    steps = torch.arange(half, dtype=t.dtype) / (half - self.downscale_freq_shift)
    angles = t[:, None] * torch.exp(-math.log(10000) * steps)
    parts = [angles.cos(), angles.sin()] if self.flip_sin_to_cos else [angles.sin(), angles.cos()]
    return torch.cat(parts, dim=1)


@each
def test_forward_mode_products_are_central_differences(kind, monkeypatch):
    from diffusers.models.embeddings import Timesteps

    monkeypatch.setattr(Timesteps, "forward", exact_waves)
    network, label = (
        with_weights(kind).double().requires_grad_(False),
        LABEL if kind == "labels" else None,
    )
    call = lambda x, t, span: network(x, t, label, span)
    x, t, span = X.double(), T.double(), SPAN.double()
    v, one, step = x.flip(0), torch.ones_like(t), 1e-5
    aim = -v  # source - target, for a target of v and a source of 0
    batch = Batch(x - (1 - t)[:, None, None, None] * aim, x, t, label, span)
    ahead, behind = (call(x + s * v, t + s * one, span + s * one) for s in (step, -step))
    change = (ahead - behind) / (2 * step)
    gap = MeanFlow().gap(network, batch, x, v, Linear())
    h = span[:, None, None, None]
    torch.testing.assert_close(gap, call(x, t, span) - v + h * change, rtol=1e-6, atol=1e-7)
    ahead, behind = (call(x, t, span + s * one) for s in (step, -step))
    prediction = call(x, t, span) + h * (ahead - behind) / (2 * step)
    there = call(x - h * call(x, t, span), t - span, 0 * span)
    gap = Lagrangian(name="lagrangian").gap(network, batch, x, v, Linear())
    torch.testing.assert_close(gap, prediction - there, rtol=1e-6, atol=1e-7)
    assert float(change.abs().max()) > 0.1 and float((prediction - there).abs().max()) > 0.1


@each
def test_spans_have_no_effect_before_training_and_one_after(kind):
    plain = build(TINY[kind], SHAPE, seed=1).eval()
    wider = with_spans(plain).eval()
    assert wider.settings.spans and with_spans(wider) is wider
    torch.testing.assert_close(wider(X, T, None, SPAN), plain(X, T))
    torch.testing.assert_close(wider(X, T), plain(X, T))
    for kept in (with_weights(kind), deepcopy(with_weights(kind))):
        assert not torch.allclose(kept(X, T, None, SPAN), kept(X, T, None, 0 * SPAN), atol=1e-3)
        assert not torch.equal(kept(X, T, None, 0 * SPAN), kept(X, T))  # cosines of 0 are 1
        torch.testing.assert_close(kept(X, T), with_weights(kind)(X, T))


@images
def test_what_is_saved_has_the_span_beside_the_files_of_diffusers(kind, tmp_path):
    import diffusers

    network = with_weights(kind)
    ema = averaged(network, 0.9)
    ema.update_parameters(network)
    save(tmp_path / "m", ema, raw=network, about={"round": "rf1"})
    theirs = {"unet": diffusers.UNet2DModel, "dit": diffusers.DiTTransformer2DModel}[kind]
    plain = theirs.from_pretrained(tmp_path / "m" / "diffusers").eval()
    label = None if kind == "unet" else torch.zeros(5, dtype=torch.int64)
    with torch.no_grad():
        found = plain(X, 10 * T, class_labels=label, return_dict=False)[0]
    torch.testing.assert_close(found, network(X, T))
    for weights in ("ema", "raw"):
        again = load(tmp_path / "m", weights=weights).network
        assert torch.equal(again(X, T, None, SPAN), network(X, T, None, SPAN))
    before = load(tmp_path / "m").digest
    nn.init.normal_(network.span.weight)
    save(tmp_path / "other", network, about={"round": "rf1"})
    assert load(tmp_path / "other").digest != before
    (tmp_path / "m" / "span.safetensors").unlink()
    with pytest.raises(ReflowError, match=r"span\.safetensors"):
        load(tmp_path / "m")


@images
def test_settings_without_spans_are_written_as_they_were(kind):
    plain = type(TINY[kind])(name=kind)
    assert not {"spans", "time_scale"} & set(plain.model_dump(mode="json"))
    told = TINY[kind].model_copy(update={"spans": True}).model_dump(mode="json")
    assert told["spans"] is True and told["time_scale"] == 10
    with pytest.raises(ValueError, match="no input for spans"):
        build(plain, SHAPE, seed=0)(X, T, None, SPAN)


@images
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("rule", [Improved(name="improved"), Lagrangian(name="lagrangian")])
def test_gradients_reach_every_weight_also_in_half_precision(kind, rule, precision):
    network = with_weights(kind).train()
    call = Compute(precision=precision).training(network)
    batch = Batch(X, X.flip(0), T, span=torch.minimum(T, SPAN))
    each, error = flow_matching_loss(call, batch, Linear(), "mean_flow", Loss(), rule)
    each.mean().backward()
    assert float(error) > 0
    missing = [n for n, p in network.named_parameters() if p.grad is None or not p.grad.any()]
    assert not [name for name in missing if "class_embed" not in name and ".to_k.bias" not in name]


OWN = """
from fmcore.network.own import OwnNetwork


class Plain(OwnNetwork):
    def forward(self, x, t, label=None):
        return x


class Spanned(OwnNetwork):
    def forward(self, x, t, label=None, span=None):
        return x
"""


def test_a_network_of_the_users_own_says_by_its_arguments_that_it_takes_spans(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(own, "_trusted", {})
    monkeypatch.setattr(own, "_used", set())
    monkeypatch.setattr(own, "_imported", {})
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "spanned_networks.py").write_text(OWN)
    names = [f"spanned_networks:{name}" for name in ("Spanned", "Plain")]
    own.trust(tmp_path, names)
    spanned, plain = (build(Custom(name="custom", path=p), (2,), seed=0) for p in names)
    assert with_spans(spanned) is spanned
    with pytest.raises(ReflowError, match=r"Plain takes none; let its forward take .*span"):
        with_spans(plain)
