"""What others' networks predict: exact Gaussian denoisers, and diffusers' own samplers."""

import json

import diffusers
import pytest
import torch
from pydantic import TypeAdapter, ValidationError

from fmcore.matching.interpolant import expand
from fmcore.network.diffusers_class import DiffusersClass, absent_condition
from fmcore.network.outside import Outside, OutsideNetwork
from fmcore.network.predictions import AnyPrediction, Discrete, Edm, FlowMatching, between
from fmcore.settings import ReflowError
from fmcore.solve.solver import Solver, solve
from fmcore.work.compute import Compute
from tests.oracles import gaussian_velocity


def test_the_velocity_is_finite_where_time_steps_are_one_time_in_float32():
    """Of 4,000 steps with the usual betas the last ones all round to t = 1."""
    chosen = Discrete(name="epsilon", steps=4000, beta_start=1e-4, beta_end=2e-2)
    nodes, ones = chosen.nodes(), torch.ones(2)
    assert float(nodes[-2]) == float(nodes[-1]) == 1
    assert between(nodes, ones.double()).tolist() == [3999.0, 3999.0]
    asked = []

    def predict(x, t):
        asked.append(t)
        return x

    x = torch.randn(2, 3)
    assert bool(chosen.velocity(predict, x, ones, nodes).isfinite().all())
    assert asked[0].tolist() == [3999.0, 3999.0]
    assert between(nodes, nodes[:100]).tolist() == list(range(100))


MU, S = torch.tensor([1.5, -0.5]).double(), torch.tensor([0.7, 1.3]).double()
TABLES = (
    {},
    {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012},
    {"beta_schedule": "squaredcos_cap_v2"},
    {"beta_schedule": "sigmoid"},
    {"betas": tuple([0.01] * 50), "steps": 50},
)
PREDICTIONS = [
    *(Discrete(name=n, **t) for n in ("epsilon", "v_prediction", "sample") for t in TABLES),
    *(Discrete(name=n, zero_terminal_snr=True) for n in ("v_prediction", "sample")),
    FlowMatching(name="flow_prediction"),
    *(Edm(name="edm", output=o) for o in ("epsilon", "v_prediction", "denoised")),
]


def exact(prediction):
    """Return the network of an exact denoiser of N(MU, S^2), as the textbooks write it."""

    def mean(x, a, b):
        """Return E[target | a target + b source = x]."""
        return MU + a * S**2 / (a**2 * S**2 + b**2) * (x - a * MU)

    def discrete(x, step):
        table = prediction.alphas_cumprod()
        nodes = prediction.nodes()
        low = step.long().clamp(max=len(nodes) - 2)
        t = nodes[low] + (step - low) * (nodes[low + 1] - nodes[low])
        a, b = prediction.path.alpha(t), prediction.path.sigma(t)
        whole = step == step.round()  # at a step the level is that of the table
        own = table[step.round().long()]
        a, b = a / torch.hypot(a, b), b / torch.hypot(a, b)
        torch.testing.assert_close(a[whole], own.sqrt()[whole], atol=2e-6, rtol=1e-3)
        a, b = expand(a, x), expand(b, x)
        target = mean(x, a, b)
        source = (x - a * target) / b
        return {"epsilon": source, "sample": target, "v_prediction": a * source - b * target}[
            prediction.name
        ]

    def flow(x, time):
        t = expand(time / prediction.steps, x)
        target = mean(x, 1 - t, t)
        return (x - target) / t

    def edm(x, time):
        sigma = expand(time if prediction.output == "denoised" else (4 * time).exp(), x)
        if prediction.output == "denoised":
            return mean(x, 1.0, sigma)
        sd = prediction.sigma_data
        norm = (sigma**2 + sd**2).sqrt()
        target = mean(x * norm, 1.0, sigma)  # x is scaled by c_in = 1 / norm
        out = (target - sd**2 / norm**2 * x * norm) / (sigma * sd / norm)
        return -out if prediction.output == "v_prediction" else out

    return {"flow_prediction": flow, "edm": edm}.get(prediction.name, discrete)


@pytest.mark.parametrize("prediction", PREDICTIONS, ids=repr)
def test_an_exact_denoiser_gives_the_velocity_in_closed_form(prediction):
    nodes = prediction.nodes()
    assert bool((nodes[1:] > nodes[:-1]).all())
    at = [0.0, 0.05, 0.37, 0.5, 0.81, 0.97, 1.0]
    t = torch.tensor([*at, *nodes[:: max(1, len(nodes) // 7)].tolist()]).double()
    t = t.clamp(max(float(nodes[0]), 1e-3), 1)
    x = torch.randn(len(t), 2, generator=torch.Generator().manual_seed(0)).double()
    found = prediction.velocity(exact(prediction), x, t, nodes)
    wanted = gaussian_velocity(MU, S, prediction.path)(x, t)
    # A prediction of the noise is divided by the weight of the target, at the end by the signal.
    near = 1e-11 / max(prediction.path.signal, 1e-4) if prediction.name == "epsilon" else 1e-11
    torch.testing.assert_close(found, wanted, atol=near, rtol=1e-9)


def test_times_between_two_steps_are_between_them():
    nodes = torch.tensor([0.1, 0.2, 0.6, 1.0]).double()
    found = between(nodes, torch.tensor([0.1, 0.15, 0.6, 0.8, 1.0]).double())
    torch.testing.assert_close(found, torch.tensor([0.0, 0.5, 2.0, 2.5, 3.0]).double())


def tiny(**more):
    torch.manual_seed(0)
    return diffusers.UNet2DModel(
        sample_size=8, in_channels=1, out_channels=1, layers_per_block=1,
        block_out_channels=(8, 16), norm_num_groups=4, attention_head_dim=8,
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"), **more,
    ).eval()  # fmt: skip


def wrapped(net, prediction, **more):
    config = {k: v for k, v in json.loads(json.dumps(dict(net.config))).items() if k[0] != "_"}
    inner = DiffusersClass(name="diffusers", kind=type(net).__name__, config=config, **more)
    shape = tuple(more.pop("shape", (1, 8, 8)))
    network = OutsideNetwork(Outside(name="outside", network=inner, prediction=prediction), shape)
    network.net.net.load_state_dict(net.state_dict())
    return network.eval().requires_grad_(False)


def euler(network, x, times):
    solver = Solver(name="euler", steps=len(times) - 1, times=times)
    return solve(network, x, solver).x


@pytest.mark.parametrize("name", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("table", [*TABLES[:3], {"zero_terminal_snr": True}], ids=repr)
def test_samples_are_those_of_ddim(name, table):
    if name == "epsilon" and table.get("zero_terminal_snr"):
        pytest.skip("refused")
    net, prediction = tiny(), Discrete(name=name, **table)
    named = {k: v for k, v in table.items() if k != "zero_terminal_snr"}
    scheduler = diffusers.DDIMScheduler(
        prediction_type=name, clip_sample=False, timestep_spacing="trailing",
        rescale_betas_zero_snr=bool(table.get("zero_terminal_snr")), **named,
    )  # fmt: skip
    scheduler.set_timesteps(10)
    x = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    theirs = x
    with torch.no_grad():
        for step in scheduler.timesteps:
            theirs = scheduler.step(net(theirs, step)[0], step, theirs, eta=0.0).prev_sample
    ours = euler(wrapped(net, prediction), x, prediction.times(scheduler.timesteps.tolist()))
    scale = max(1.0, float(theirs.abs().max()))
    assert float((ours - theirs).abs().max()) / scale < 1e-4


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_samples_are_those_of_flow_matching_euler(shift):
    net, prediction = tiny(), FlowMatching(name="flow_prediction")
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=shift)
    scheduler.set_timesteps(8)
    x = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    theirs = x
    with torch.no_grad():
        for step in scheduler.timesteps:
            theirs = scheduler.step(net(theirs, step)[0], step, theirs).prev_sample
    times = prediction.times(scheduler.timesteps.tolist())
    ours = euler(wrapped(net, prediction), x, times)
    assert float((ours - theirs).abs().max()) < 1e-4
    # The shift is a grid of ours: on its sigmas from n even steps.
    scheduler.set_timesteps(sigmas=[1 - i / 8 for i in range(8)])
    grid = Solver(name="euler", steps=8, shift=shift).grid(1.0, 0.0)
    torch.testing.assert_close(scheduler.sigmas.double(), grid, atol=1e-6, rtol=0)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_samples_are_those_of_edm_euler(kind):
    net, prediction = tiny(), Edm(name="edm", output=kind)
    scheduler = diffusers.EDMEulerScheduler(prediction_type=kind)
    scheduler.set_timesteps(8)
    noise = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    theirs = 80.0 * noise
    with torch.no_grad():
        for step in scheduler.timesteps:
            given = scheduler.scale_model_input(theirs, step)
            theirs = scheduler.step(net(given, step)[0], step, theirs).prev_sample
    times = prediction.times(scheduler.sigmas[:-1].tolist())
    ours = euler(wrapped(net, prediction), noise, (1.0, *times[1:]))
    assert float((ours - theirs).abs().max()) < 1e-4 * float(theirs.abs().max())


CLASSES = {
    "UNet2DConditionModel": {
        "sample_size": 8, "in_channels": 4, "out_channels": 4, "block_out_channels": (8, 16),
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"), "layers_per_block": 1,
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"), "cross_attention_dim": 8,
        "norm_num_groups": 4, "attention_head_dim": 4,
    },
    "DiTTransformer2DModel": {
        "num_attention_heads": 2, "attention_head_dim": 8, "in_channels": 4, "out_channels": 8,
        "num_layers": 1, "sample_size": 8, "num_embeds_ada_norm": 5,
    },
    "PixArtTransformer2DModel": {
        "num_attention_heads": 2, "attention_head_dim": 8, "in_channels": 4, "out_channels": 8,
        "num_layers": 1, "sample_size": 8, "cross_attention_dim": 16, "caption_channels": 6,
    },
    "SD3Transformer2DModel": {
        "sample_size": 8, "in_channels": 4, "out_channels": 4, "num_layers": 1,
        "attention_head_dim": 8, "num_attention_heads": 2, "joint_attention_dim": 6,
        "caption_projection_dim": 16, "pooled_projection_dim": 10, "pos_embed_max_size": 8,
    },
    "FluxTransformer2DModel": {
        "in_channels": 16, "num_layers": 1, "num_single_layers": 1, "attention_head_dim": 8,
        "num_attention_heads": 2, "joint_attention_dim": 6, "pooled_projection_dim": 10,
        "axes_dims_rope": (2, 2, 4), "guidance_embeds": True,
    },
}  # fmt: skip
FLOW = FlowMatching(name="flow_prediction")


@pytest.mark.parametrize("kind", CLASSES)
def test_the_classes_of_diffusers_give_velocities(kind):
    classes = 5 if kind.startswith("DiT") else 0
    inner = DiffusersClass(
        name="diffusers", kind=kind, config=CLASSES[kind], classes=classes, null=bool(classes),
        condition=absent_condition(kind, CLASSES[kind]),
    )  # fmt: skip
    settings = Outside(name="outside", network=inner, prediction=FLOW)
    again = Outside.model_validate_json(settings.model_dump_json())
    network = again.build((4, 8, 8)).eval()
    x, t = torch.randn(3, 4, 8, 8), torch.tensor([0.2, 0.5, 1.0])
    label = torch.tensor([0, 4, 5]) if classes else None
    out = network(x, t, label)
    assert out.shape == x.shape and bool(out.isfinite().all())
    out.square().mean().backward()
    if classes:
        assert torch.equal(network(x, t), network(x, t, torch.tensor([5, 5, 5])))
    with pytest.raises(ReflowError, match="its samples are"):
        again.build((3, 8, 8))


def test_flux_is_called_as_its_pipeline_calls_it():
    settings = DiffusersClass(
        name="diffusers", kind="FluxTransformer2DModel", config=CLASSES["FluxTransformer2DModel"],
        condition=absent_condition("FluxTransformer2DModel", CLASSES["FluxTransformer2DModel"]),
    )  # fmt: skip
    network = settings.build((4, 8, 6)).eval()
    for sizes in network.condition_encoder_hidden_states, network.condition_pooled_projections:
        sizes.normal_()
    network.condition_guidance.fill_(3.5)
    x, t = torch.randn(2, 4, 8, 6), torch.tensor([300.0, 700.0])
    pipeline = diffusers.FluxPipeline
    tokens = pipeline._pack_latents(x, 2, 4, 8, 6)
    places = pipeline._prepare_latent_image_ids(2, 4, 3, "cpu", torch.float32)
    with torch.no_grad():
        theirs = network.net(
            hidden_states=tokens, timestep=t / 1000, guidance=torch.full((2,), 3.5),
            pooled_projections=network.condition_pooled_projections.expand(2, -1),
            encoder_hidden_states=network.condition_encoder_hidden_states.expand(2, -1, -1),
            txt_ids=torch.zeros(1, 3), img_ids=places, return_dict=False,
        )[0]  # fmt: skip
        theirs = pipeline._unpack_latents(theirs, 8 * 8, 6 * 8, 8)
        assert torch.equal(network(x, t), theirs)


def test_what_cannot_be_is_refused():
    read = TypeAdapter(AnyPrediction).validate_python
    with pytest.raises(ValidationError, match="says nothing of the target"):
        read({"name": "epsilon", "zero_terminal_snr": True})
    with pytest.raises(ValidationError, match="2 of them for 1000 steps"):
        read({"name": "sample", "betas": [0.1, 0.2]})
    with pytest.raises(ValidationError, match="must be above"):
        read({"name": "edm", "sigma_max": 0.5})
    with pytest.raises(ValidationError, match="embeds 4 labels"):
        config = dict(tiny(num_class_embeds=4).config)
        DiffusersClass(name="diffusers", kind="UNet2DModel", config=config, classes=4, null=True)


def test_a_network_without_a_null_class_wants_labels():
    network = wrapped(tiny(num_class_embeds=4), FLOW, classes=4)
    x, t = torch.zeros(2, 1, 8, 8), torch.full((2,), 0.5)
    assert network(x, t, torch.tensor([0, 3])).shape == x.shape
    with pytest.raises(ReflowError, match="needs a label"):
        network(x, t)


@pytest.mark.long
def test_a_compiled_network_and_bf16_give_the_same_velocity():
    network = wrapped(tiny(), Discrete(name="epsilon"))
    x, t = torch.randn(4, 1, 8, 8), torch.tensor([0.1, 0.5, 0.8, 0.9])
    plain = network(x, t)
    half = Compute(precision="bf16").sampling(network)(x, t)
    assert half.dtype == torch.float32
    assert float((half - plain).square().mean().sqrt() / plain.square().mean().sqrt()) < 0.05
    whole = Compute(compile=True).sampling(network)(x, t)
    torch.testing.assert_close(whole, plain, atol=1e-4, rtol=1e-3)
