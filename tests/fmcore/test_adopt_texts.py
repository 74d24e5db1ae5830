"""A teacher that takes a text for each sample: its pipeline in diffusers is the oracle."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from fmcore.conditions import table as conditions
from fmcore.conditions.encoders import EncoderPipeline, table_of
from fmcore.couple import Couple, couple
from fmcore.coupling.compact import Store
from fmcore.coupling.read import open_coupling, read
from fmcore.coupling.verify import verify
from fmcore.coupling.write import About, finish, table, write_shard
from fmcore.network.store import load
from fmcore.sampling.flow import Flow
from fmcore.sampling.prompts import prompted
from fmcore.settings import ReflowError
from fmcore.solve.solver import Solver
from fmcore.train import Train, train
from fmcore.work.executor import Executor
from fmcore.work.work import Work
from tests.fmcore.test_adopt import adopted

pytest.importorskip("transformers")
pipelines = pytest.importorskip("tests.text_pipelines")
saved = pipelines.saved
TEXTS = ("a red cat", "cat", "red")


@pytest.fixture
def pipeline(saved) -> Path:
    return saved("sd")


def captioned(folder: Path, pipeline: Path) -> Path:
    """Write a coupling of latents [60, 4, 8, 8], each with one of three texts."""
    known = table_of(TEXTS, EncoderPipeline(name="pipeline", path=str(pipeline)))
    x = torch.randn(60, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    about = About(kind="independent", shape=[4, 8, 8], pairs=60, seed=0, conditions=known.about)
    write_shard(folder, 0, table(about, np.arange(60), x, label=torch.arange(60) % 3))
    conditions.write(folder, known)
    finish(folder, about, 1)
    return folder


@pytest.fixture
def data(tmp_path, pipeline):
    return captioned(tmp_path / "data", pipeline)


@pytest.fixture
def teacher(tmp_path, data, pipeline):
    out, told = adopted(tmp_path, data, kind="diffusers", path=str(pipeline), conditions={})
    assert not any("zeros" in line for line in told)
    return out


@pytest.mark.parametrize(
    ("kind", "guidance"),
    [
        (kind, guidance)
        for kind in ("sd", "sdxl", "sd3", "sd3 without T5", "flux", "pixart")
        for guidance in (1.0, 3.0)
        if (kind, guidance) != ("flux", 3.0)  # its pipeline does not guide
    ],
)
def test_samples_are_those_of_the_pipeline_with_each_ones_prompt(tmp_path, saved, kind, guidance):
    steps, pipeline = 5, saved(kind)
    data = captioned(tmp_path / "data", pipeline)
    teacher, told = adopted(tmp_path, data, kind="diffusers", path=str(pipeline), conditions={})
    assert any("pictures of 8 x 8" in line for line in told) == (kind == "sdxl")
    source = torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    theirs, own_times = pipelines.samples(pipeline, TEXTS, source, steps, guidance)
    grid = load(teacher).network.settings.prediction.times(own_times.tolist())
    solver = Solver(name="euler", steps=steps, times=list(grid))
    flow = Flow.of(load(teacher))
    label = torch.tensor([load(teacher).label(text) for text in TEXTS])
    ours = flow.sample(source, solver, label=label, guidance=guidance).x
    # The embeddings of a table are kept in half precision.
    torch.testing.assert_close(ours, theirs, atol=2e-3, rtol=2e-3)
    print(
        "APART",
        kind,
        guidance,
        float((ours - theirs).abs().max()),
        float((ours - source).abs().max()),
    )
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
    save_file({"encoder_hidden_states": torch.zeros(6, 8)}, file)
    with pytest.raises(ReflowError, match="that of each sample's text"):
        adopted(tmp_path, data, **settings, condition=file)
    about = About(kind="independent", shape=[4, 8, 8], pairs=60, seed=0)
    write_shard(tmp_path / "plain", 0, table(about, np.arange(60), torch.randn(60, 4, 8, 8)))
    finish(tmp_path / "plain", about, 1)
    with pytest.raises(ReflowError, match="the data has no conditions"):
        adopted(tmp_path, tmp_path / "plain", **settings)
    known = conditions.Table(torch.randn(4, 6, 6), torch.ones(4, 6), torch.randn(4, 8))
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
