"""A round handed on: other tools draw its own samples, for any number of rows."""

import json
import subprocess
import sys

import pytest
import torch
from torch import nn

from fmcore.codec.kinds import DiffusersCodec
from fmcore.codec.latents import record
from fmcore.conditions.table import Table
from fmcore.network.build import build, take
from fmcore.network.diffusers_class import DiffusersClass, absent_condition
from fmcore.network.images import DiT, UNet
from fmcore.network.mlp import MLP
from fmcore.network.outside import Outside
from fmcore.network.predictions import Discrete, Edm
from fmcore.network.store import load, save
from fmcore.sampling.flow import Flow
from fmcore.settings import ReflowError
from fmcore.ship import folder, schedule, whole
from fmcore.solve.solver import Solver
from tests import codecs
from tests.fmcore.network.test_predictions import CLASSES, FLOW

TABLE = Table(torch.randn(4, 5), texts=("a red fox", "a dog", "two owls"))
NETWORKS = {
    "mlp": (MLP(width=8, depth=1, time_features=4), (2,)),
    "mlp, classes": (MLP(width=8, depth=1, time_features=4, classes=3), (2,)),
    "mlp, spans": (MLP(width=8, depth=1, time_features=4, spans=True), (2,)),
    "unet": (UNet(name="unet", channels=(8, 16)), (1, 8, 8)),
    "unet, latents": (UNet(name="unet", channels=(8, 16)), (4, 4, 4)),
    "unet, patch, classes": (UNet(name="unet", channels=(8, 8), patch=2, classes=3), (2, 8, 8)),
    "unet, slow": (UNet(name="unet", channels=(8, 16), time_scale=10.0), (1, 8, 8)),
    "unet, spans": (UNet(name="unet", channels=(8, 16), spans=True), (1, 8, 8)),
    "mlp, texts": (MLP(width=8, depth=1, time_features=4, conditions=TABLE.sizes, classes=3), (2,)),
    "unet, texts": (
        UNet(name="unet", channels=(8, 8), conditions=TABLE.sizes, classes=3),
        (1, 8, 8),
    ),
    "dit": (DiT(name="dit", heads=1, head=8, depth=1, classes=3), (1, 8, 8)),
}
SCALE = {"mean": [0.5], "std": [2.0]}
EULER = {steps: Solver(name="euler", steps=steps) for steps in range(1, 6)}
GRIDS = {
    "shift 3": Solver(name="euler", steps=4, shift=3.0),
    "shift 0.5": Solver(name="euler", steps=2, shift=0.5),
    "times": Solver(name="euler", times=(1.0, 0.97, 0.3, 0.0)),
}


def model(tmp_path, name, **about):
    settings, shape = NETWORKS[name]
    network = build(settings, shape, seed=0)
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():  # or the last layer, which starts at 0, gives no velocity
        for p in network.parameters():
            p.add_(torch.randn(p.shape, generator=draw), alpha=0.05)
    if getattr(settings, "conditions", None):
        take(network, TABLE)
        about["conditions"] = TABLE.about
    save(tmp_path / "model", network, about={"round": "rf1", **about})
    return load(tmp_path / "model")


def own(model, noise, label=None, steps=3, guidance=1.0, solver=None):
    solver = solver or EULER[steps]
    found = Flow.of(model).sample(noise, solver, label=label, guidance=guidance)
    return model.scale.inverse(found.x)


@pytest.mark.parametrize("name", ["mlp", "unet, patch, classes"])
def test_the_written_graph_gives_the_samples_of_the_round_for_any_rows(tmp_path, name):
    given = model(tmp_path, name, scale=SCALE)
    guidance = 2.0 if given.network.settings.classes else 1.0
    graph = whole.Whole(given, EULER[3], guidance)
    whole.write_export(graph, given, tmp_path / "flow.pt2")
    loaded = torch.export.load(tmp_path / "flow.pt2").module()
    for rows in (1, 2, 70):  # diffusers treats 64 rows and more another way
        noise, *label = whole.example(given, rows, seed=rows)
        wanted = own(given, noise, *label, guidance=guidance)
        torch.testing.assert_close(loaded(noise, *label), wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("prediction", "spans"),
    [(FLOW, False), (Discrete(name="epsilon"), False), (Edm(name="edm"), False), (FLOW, True),
     (Discrete(name="epsilon"), True)],
)  # fmt: skip
def test_the_graph_of_a_network_that_others_trained(tmp_path, prediction, spans):
    """The only way out for an EDM network and for a flow map; it takes any number of rows."""
    kind = "SD3Transformer2DModel"
    inner = DiffusersClass(
        name="diffusers", kind=kind, config=CLASSES[kind],
        condition=absent_condition(kind, CLASSES[kind]),
    )  # fmt: skip
    told = {"objective": "mean_flow"} if spans else {}
    settings = Outside(name="outside", network=inner, prediction=prediction, spans=spans)
    NETWORKS["outside"] = settings, (4, 8, 8)
    given = model(tmp_path, "outside", **told)
    whole.write_export(whole.Whole(given, EULER[2]), given, tmp_path / "flow.pt2")
    loaded = torch.export.load(tmp_path / "flow.pt2").module()
    for rows in (1, 5):
        noise, *_ = whole.example(given, rows, seed=rows)
        torch.testing.assert_close(loaded(noise), own(given, noise, steps=2), rtol=1e-4, atol=1e-4)


def test_the_graph_of_a_flow_map_asks_for_the_spans_of_its_rule(tmp_path):
    told = {"objective": "mean_flow", "map": {"name": "consistency"}}
    given = model(tmp_path, "unet, spans", **told)
    graph = whole.Whole(given, EULER[3])
    whole.write_export(graph, given, tmp_path / "flow.pt2")
    noise, *_ = whole.example(given, 5)
    wanted = own(given, noise)
    found = torch.export.load(tmp_path / "flow.pt2").module()(noise)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
    other = model(tmp_path, "unet, spans", objective="mean_flow")
    assert not torch.allclose(own(other, noise), wanted)


def test_onnx_gives_the_samples_of_the_round(tmp_path):
    import onnxruntime

    given = model(tmp_path, "mlp, classes", scale=SCALE)
    graph = whole.Whole(given, EULER[2], 3.0)
    whole.write_onnx(graph, given, tmp_path / "flow.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "flow.onnx")
    noise, label = whole.example(given, 70)
    got = session.run(None, {"noise": noise.numpy(), "label": label.numpy()})[0]
    wanted = own(given, noise, label, steps=2, guidance=3.0)
    torch.testing.assert_close(torch.from_numpy(got), wanted, rtol=1e-4, atol=1e-5)


def test_a_graph_with_other_samples_is_refused(tmp_path):
    given = model(tmp_path, "mlp")
    with pytest.raises(ReflowError, match="do not use it"):
        graphs = (whole.Whole(given, EULER[steps]) for steps in (3, 4))
        whole._compare(given, *graphs, "flow.pt2")


def test_a_network_that_chooses_by_values_is_one_line(tmp_path):
    class Choosing(nn.Module):
        def forward(self, x, t, label=None):
            return x if float(x.sum()) > 0 else -x

    given = model(tmp_path, "mlp")
    graph = whole.Whole(given, EULER[1])
    object.__setattr__(graph.field, "network", Choosing())
    with pytest.raises(ReflowError, match="cannot be written as one graph") as found:
        whole.write_export(graph, given, tmp_path / "flow.pt2")
    assert "\n" not in str(found.value)


@pytest.mark.parametrize("steps", [1, 4])
def test_plain_diffusers_draws_the_samples_of_a_unet(tmp_path, steps):
    from diffusers import DDPMPipeline, DiffusionPipeline

    given = model(tmp_path, "unet", image=True)
    assert not folder.write_folder(given, tmp_path / "out", EULER[steps]).own_code
    pipe = DiffusionPipeline.from_pretrained(tmp_path / "out")
    assert isinstance(pipe, DDPMPipeline)
    pipe.set_progress_bar_config(disable=True)
    draw = torch.Generator().manual_seed(3)
    got = pipe(2, draw, steps, output_type="pt").images
    noise = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(3))
    wanted = (own(given, noise, steps=steps) / 2 + 0.5).clamp(0, 1)
    torch.testing.assert_close(got, wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["unet, patch, classes", "dit"])
def test_a_folder_with_its_own_pipeline_draws_the_samples_of_the_round(tmp_path, name):
    from diffusers import DiffusionPipeline

    given, out = model(tmp_path, name, scale=SCALE), tmp_path / "out"
    assert folder.write_folder(given, out, EULER[3]).own_code
    pipe = DiffusionPipeline.from_pretrained(out, custom_pipeline=str(out), trust_remote_code=True)
    pipe.set_progress_bar_config(disable=True)
    noise, label = whole.example(given, 3)
    got = pipe(label=label, guidance=2.0, noise=noise).images
    torch.testing.assert_close(got, own(given, noise, label, guidance=2.0), rtol=1e-4, atol=1e-5)
    if name == "dit":  # one channel: the other has two, which is no picture
        pictures = pipe(batch_size=2, output_type="pil").images
        assert [p.size for p in pictures] == [(8, 8), (8, 8)]


@pytest.mark.parametrize("solver", GRIDS.values(), ids=GRIDS)
@pytest.mark.parametrize("name", ["unet", "dit"])
def test_a_folder_carries_any_grid(tmp_path, name, solver):
    """Also of a network that is a plain pipeline on other steps: no scheduler has such a grid."""
    from diffusers import DiffusionPipeline

    more = {"scale": SCALE} if name == "dit" else {"image": False}
    given, out = model(tmp_path, name, **more), tmp_path / "out"
    form = folder.write_folder(given, out, solver)
    assert form.own_code
    pipe = DiffusionPipeline.from_pretrained(out, **form.load(out))
    pipe.set_progress_bar_config(disable=True)
    noise, *label = whole.example(given, 3)
    wanted = own(given, noise, *label, solver=solver)
    got = pipe(noise=noise, label=label[0] if label else None).images
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5)
    apart = (own(given, noise, *label, steps=solver.steps) - wanted).abs().max()
    assert apart > 100 * (got - wanted).abs().max()  # the grid matters here


@pytest.mark.parametrize("solver", GRIDS.values(), ids=GRIDS)
def test_a_graph_carries_any_grid_and_the_spans_of_its_steps(tmp_path, solver):
    given = model(tmp_path, "mlp, spans", objective="mean_flow")
    whole.write_export(whole.Whole(given, solver), given, tmp_path / "flow.pt2")
    noise, *_ = whole.example(given, 5)
    found = torch.export.load(tmp_path / "flow.pt2").module()(noise)
    torch.testing.assert_close(found, own(given, noise, solver=solver), rtol=1e-4, atol=1e-5)


def test_an_even_or_shifted_grid_is_a_plain_pipeline(tmp_path):
    even = Solver(name="euler", times=(1.0, 0.5, 0.0))
    image = model(tmp_path, "unet", image=True)
    for name, solver in {**GRIDS, "even": even}.items():
        form = folder.write_folder(image, tmp_path / name, solver)
        assert form.own_code == (name == "times")
    # A plain pipeline clamps to [-1, 1], which arrays need not be in.
    array = model(tmp_path, "unet", image=False)
    assert folder.write_folder(array, tmp_path / "array", even).own_code


def test_a_folder_of_a_flow_on_latents_decodes_with_the_codec_beside_it(tmp_path):
    from diffusers import DiffusionPipeline

    vae = DiffusersCodec(name="diffusers", path=str(codecs.kl(tmp_path / "vae")))
    told = record(vae, torch.zeros(2, 4, 4, 4), (1, 8, 8), image=True)
    given = model(tmp_path, "unet, latents", scale=SCALE, codec=told)
    out = tmp_path / "out"
    assert folder.write_folder(given, out, EULER[3]).own_code
    (tmp_path / "vae").rename(tmp_path / "gone")  # the folder has its own
    pipe = DiffusionPipeline.from_pretrained(out, custom_pipeline=str(out), trust_remote_code=True)
    pipe.set_progress_bar_config(disable=True)
    (noise,) = whole.example(given, 3)
    with torch.no_grad():
        wanted = vae.module.decode(own(given, noise)).sample.clamp(-1, 1)
    torch.testing.assert_close(pipe(noise=noise).images, wanted, rtol=1e-4, atol=1e-5)
    assert whole.Whole(given, EULER[3]).of_latents
    told["settings"] = {"name": "custom", "path": "mine:Codec", "settings": {}}
    with pytest.raises(ReflowError, match="its codec is of your own"):
        folder.write_folder(model(tmp_path, "unet, latents", codec=told), tmp_path / "o", EULER[1])


@pytest.mark.parametrize("shift", [0.3, 1.0, 3.0, 12.0])
@pytest.mark.parametrize("even", [False, True])
def test_the_scheduler_has_the_steps_of_the_grid(shift, even):
    for steps in (1, 2, 5, 28, 100):
        solver = Solver(name="euler", steps=steps, shift=shift)
        made = schedule.of_flow(solver, even=even)
        assert made.call == {"num_inference_steps": steps}
        asked = {"sigmas": [1 - k / steps for k in range(steps)]}
        made.scheduler.set_timesteps(**(asked if even else made.call))
        wanted = solver.grid(1.0, 0.0).float()
        torch.testing.assert_close(made.scheduler.sigmas, wanted, rtol=0, atol=2e-6)
    uneven = schedule.of_flow(GRIDS["times"], even=even)
    assert uneven.call == {"sigmas": pytest.approx([1.0, 0.97, 0.3], abs=1e-12)}
    uneven.scheduler.set_timesteps(**uneven.call)
    wanted = torch.tensor(GRIDS["times"].times)
    torch.testing.assert_close(uneven.scheduler.sigmas, wanted, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "about", "why"),
    [
        ("mlp", {}, "none of diffusers'"),
        ("unet", {"objective": "noise"}, "objective noise"),
        ("unet", {"interpolant": {"name": "cosine"}}, "interpolant cosine"),
        ("unet, slow", {}, "time_scale 10: its scheduler"),
        ("unet, texts", {}, "its conditions are texts or vectors"),
        ("unet", {"source": "abc"}, "its source is real samples"),
    ],
)
def test_what_diffusers_has_no_scheduler_for_is_refused(tmp_path, name, about, why):
    with pytest.raises(ReflowError, match=why):
        folder.write_folder(model(tmp_path, name, **about), tmp_path / "out", EULER[1])


def test_the_graph_of_a_round_from_real_samples_takes_them_in_their_own_units(tmp_path):
    given = model(tmp_path, "mlp", scale=SCALE, source="the sha256 of some cats")
    graph = whole.Whole(given, EULER[2])
    assert whole.names(graph) == ["source"]
    whole.write_export(graph, given, tmp_path / "flow.pt2")
    cats = 5 + 3 * torch.randn(4, 2, generator=torch.Generator().manual_seed(2))
    found = torch.export.load(tmp_path / "flow.pt2").module()(cats)
    wanted = own(given, given.scale.forward(cats), steps=2)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


def by_script(tmp_path, label):
    """Run the script beside a graph for five samples of seed 7."""
    script = tmp_path / "sample.py"
    script.write_text(whole.SCRIPT.read_text())
    words = [sys.executable, "-I", str(script), "5", str(tmp_path / "s.pt"), "7", label]
    return subprocess.run(words, capture_output=True, text=True)


def assert_the_script_draws(given, tmp_path, word, *, label):
    done = by_script(tmp_path, word)
    assert done.returncode == 0, done.stderr
    noise = torch.randn(5, 2, generator=torch.Generator().manual_seed(7))
    wanted = own(given, noise, torch.full((5,), label), steps=2)
    torch.testing.assert_close(torch.load(tmp_path / "s.pt", weights_only=True), wanted)


def test_the_script_takes_a_text_for_its_label(tmp_path):
    given = model(tmp_path, "mlp, texts")
    whole.write_export(whole.Whole(given, EULER[2]), given, tmp_path / "flow.pt2")
    assert whole.texts_of(given) == TABLE.texts
    (tmp_path / "texts.json").write_text(json.dumps(whole.texts_of(given)))
    assert_the_script_draws(given, tmp_path, "two owls", label=2)
    done = by_script(tmp_path, "a newt")
    assert done.returncode == 1 and done.stderr.startswith("'a newt': expected a number, or one of")


def test_the_script_needs_torch_alone(tmp_path):
    given = model(tmp_path, "mlp, classes", scale=SCALE)
    whole.write_export(whole.Whole(given, EULER[2]), given, tmp_path / "flow.pt2")
    assert_the_script_draws(given, tmp_path, "2", label=2)
    text = whole.SCRIPT.read_text()
    assert len(text.splitlines()) <= 30 and "import fmcore" not in text
