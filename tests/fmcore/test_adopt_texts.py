"""A teacher that takes a text for each sample: its pipeline in diffusers is the oracle."""

import json
from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from fmcore.conditions import table as conditions
from fmcore.conditions.encoders import EncoderFolder, table_of
from fmcore.couple import Couple, couple
from fmcore.coupling.compact import Store
from fmcore.coupling.read import open_coupling, read
from fmcore.coupling.verify import verify
from fmcore.coupling.write import About, finish, table, write_shard
from fmcore.network.predictions import Discrete
from fmcore.network.store import load
from fmcore.sampling.flow import Flow
from fmcore.sampling.prompts import prompted
from fmcore.settings import ReflowError
from fmcore.solve.solver import Solver
from fmcore.train import Train, train
from fmcore.work.executor import Executor
from fmcore.work.work import Work
from tests.fmcore.test_adopt import adopted

transformers = pytest.importorskip("transformers")
TEXTS = ("a red cat", "cat", "red")
LENGTH = 6


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory) -> Path:
    """Save a Stable Diffusion of a few thousand weights, and return its folder."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("texts")
    words = ["<|startoftext|>", "<|endoftext|>", *"acdert", *(f"{c}</w>" for c in "acdert")]
    (folder / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = transformers.CLIPTokenizer(
        str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=LENGTH
    )
    encoder = transformers.CLIPTextModel(
        transformers.CLIPTextConfig(
            vocab_size=len(words), hidden_size=8, intermediate_size=16, num_hidden_layers=2,
            num_attention_heads=2, max_position_embeddings=LENGTH, bos_token_id=0, eos_token_id=1,
            pad_token_id=1,
        )
    )  # fmt: skip
    unet = diffusers.UNet2DConditionModel(
        sample_size=8, in_channels=4, out_channels=4, layers_per_block=1,
        block_out_channels=(8, 16), norm_num_groups=4, attention_head_dim=2, cross_attention_dim=8,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    )  # fmt: skip
    vae = diffusers.AutoencoderKL(latent_channels=4, block_out_channels=(8,), norm_num_groups=4)
    scheduler = diffusers.DDIMScheduler(
        beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, clip_sample=False,
        timestep_spacing="trailing", steps_offset=1,
    )  # fmt: skip
    diffusers.StableDiffusionPipeline(
        vae, encoder, tokenizer, unet, scheduler, None, None, requires_safety_checker=False
    ).save_pretrained(folder / "sd")
    tokenizer.save_pretrained(folder / "sd" / "text_encoder")
    return folder / "sd"


def captioned(folder: Path, encoder: Path, padding: str = "seen") -> Path:
    """Write a coupling of latents [60, 4, 8, 8], each with one of three texts."""
    known = table_of(
        TEXTS, EncoderFolder(name="folder", path=str(encoder), length=LENGTH, padding=padding)
    )
    x = torch.randn(60, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    about = About(kind="independent", shape=[4, 8, 8], pairs=60, seed=0, conditions=known.about)
    write_shard(folder, 0, table(about, np.arange(60), x, label=torch.arange(60) % 3))
    conditions.write(folder, known)
    finish(folder, about, 1)
    return folder


@pytest.fixture
def data(tmp_path, pipeline):
    return captioned(tmp_path / "data", pipeline / "text_encoder")


@pytest.fixture
def teacher(tmp_path, data, pipeline):
    out, told = adopted(tmp_path, data, kind="diffusers", path=str(pipeline), conditions={})
    assert not any("zeros" in line for line in told)
    return out


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_samples_are_those_of_the_pipeline_with_each_ones_prompt(
    tmp_path, data, pipeline, teacher, guidance
):
    steps = 5
    pipe = diffusers.StableDiffusionPipeline.from_pretrained(pipeline)
    pipe.set_progress_bar_config(disable=True)
    source = torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    theirs = pipe(
        list(TEXTS), latents=source, num_inference_steps=steps, guidance_scale=guidance,
        output_type="latent",
    ).images  # fmt: skip
    betas = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
    grid = Discrete(name="epsilon", **betas).times(pipe.scheduler.timesteps.tolist())
    solver = Solver(name="euler", steps=steps, times=list(grid))
    flow = Flow.of(load(teacher))
    label = torch.tensor([load(teacher).label(text) for text in TEXTS])
    ours = flow.sample(source, solver, label=label, guidance=guidance).x
    # The embeddings of a table are kept in half precision.
    torch.testing.assert_close(ours, theirs, atol=2e-3, rtol=2e-3)
    other = flow.sample(source, solver, label=label.flip(0), guidance=guidance).x
    assert (other[0] - ours[0]).abs().max() > 1e-2
    again = prompted(flow, TEXTS).sample(source, solver, label=torch.arange(3), guidance=guidance)
    assert torch.equal(again.x, ours)


def test_a_coupling_and_a_student_have_the_texts(tmp_path, data, teacher):
    work = Work(scratch=tmp_path / "scratch")
    guided = Couple(pairs=24, solver=Solver(name="euler", steps=2), guidance=2.0, shard=12)
    couple(teacher, data, tmp_path / "pairs", tmp_path / "pairs.json", guided, work)
    made = open_coupling(tmp_path / "pairs")
    assert made.about.conditions == open_coupling(data).about.conditions
    assert (made.about.nfe, made.about.model) == (4, load(teacher).digest)
    assert set(read(made).label.tolist()) <= {0, 1, 2}
    paths = (tmp_path / "student", tmp_path / "c.csv", tmp_path / "m.json")
    settings = Train(steps=2, batch=8, label_dropout=0.5)
    train(tmp_path / "pairs", teacher, *paths, settings, name="student", work=work)
    student = load(tmp_path / "student")
    assert student.label("cat") == conditions.read(data, made.about.conditions).row("cat")
    x, t = torch.randn(2, 4, 8, 8), torch.ones(2)
    cat, red = (torch.full((2,), student.label(text)) for text in ("cat", "red"))
    assert not torch.allclose(student.network(x, t, cat), student.network(x, t, red))


def test_texts_of_another_encoder_or_given_twice_are_told(tmp_path, data, pipeline):
    settings = {"kind": "diffusers", "path": str(pipeline), "conditions": {}}
    file = str(tmp_path / "c.safetensors")
    save_file({"encoder_hidden_states": torch.zeros(LENGTH, 8)}, file)
    with pytest.raises(ReflowError, match="that of each sample's text"):
        adopted(tmp_path, data, **settings, condition=file)
    about = About(kind="independent", shape=[4, 8, 8], pairs=60, seed=0)
    write_shard(tmp_path / "plain", 0, table(about, np.arange(60), torch.randn(60, 4, 8, 8)))
    finish(tmp_path / "plain", about, 1)
    with pytest.raises(ReflowError, match="the data has no conditions"):
        adopted(tmp_path, tmp_path / "plain", **settings)
    known = conditions.Table(torch.randn(4, LENGTH, 6), torch.ones(4, LENGTH), torch.randn(4, 8))
    other = about.model_copy(update={"conditions": known.about})
    folder = tmp_path / "other"
    write_shard(
        folder,
        0,
        table(
            other, np.arange(60), torch.randn(60, 4, 8, 8), label=torch.zeros(60, dtype=torch.int64)
        ),
    )
    conditions.write(folder, known)
    finish(folder, other, 1)
    with pytest.raises(ReflowError, match="attends to tokens of 8 numbers, the data's"):
        adopted(tmp_path, folder, **settings)


def test_a_masked_padding_is_another_encoder(tmp_path, data, pipeline):
    masked = captioned(tmp_path / "masked", pipeline / "text_encoder", "masked")
    a, b = (open_coupling(folder).about.conditions for folder in (data, masked))
    assert a["sha256"] != b["sha256"] and "padding" not in b["encoder"]


def test_workers_of_other_processes_give_the_same_bytes(tmp_path, data, teacher):
    store = Store(pieces=2, target="float16")
    settings = Couple(
        pairs=40, solver=Solver(name="euler", steps=2), guidance=2.0, shard=16, store=store
    )
    for name, executor in (("here", None), ("there", Executor.parse("processes:2"))):
        how = {} if executor is None else {"executor": executor}
        work = Work(scratch=tmp_path / f"{name}-scratch", **how)
        couple(teacher, data, tmp_path / name, tmp_path / f"{name}.json", settings, work)
    verify(tmp_path / "there")
    for file in sorted((tmp_path / "here").iterdir()):
        assert file.read_bytes() == (tmp_path / "there" / file.name).read_bytes()
