"""Spans of networks that others trained: nothing before training, exact forward-mode products."""

import pytest
import torch
from pydantic import TypeAdapter
from torch import nn

from fmcore import own
from fmcore.matching.conversions import to_source, to_target
from fmcore.matching.interpolant import Linear, Schedule, expand, interpolate
from fmcore.matching.loss import Loss, flow_matching_loss
from fmcore.matching.maps import Batch
from fmcore.network.build import build, with_spans
from fmcore.network.diffusers_class import DiffusersClass, absent_condition
from fmcore.network.outside import Outside
from fmcore.network.own import Custom
from fmcore.network.predictions import Discrete, Edm, from_v_prediction
from fmcore.network.store import load, save
from fmcore.settings import ReflowError
from fmcore.training.losses import RuleOfMap
from fmcore.work.compute import Compute
from tests.fmcore.network.test_predictions import CLASSES, FLOW, PREDICTIONS
from tests.oracles import gaussian_velocity

UNET = {
    "sample_size": 8, "in_channels": 4, "out_channels": 4, "block_out_channels": (8, 16),
    "down_block_types": ("AttnDownBlock2D", "DownBlock2D"), "layers_per_block": 1,
    "up_block_types": ("UpBlock2D", "AttnUpBlock2D"), "norm_num_groups": 4,
    "attention_head_dim": 4,
}  # fmt: skip
SDXL = {
    **CLASSES["UNet2DConditionModel"], "addition_embed_type": "text_time",
    "addition_time_embed_dim": 4, "projection_class_embeddings_input_dim": 34,
}  # fmt: skip
PIXART = {**CLASSES["PixArtTransformer2DModel"], "use_additional_conditions": True}
KINDS = {
    "UNet2DModel": ("UNet2DModel", UNET, {}),
    **{kind: (kind, config, {}) for kind, config in CLASSES.items()},
    "SDXL": ("UNet2DConditionModel", SDXL, {"text_embeds": (10,), "time_ids": (6,)}),
    "PixArt of sizes": (
        "PixArtTransformer2DModel", {**PIXART, "attention_head_dim": 12, "cross_attention_dim": 24},
        {"resolution": (2,), "aspect_ratio": (1,)},
    ),
}  # fmt: skip
FEW = Discrete(name="epsilon", steps=50)
RULES = ["mean_flow", "improved", "shortcut", {"name": "consistency", "steps": 7}, "lagrangian"]
rules = pytest.mark.parametrize("rule", RULES, ids=lambda r: r if isinstance(r, str) else r["name"])
each = pytest.mark.parametrize("kind", KINDS)
SHAPE = (4, 8, 8)
X = torch.randn(3, *SHAPE, generator=torch.Generator().manual_seed(0))
T, SPAN = torch.tensor([0.43, 0.7, 1.0]), torch.tensor([0.1, 0.6, 0.9])


def of(rule):
    return TypeAdapter(RuleOfMap).validate_python(rule)


def plain(kind, prediction=FLOW):
    name, config, more = KINDS[kind]
    classes = 5 if name.startswith("DiT") else 0
    inner = DiffusersClass(
        name="diffusers", kind=name, config=config, classes=classes, null=bool(classes),
        condition=absent_condition(name, config) | more,
    )  # fmt: skip
    return build(Outside(name="outside", network=inner, prediction=prediction), SHAPE, seed=1)


def with_weights(kind, prediction=FLOW):
    """Return a network with spans whose weights and conditions are all felt."""
    network = with_spans(plain(kind, prediction))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for weight in [*network.parameters(), *network.net.buffers()]:
            if not weight.any():
                nn.init.normal_(weight.data, std=0.1)
    return network.eval()


@each
def test_a_student_is_its_teacher_before_training_and_takes_spans_after(kind, tmp_path):
    teacher = plain(kind, FEW).eval()
    student = with_spans(teacher).eval()
    assert student.settings.spans and with_spans(student) is student
    assert set(student.state_dict()) - set(teacher.state_dict()) == {"span.weight"}
    with torch.no_grad():
        velocity = teacher(X, T)
        assert torch.equal(student(X, T), velocity)
        for span in (SPAN, 0 * SPAN):
            assert torch.equal(student(X, T, None, span), velocity)
        trained = with_weights(kind)
        assert not torch.allclose(trained(X, T, None, SPAN), trained(X, T), atol=1e-3)
        save(tmp_path / "m", trained, about={"round": "student"})
        again = load(tmp_path / "m").network
        assert torch.equal(again.span.weight, trained.span.weight)
        torch.testing.assert_close(again(X, T, None, SPAN), trained(X, T, None, SPAN))
    assert "spans" not in teacher.settings.model_dump(mode="json")
    with pytest.raises(ValueError, match="no input for spans"):
        teacher(X, T, None, SPAN)


def test_only_the_embeddings_of_the_time_are_added_to():
    found = {kind: len(with_spans(plain(kind)).span.times) for kind in KINDS}
    assert set(found.values()) == {1}  # of SDXL, Flux and PixArt not those of sizes and guidance
    deeper = {**CLASSES["DiTTransformer2DModel"], "num_layers": 3}
    inner = DiffusersClass(name="diffusers", kind="DiTTransformer2DModel", config=deeper)
    settings = Outside(name="outside", network=inner, prediction=FLOW)
    assert len(with_spans(settings.build(SHAPE)).span.times) == 3  # one in each block


def differences(kind, prediction, monkeypatch):
    # diffusers makes waves and rotary embeddings in float32, with no differences in float64.
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
    network = with_weights(kind, prediction).double().requires_grad_(False)
    label = torch.tensor([0, 4, 5]) if kind.startswith("DiT") else None
    call = lambda x, t, span: network(x, t, label, span)
    x, t, span = X.double(), 0.9 * T.double(), 0.9 * SPAN.double()  # away from the last node
    v, one, step, h = x.flip(0), torch.ones_like(t), 1e-7, expand(span, x)
    batch, u = Batch(x - expand(1 - t, x) * v, x, t, label, span), call(x, t, span)
    ahead, behind = (call(x + s * v, t + s * one, span + s * one) for s in (step, -step))
    change = (ahead - behind) / (2 * step)
    gap = of("mean_flow").gap(network, batch, x, v, Linear())
    yield gap, u - v + h * change
    ahead, behind = (call(x, t, span + s * one) for s in (step, -step))
    there = call(x - h * u, t - span, 0 * span)
    gap = of("lagrangian").gap(network, batch, x, v, Linear())
    yield gap, u + h * (ahead - behind) / (2 * step) - there
    assert float(change.abs().max()) > 0.1 and float((ahead - behind).abs().max()) > 0


@pytest.mark.parametrize(
    ("kind", "prediction"),
    [
        *((kind, FLOW) for kind in KINDS if kind != "UNet2DModel"),
        *(("UNet2DModel", p) for p in (
            FEW, Discrete(name="sample", steps=50), Discrete(name="v_prediction"),
            Edm(name="edm"), Edm(name="edm", output="denoised"),
        )),
        ("DiTTransformer2DModel", FEW), ("SD3Transformer2DModel", Edm(name="edm")),
    ],
    ids=lambda of: of if isinstance(of, str) else of.name,
)  # fmt: skip
def test_forward_mode_products_are_central_differences(kind, prediction, monkeypatch):
    for found, wanted in differences(kind, prediction, monkeypatch):
        scale = float(wanted.abs().max())
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6 * scale)


@pytest.mark.parametrize("kind", ["UNet2DModel", "SD3Transformer2DModel", "FluxTransformer2DModel"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("rule", ["improved", "lagrangian"])
@pytest.mark.filterwarnings("ignore:Mismatch dtype")  # of torch, for the RMS norms of Flux in bf16
def test_gradients_reach_every_weight_also_in_half_precision(kind, precision, rule):
    network = with_weights(kind).train()
    call = Compute(precision=precision).training(network)
    batch = Batch(X, X.flip(0), T, span=torch.minimum(T, SPAN))
    each, error = flow_matching_loss(call, batch, Linear(), "mean_flow", Loss(), of(rule))
    each.mean().backward()
    assert float(error) > 0
    missing = [n for n, p in network.named_parameters() if p.grad is None or not p.grad.any()]
    # What adds one number to all scores of a query, and what the last block of SD3 leaves out.
    unseen = ("to_k.bias", "add_k_proj.bias", *(("add_q_proj",) if kind.startswith("SD3") else ()))
    assert not [n for n in missing if not any(name in n for name in unseen)]


MU, S = torch.tensor([1.5, -0.5]).double(), 0.7


class OfFlow(Schedule):
    """The path on which each pair of N(0, I) and MU + S noise follows the flow of a prediction."""

    prediction: object

    def alpha(self, t):
        return self.prediction.path.alpha(t)

    def sigma(self, t):
        a, b = self.alpha(t), self.prediction.path.sigma(t)
        return (a**2 * S**2 + b**2).sqrt() - a * S

    def d_alpha(self, t):
        return self.prediction.path.d_alpha(t)

    def d_sigma(self, t):
        path, (a, b) = self.prediction.path, (self.alpha(t), self.prediction.path.sigma(t))
        da, db = path.d_alpha(t), path.d_sigma(t)
        return (a * da * S**2 + b * db) / (a**2 * S**2 + b**2).sqrt() - da * S


def average(path, x, t, span):
    """Return the mean velocity over [t - span, t] of the flow through x; at span 0 its velocity."""
    a, b, da, db = path.at(t, x)
    noise = (x - a * MU) / (a * S + b)
    h = expand(span, x)
    chord = (x - interpolate(path, MU + S * noise, noise, t - span)[0]) / torch.where(h > 0, h, 1.0)
    return torch.where(h > 0, chord, da * (MU + S * noise) + db * noise)


def predicted(prediction, nodes, path):
    """Return what a network has to predict, of x and times of its own, for the exact average."""

    def time(own):
        if prediction.name == "flow_prediction":
            return own / prediction.steps
        if prediction.name == "edm":
            sigma = own if prediction.output == "denoised" else (4 * own).exp()
            return sigma / (1 + (1 - 1 / prediction.sigma_max) * sigma)
        low = own.long().clamp(0, len(nodes) - 2)
        return nodes[low] + (own - low) * (nodes[low + 1] - nodes[low])

    def network(given, own, span):
        t = time(own)
        outer = prediction.path
        a, b = expand(outer.alpha(t), given), expand(outer.sigma(t), given)
        sigma = b / a
        if prediction.name == "flow_prediction":
            x = given
        elif prediction.name == "edm":
            norm = torch.hypot(sigma, torch.full_like(sigma, prediction.sigma_data))
            x = given * a * (1 if prediction.output == "denoised" else norm)
        else:
            x = given * torch.hypot(a, b)
        u = average(path, x, t, span)
        target = to_target(outer, u, x, t)
        if prediction.name == "edm" and prediction.output != "denoised":
            skip = prediction.sigma_data**2 / norm**2
            out = (target - skip * x / a) / (sigma * prediction.sigma_data / norm)
            return -out if prediction.output == "v_prediction" else out
        if prediction.name == "v_prediction":
            start = from_v_prediction(outer, torch.zeros_like(x), x, t)
            return (u - start) / (from_v_prediction(outer, torch.ones_like(x), x, t) - start)
        source = (lambda: to_source(outer, u, x, t)) if prediction.name == "epsilon" else None
        return u if prediction.name == "flow_prediction" else source() if source else target

    return network


@rules
@pytest.mark.parametrize("prediction", PREDICTIONS, ids=repr)
def test_the_exact_map_of_a_gaussian_teacher_has_no_loss_and_no_gradient(prediction, rule):
    nodes, path = prediction.nodes(), OfFlow(prediction=prediction)
    exact = predicted(prediction, nodes, path)

    def network(x, t, label, span, scale=1.0):
        return prediction.velocity(lambda x, own: scale * exact(x, own, span), x, t, nodes)

    noise = torch.randn(5, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    t = torch.tensor([0.55, 0.7, 0.8, 0.9, 0.95]).double()
    span = t * torch.tensor([0.1, 0.6, 0.0, 0.3, 0.5]).double()
    batch = Batch(MU + S * noise, noise, t, span=span)
    x, v = interpolate(path, batch.target, batch.source, t)
    torch.testing.assert_close(v, gaussian_velocity(MU, torch.tensor(S), prediction.path)(x, t))
    gap = of(rule).gap(network, batch, x, v, path)
    torch.testing.assert_close(gap, torch.zeros_like(gap), atol=1e-7, rtol=0)
    scale = torch.ones((), dtype=torch.float64, requires_grad=True)
    for at in (scale, 1.1 * scale):
        off = lambda *given, by=at: network(*given, scale=by)
        loss = of(rule).gap(off, batch, x, v, path).square().mean()
        (slope,) = torch.autograd.grad(loss, scale)
        assert (abs(float(slope)) < 1e-6) == (at is scale)


OWN = """
import torch
from fmcore.network.own import OwnNetwork


class Plain(OwnNetwork):
    def forward(self, x, t, label=None):
        return x


class Spanned(OwnNetwork):
    def forward(self, x, t, label=None, span=None):
        return x if span is None else x * (1 + span[:, None])
"""


def test_a_network_of_ones_own_in_times_of_its_own_takes_spans_as_an_argument(
    tmp_path, monkeypatch
):
    for name, empty in (("_trusted", {}), ("_used", set()), ("_imported", {})):
        monkeypatch.setattr(own, name, empty)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "spanned_teachers.py").write_text(OWN)
    names = [f"spanned_teachers:{name}" for name in ("Spanned", "Plain")]
    own.trust(tmp_path, names)
    inner = (Custom(name="custom", path=name) for name in names)
    both = (Outside(name="outside", network=network, prediction=FLOW) for network in inner)
    spanned, refused = (build(settings, (2,), seed=0) for settings in both)
    assert with_spans(spanned) is spanned
    x, t, span = torch.ones(2, 2), torch.tensor([0.5, 1.0]), torch.tensor([0.0, 0.5])
    assert torch.equal(spanned(x, t, None, span), torch.tensor([[1.0, 1.0], [1.5, 1.5]]))
    assert torch.equal(spanned(x, t), x)
    with pytest.raises(ReflowError, match=r"Plain takes none; let its forward take .*span=None"):
        with_spans(refused)
