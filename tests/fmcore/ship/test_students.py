"""Students of networks of diffusers as folders: plain diffusers draws the samples of the round."""

import json
import shutil

import diffusers
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
        config = {
            **CLASSES["DiTTransformer2DModel"],
            "num_embeds_ada_norm": count,
            "sample_size": 4,
        }
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


KINDS = {
    "UNet2DConditionModel": (Discrete(name="epsilon", **SD), "StableDiffusionPipeline"),
    "PixArtTransformer2DModel": (Discrete(name="epsilon"), "PixArtAlphaPipeline"),
    "SD3Transformer2DModel": (FLOW, "StableDiffusion3Pipeline"),
    "FluxTransformer2DModel": (FLOW, "FluxPipeline"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_one_condition_of_all_samples_is_a_file_beside_the_network(tmp_path, kind):
    prediction, name = KINDS[kind]
    draw = torch.Generator().manual_seed(5)
    sizes = absent_condition(kind, CLASSES[kind])
    condition = {n: torch.randn(size, generator=draw) for n, size in sizes.items()}
    given = student(tmp_path, kind, prediction, (4, 8, 8), condition=condition)
    out, solver = tmp_path / "out", even(3)
    form = folder.write_folder(given, out, solver)
    pipe = loaded(out, **form.load(out))
    assert type(pipe).__name__ == name
    scope = {}
    lines = [line for line in form.lines(str(out)) if "num_images_per_prompt" not in line]
    exec("\n".join(lines), scope)  # as the card has it, but for the noise
    assert set(scope["condition"]) == set(load_file(out / prompted.CONDITION))
    noise = noise_of(given)
    case = form.cases()[0]
    assert_same(form.drawn(scope["pipe"], case), own(given, case.noise, solver))
    said = form.lines(str(out))[-1]
    arguments = said.removeprefix("images = pipe(").removesuffix(").images")
    packed = noise
    if kind.startswith("Flux"):
        packed = diffusers.FluxPipeline._pack_latents(noise, 2, 4, 8, 8)
    arguments = arguments.replace("num_images_per_prompt=16", "num_images_per_prompt=2")
    got = eval(f"pipe({arguments}, latents=noise).images", {**scope, "noise": packed})
    if kind.startswith("Flux"):
        got = diffusers.FluxPipeline._unpack_latents(got, 64, 64, 8)
    assert_same(got, own(given, noise, solver))


pytest.importorskip("transformers")
pipelines = pytest.importorskip("tests.text_pipelines")
saved = pipelines.saved
WORDS = ("a red cat", "cat", "red")
PIPES = ("sd", "sdxl", "sd3", "sd3 without T5", "flux", "pixart")


def of_texts(tmp_path, pipeline, **about):
    """Return a model of a pipeline's network with random weights, which learned from texts."""
    part = next(pipeline / name for name in ("unet", "transformer") if (pipeline / name).is_dir())
    config = json.loads((part / "config.json").read_text())
    kind = config["_class_name"]
    plain = {k: v for k, v in config.items() if k[0] != "_"}
    prediction = FLOW if kind in ("SD3Transformer2DModel", "FluxTransformer2DModel") else (
        Discrete(name="epsilon", **SD)
    )  # fmt: skip
    table = table_of(WORDS, EncoderPipeline(name="pipeline", path=str(pipeline)))
    sizes = {"time_ids": torch.tensor([8.0, 8, 0, 0, 8, 8])}
    condition = sizes if plain.get("addition_embed_type") else None
    return student(
        tmp_path, kind, prediction, (4, 8, 8), config=plain, table=table, condition=condition,
        **about,
    )  # fmt: skip


@pytest.mark.parametrize("name", PIPES)
def test_texts_come_with_the_pipeline_that_embedded_them(tmp_path, saved, name):
    pipeline, out = saved(name), tmp_path / "out"
    given = of_texts(tmp_path, pipeline)
    solver = even(3)
    form = folder.write_folder(given, out, solver)
    index = json.loads((pipeline / "model_index.json").read_text())
    pipe = loaded(out, **form.load(out))
    assert type(pipe).__name__ == index["_class_name"]
    for part in (p for p in index if p.startswith(("text_encoder", "tokenizer", "vae"))):
        for file in (pipeline / part).glob("*"):
            assert (out / part / file.name).read_bytes() == file.read_bytes()
    noise, label = noise_of(given, 3), torch.arange(3)
    flux = name == "flux"
    latents = pipe._pack_latents(noise, *noise.shape) if flux else noise
    table = given.network.given.table
    null = len(table)
    for guidance in (1.0,) if flux else (1.0, 3.0):
        embeds = {"prompt_embeds": table.vectors[:3].float()}
        embeds |= {"negative_prompt_embeds": table.vectors[[null] * 3].float()}
        if name == "pixart":
            embeds |= {"prompt_attention_mask": table.mask[:3], "negative_prompt": None}
            embeds |= {"negative_prompt_attention_mask": table.mask[[null] * 3]}
        elif name != "sd":
            embeds |= {"pooled_prompt_embeds": table.pooled[:3]}
            embeds |= {"negative_pooled_prompt_embeds": table.pooled[[null] * 3]}
        call = form.arguments(pipe.vae_scale_factor)
        call |= {} if flux else {"guidance_scale": guidance}
        wanted = own(given, noise, solver, label, guidance)
        found = []
        for words in (embeds, {"prompt": list(WORDS)}):
            got = pipe(**{**call, **words}, latents=latents, output_type="latent").images
            found.append(pipe._unpack_latents(got, 8, 8, 1) if flux else got)
        assert_same(found[0], wanted)
        torch.testing.assert_close(found[1], wanted, atol=2e-3, rtol=2e-3)
        other = own(given, noise, solver, label.flip(0), guidance)
        assert (other[0] - wanted[0]).abs().max() > 1e-2


def test_a_table_too_large_for_the_model_is_not_needed(tmp_path, saved):
    given = of_texts(tmp_path, saved("sd3"))
    given.network.given.forget()
    folder.write_folder(given, tmp_path / "out", even(2))
    assert given.network.given.table is None


def test_a_pipeline_decodes_with_the_codec_of_the_data(tmp_path, saved):
    vae = DiffusersCodec(name="diffusers", path=str(codecs.kl(tmp_path / "vae")))
    told = record(vae, torch.zeros(2, 4, 8, 8), (1, 16, 16), image=True)
    given = of_texts(tmp_path, saved("sd"), codec=told, scale=vae.scale.record)
    solver, out = ddim(Discrete(name="epsilon", **SD), 4), tmp_path / "out"
    form = folder.write_folder(given, out, solver)
    pipe = loaded(out, **form.load(out))
    assert type(pipe.scheduler) is diffusers.DDIMScheduler
    assert DiffusersCodec(name="diffusers", path=str(out)).digest() == told["sha256"]
    noise, words = noise_of(given), given.network.given.table.vectors[:2].float()
    call = {**form.arguments(pipe.vae_scale_factor), "latents": noise, "prompt_embeds": words}
    got = pipe(**call, output_type="pt").images
    latents = own(given, noise, solver, torch.arange(2))
    assert_same(2 * got - 1, given.units.inverse(latents).clamp(-1, 1))
    other = of_texts(tmp_path, saved("sd"), codec=told, scale={"mean": [0.0], "std": [3.0]})
    with pytest.raises(ReflowError, match=r"data\.scale has others"):
        folder.write_folder(other, tmp_path / "o", solver)


def test_encoders_that_changed_are_refused(tmp_path, saved):
    pipeline = shutil.copytree(saved("sd"), tmp_path / "pipeline")
    given = of_texts(tmp_path, pipeline)
    file = next((pipeline / "text_encoder").glob("*.safetensors"))
    save_file({n: x + 1 for n, x in load_file(file).items()}, file, {"format": "pt"})
    with pytest.raises(ReflowError, match="others than those that the round learned from"):
        folder.write_folder(given, tmp_path / "out", even(1))


def test_a_folder_of_other_samples_is_refused(tmp_path):
    given = student(tmp_path, "UNet2DModel", FLOW, (1, 8, 8), config=UNET, image=True)
    form = folder.write_folder(given, tmp_path / "out", even(2))
    assert form.checked(tmp_path / "out") is form
    file = next((tmp_path / "out/unet").glob("*.safetensors"))
    save_file({n: 1.01 * x for n, x in load_file(file).items()}, file, {"format": "pt"})
    with pytest.raises(ReflowError, match=r"are \d.* from those of the round, 0.0001 at most"):
        form.checked(tmp_path / "out")
    file.unlink()
    with pytest.raises(ReflowError, match="diffusers cannot sample this round") as found:
        form.checked(tmp_path / "out")
    assert "\n" not in str(found.value)


def test_a_grid_below_the_first_time_step_is_refused_where_samples_differ(tmp_path):
    given = student(tmp_path, "UNet2DModel", Discrete(name="epsilon", **SD), (1, 8, 8), config=UNET)
    folder.write_folder(given, tmp_path / "out", even(30))
    with pytest.raises(ReflowError, match="or on another grid"):
        folder.write_folder(given, tmp_path / "other", even(50))


VECTORS = Table(torch.randn(4, 6, 8), torch.ones(4, 6), torch.randn(4, 8))
SNR = Discrete(name="v_prediction", zero_terminal_snr=True)


@pytest.mark.parametrize(
    ("kind", "prediction", "more", "why"),
    [
        ("UNet2DModel", Edm(name="edm"), {"config": UNET}, "prediction edm: no pipeline"),
        ("UNet2DConditionModel", FLOW, {}, "its pipeline has another scheduler"),
        ("SD3Transformer2DModel", Discrete(name="epsilon"), {}, "has another scheduler"),
        (
            "UNet2DConditionModel", Discrete(name="epsilon"), {"table": VECTORS},
            "its conditions are vectors of your own",
        ),
        ("UNet2DModel", FLOW, {"config": UNET, "objective": "noise"}, "objective noise"),
        (
            "UNet2DModel", SNR, {"config": UNET},
            r"--nfe 3: .* --times 1,0\.\d+,0$",
        ),
    ],
)  # fmt: skip
def test_what_no_pipeline_samples_is_one_line(tmp_path, kind, prediction, more, why):
    shape = (1, 8, 8) if kind == "UNet2DModel" else (4, 8, 8)
    sizes = {} if "table" in more else absent_condition(kind, more.get("config") or CLASSES[kind])
    condition = {n: torch.zeros(size) for n, size in sizes.items()}
    given = student(tmp_path, kind, prediction, shape, condition=condition, **more)
    with pytest.raises(ReflowError, match=why) as found:
        folder.write_folder(given, tmp_path / "out", even(3))
    assert "\n" not in str(found.value)
    if prediction is SNR:  # what it says does
        times = str(found.value).rsplit(" ", 1)[-1].split(",")
        folder.write_folder(
            given, tmp_path / "out", Solver(name="euler", times=[*map(float, times)])
        )
