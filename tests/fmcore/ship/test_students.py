"""Students of networks of diffusers as folders: plain diffusers draws the samples of the round."""

import json

import diffusers
import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from safetensors.torch import load_file, save_file

from fmcore.codec.kinds import DiffusersCodec
from fmcore.codec.latents import record
from fmcore.conditions.encoders import EncoderPipeline, table_of
from fmcore.conditions.table import Table
from fmcore.network.build import build, take
from fmcore.network.diffusers_class import DiffusersClass, absent_condition
from fmcore.network.outside import Outside
from fmcore.network.predictions import Discrete, Edm, FlowMatching
from fmcore.network.store import load, save
from fmcore.sampling.flow import Flow
from fmcore.settings import ReflowError
from fmcore.ship import folder, prompted, schedule
from fmcore.solve.solver import Solver
from tests import codecs
from tests import diffusers_folders as folders
from tests.fmcore.network.test_predictions import CLASSES

FLOW = FlowMatching(name="flow_prediction")
SD = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
UNET = {k: v for k, v in folders.network().config.items() if k[0] != "_"}


def ddim(prediction, steps):
    """Return Euler on the grid of DDIM."""
    times = schedule.ddim_times(prediction, steps).tolist()
    return Solver(name="euler", times=tuple(times))


def even(steps):
    return Solver(name="euler", steps=steps)


def student(tmp_path, kind, prediction, shape, *, table=None, condition=None, config=None, **about):
    """Return a loaded model of a network of diffusers with random weights."""
    inner = DiffusersClass(
        name="diffusers", kind=kind, config=config or CLASSES[kind],
        condition={} if condition is None else {n: tuple(x.shape) for n, x in condition.items()},
        classes=about.pop("count", 0), null=about.pop("null", False),
    )  # fmt: skip
    inner = inner if table is None else inner.sized(table)
    settings = Outside(name="outside", network=inner, prediction=prediction)
    network = build(settings, shape, seed=0)
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():  # or the last layer, which starts at 0, gives no velocity
        for p in network.parameters():
            p.add_(torch.randn(p.shape, generator=draw), alpha=0.05)
    for name, value in (condition or {}).items():
        getattr(network.net, f"condition_{name}").copy_(value)
    if table is not None:
        take(network, table)
        about["conditions"] = table.about
    save(tmp_path / "model", network, about={"round": "student", **about})
    return load(tmp_path / "model")


def own(model, noise, solver, label=None, guidance=1.0):
    return Flow.of(model).sample(noise, solver, label=label, guidance=guidance).x


def noise_of(model, rows=2, seed=3):
    return torch.randn(rows, *model.shape, generator=torch.Generator().manual_seed(seed))


def loaded(out, **given):
    pipe = DiffusionPipeline.from_pretrained(out, **given)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def assert_same(got, wanted):
    assert float((got - wanted).square().mean().sqrt() / wanted.square().mean().sqrt()) < 1e-4


@pytest.mark.parametrize("steps", [1, 4])
@pytest.mark.parametrize("name", ["epsilon", "v_prediction", "sample"])
def test_a_unet_of_numbered_steps_is_a_ddim_pipeline(tmp_path, name, steps):
    prediction = Discrete(name=name)
    given = student(tmp_path, "UNet2DModel", prediction, (1, 8, 8), config=UNET, image=True)
    solver, out = ddim(prediction, steps), tmp_path / "out"
    form = folder.write_folder(given, out, solver)
    pipe = loaded(out)
    assert type(pipe) is diffusers.DDIMPipeline and form.load(out) == {}
    assert form.lines("out")[1] == 'pipe = DiffusionPipeline.from_pretrained("out")'
    draw = torch.Generator().manual_seed(3)
    got = pipe(2, draw, num_inference_steps=steps, output_type="pt").images
    assert_same(2 * got - 1, own(given, noise_of(given), solver).clamp(-1, 1))


@pytest.mark.parametrize("solver", [even(1), even(4), Solver(name="euler", steps=3, shift=3.0)])
def test_a_unet_of_flow_matching_is_a_ddpm_pipeline(tmp_path, solver):
    given = student(tmp_path, "UNet2DModel", FLOW, (1, 8, 8), config=UNET, image=True)
    folder.write_folder(given, tmp_path / "out", solver)
    pipe = loaded(tmp_path / "out")
    assert type(pipe) is diffusers.DDPMPipeline
    draw = torch.Generator().manual_seed(3)
    got = pipe(2, draw, num_inference_steps=solver.steps, output_type="pt").images
    assert_same(2 * got - 1, own(given, noise_of(given), solver).clamp(-1, 1))


@pytest.mark.parametrize(
    ("prediction", "more"),
    [
        (Discrete(name="epsilon"), {"image": True}),  # even steps, between its time steps
        (Discrete(name="v_prediction", **SD), {"scale": {"mean": [0.5], "std": [2.0]}}),
        (Discrete(name="epsilon"), {"count": 3, "null": True}),
        (FLOW, {"count": 3, "null": True}),
    ],
)
def test_what_diffusers_has_no_pipeline_for_comes_with_its_own(tmp_path, prediction, more):
    config = {**UNET, "num_class_embeds": 4} if "count" in more else UNET
    given = student(tmp_path, "UNet2DModel", prediction, (1, 8, 8), config=config, **more)
    form = folder.write_folder(given, tmp_path / "out", even(5))
    pipe = loaded(tmp_path / "out", **form.load(tmp_path / "out"))
    noise, labels = noise_of(given), torch.tensor([2, 0]) if "count" in more else None
    guidance = 3.0 if "count" in more else 1.0
    got = pipe(noise=noise, label=labels, guidance=guidance).images
    assert_same(got, given.scale.inverse(own(given, noise, even(5), labels, guidance)))


@pytest.mark.parametrize("name", ["epsilon", "v_prediction"])
def test_a_dit_with_labels_is_a_dit_pipeline(tmp_path, name):
    """Its class for no label is the thousandth, whatever the network has."""
    prediction = Discrete(name=name)
    vae = DiffusersCodec(name="diffusers", path=str(codecs.kl(tmp_path / "vae")))
    told = record(vae, torch.zeros(2, 4, 4, 4), (1, 8, 8), image=True)
    scale = vae.scale.record
    for count in (5, 1000):
        config = {**CLASSES["DiTTransformer2DModel"], "num_embeds_ada_norm": count, "sample_size": 4}
        given = student(
            tmp_path, "DiTTransformer2DModel", prediction, (4, 4, 4), config=config, count=count,
            null=True, codec=told, scale=scale,
        )  # fmt: skip
        solver, out = ddim(prediction, 4), tmp_path / f"out{count}"
        form = folder.write_folder(given, out, solver)
        pipe = loaded(out)
        assert type(pipe) is diffusers.DiTPipeline
        assert ("takes class 1000" in form.notes()[0]) == (count == 5)
        guidance, label = (1.0 if count == 5 else 3.0), torch.tensor([2, 4])
        got = pipe(
            label.tolist(), guidance, torch.Generator().manual_seed(3), num_inference_steps=4,
            output_type="pt",
        ).images  # fmt: skip
        latents = own(given, noise_of(given), solver, label, guidance)
        assert_same(2 * got - 1, given.units.inverse(latents).clamp(-1, 1))
