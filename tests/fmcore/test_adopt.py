"""Models that others trained as those of rounds: folders of diffusers, classes of one's own."""

import csv
import json
import shutil
from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch
from pydantic import TypeAdapter
from safetensors.torch import save_file

from fmcore import own
from fmcore.adopt import Teacher, _files_of, adopt
from fmcore.couple import Couple, couple
from fmcore.coupling.read import open_coupling, read
from fmcore.coupling.write import About, finish, table, write_shard
from fmcore.dataset.arrays import Array
from fmcore.network.diffusers_class import takes_sizes
from fmcore.network.store import load
from fmcore.prepare import prepare
from fmcore.sampling.flow import Flow
from fmcore.settings import ReflowError
from fmcore.solve.solver import Solver
from fmcore.train import Train, train
from fmcore.work.work import Work
from tests import codecs
from tests import diffusers_folders as folders

TEACHER = TypeAdapter(Teacher)


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    torch.set_num_threads(1)
    return folders.pipeline(tmp_path_factory.mktemp("pipeline") / "p")


@pytest.fixture
def data(tmp_path):
    return coupling(tmp_path / "data", torch.from_numpy(folders.images()))


def coupling(folder, target, label=None):
    about = About(kind="independent", shape=list(target.shape[1:]), pairs=len(target), seed=0)
    rows = table(about, np.arange(len(target)), target, label=label)
    write_shard(folder, 0, rows)
    finish(folder, about, 1)
    return folder


def adopted(tmp_path, data, name="teacher", folder=None, **settings):
    told = []
    out = tmp_path / name
    adopt(
        data, out, tmp_path / "curve.csv", tmp_path / "metrics.json",
        TEACHER.validate_python(settings), name=name, folder=folder,
        work=Work(scratch=tmp_path, warn=told.append),
    )  # fmt: skip
    return out, told


def test_a_pipeline_of_another_vae_or_scale_than_the_latents_is_told(tmp_path):
    for name, seed in (("right", 0), ("wrong", 1)):
        folders.pipeline(tmp_path / name, folders.network(channels=4))
        codecs.tiny(tmp_path / name / "vae", seed=seed)
    np.save(tmp_path / "x.npy", folders.images(64).repeat(2, 2).repeat(2, 3))
    for name, scale in (("data", {"name": "none"}), ("other", {"mean": [0.0], "std": [2.0]})):
        vae = {"name": "diffusers", "path": str(tmp_path / "right")}
        told = {"name": "array", "path": str(tmp_path / "x.npy"), "codec": vae, "scale": scale}
        prepare(tmp_path / name, Array.model_validate(told), seed=0)

    def taken(data, pipeline):
        path = str(tmp_path / pipeline)
        return adopted(tmp_path, tmp_path / data, kind="diffusers", path=path)[1]

    assert not any("data.scale" in note for note in taken("data", "right"))
    assert any("data.scale {mean: 0, std: 1}" in note for note in taken("other", "right"))
    with pytest.raises(ReflowError, match="codec .* is another than the model's"):
        taken("data", "wrong")


def test_a_pixart_that_takes_the_size_of_its_pictures_gets_it(tmp_path):
    """As the one of 1,024 pixels, whose config leaves it to diffusers to see that from 128."""
    net = diffusers.PixArtTransformer2DModel(
        sample_size=8, patch_size=2, in_channels=4, out_channels=4, num_layers=1,
        attention_head_dim=6, num_attention_heads=2, cross_attention_dim=12, caption_channels=6,
        use_additional_conditions=True,
    )  # fmt: skip
    for weight in net.parameters():  # the last layer starts at 0
        weight.data += 0.1 * torch.randn_like(weight)
    net.save_pretrained(tmp_path / "net")
    assert takes_sizes("PixArtTransformer2DModel", {"sample_size": 128})
    assert not takes_sizes("PixArtTransformer2DModel", {"sample_size": 64})
    data = coupling(tmp_path / "data", torch.randn(60, 4, 8, 8))
    out, told = adopted(
        tmp_path, data, kind="diffusers", path=str(tmp_path / "net"),
        prediction={"name": "flow_prediction"},
    )  # fmt: skip
    assert any("no resolution, aspect_ratio in `condition`: pictures of 64 x 64" in n for n in told)
    x, t = torch.randn(2, 4, 8, 8), torch.tensor([0.3, 0.8])
    with torch.no_grad():
        theirs = net(
            x, torch.zeros(2, 1, 6), 1000 * t, return_dict=False,
            added_cond_kwargs={
                "resolution": torch.full((2, 2), 64.0), "aspect_ratio": torch.ones(2, 1)
            },
        )[0]  # fmt: skip
        torch.testing.assert_close(load(out).network(x, t), theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("side", "more", "says"),
    [
        (6, {"block_out_channels": (8, 8, 8), "down_block_types": ("DownBlock2D",) * 3,
             "up_block_types": ("UpBlock2D",) * 3}, r"samples \[1, 6, 6\] with no labels"),
        (8, {"class_embed_type": "timestep"}, "class_labels should be provided"),
    ],
)  # fmt: skip
def test_what_a_network_of_others_raises_is_one_line(tmp_path, side, more, says):
    net = diffusers.UNet2DModel(**{
        "sample_size": side, "in_channels": 1, "out_channels": 1, "block_out_channels": (8, 8),
        "down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2,
        "norm_num_groups": 4, "layers_per_block": 1, **more,
    })  # fmt: skip
    net.save_pretrained(tmp_path / "net")
    data = coupling(tmp_path / "data", torch.randn(60, 1, side, side))
    with pytest.raises(ReflowError, match=says) as found:
        adopted(
            tmp_path, data, kind="diffusers", path=str(tmp_path / "net"),
            prediction={"name": "flow_prediction"},
        )  # fmt: skip
    assert "\n" not in str(found.value) and not (tmp_path / "teacher").exists()


def test_a_pipeline_becomes_a_round(tmp_path, data, pipeline):
    out, told = adopted(tmp_path, data, kind="diffusers", path=str(pipeline))
    model = load(out)
    assert model.config["teacher"] == {"kind": "diffusers"}
    assert model.config["scheduler"]["_class_name"] == "DDPMScheduler"
    assert "left 0.0064 of the target" in told[-1]
    theirs = diffusers.UNet2DModel.from_pretrained(pipeline / "unet")
    for name, value in theirs.state_dict().items():
        assert torch.equal(model.network.net.net.state_dict()[name], value)
    measured = json.loads((tmp_path / "metrics.json").read_text())
    assert measured["steps"] == measured["flops_training"] == 0 and "loss" not in measured
    assert measured["parameters"] == sum(p.numel() for p in theirs.parameters())
    assert measured["held_out_loss"] > 0
    with (tmp_path / "curve.csv").open() as file:
        assert list(csv.DictReader(file)) == []
    assert "last time step leaves" in Flow.of(model).refusal


def test_a_student_starts_from_it_with_equal_outputs(tmp_path, data, pipeline):
    out, _ = adopted(tmp_path, data, kind="diffusers", path=str(pipeline))
    work = Work(scratch=tmp_path / "scratch")
    pairs = tmp_path / "pairs"
    ddim = Couple(pairs=64, solver=Solver(name="euler", steps=4), shard=64)
    couple(out, data, pairs, tmp_path / "pairs.json", ddim, work)
    assert open_coupling(pairs).about.model == load(out).digest
    made = read(open_coupling(pairs))
    settings = Train(steps=1, batch=8, lr=1e-12, warmup=0, ema=0.0, label_dropout=0.0)
    train(
        pairs, out, tmp_path / "student", tmp_path / "c.csv", tmp_path / "m.json", settings,
        name="student", work=work,
    )  # fmt: skip
    student, teacher = load(tmp_path / "student"), load(out)
    assert student.config["init"] == teacher.digest
    x, t = made.source[:8], torch.linspace(0, 1, 8)
    torch.testing.assert_close(student.network(x, t), teacher.network(x, t), atol=1e-5, rtol=1e-5)
    again = Flow.of(teacher).sample(made.source, ddim.solver)
    torch.testing.assert_close(again.x, made.target, atol=1e-4, rtol=1e-4)


def test_scheduler_and_condition_are_part_of_its_identity(tmp_path, data, pipeline):
    whole, _ = adopted(tmp_path, data, kind="diffusers", path=str(pipeline))
    other = {"name": "v_prediction"}
    second, _ = adopted(
        tmp_path, data, "second", kind="diffusers", path=str(pipeline / "unet"), prediction=other
    )
    assert load(second).digest != load(whole).digest
    moved = shutil.copytree(pipeline, tmp_path / "elsewhere")
    third, _ = adopted(tmp_path, data, "third", kind="diffusers", path=str(moved))
    config = {**load(third).config, "round": "teacher"}
    assert config == load(whole).config  # nothing of where it lay
    assert "v_prediction" in json.dumps(load(second).config["network"])


def test_what_is_the_samplers_is_said(tmp_path, data):
    scheduler = diffusers.DDIMScheduler(set_alpha_to_one=False)
    path = folders.pipeline(tmp_path / "ddim", scheduler=scheduler)
    _, told = adopted(tmp_path, data, kind="diffusers", path=str(path))
    said = "\n".join(told)
    for word in ("clip_sample", "set_alpha_to_one", "timestep_spacing"):
        assert f"scheduler: {word}: " in said
    flow = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True)
    flow.save_pretrained(tmp_path / "flow")
    _, told = adopted(
        tmp_path, data, kind="diffusers", path=str(path / "unet"), scheduler=str(tmp_path / "flow")
    )
    assert any("shift 3" in line for line in told) and "dynamic" in "\n".join(told)
    assert not any("left" in line for line in told)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda p: (p / "unet" / "config.json").unlink(), "expected a folder that diffusers'"),
        (lambda p: (p / "scheduler" / "scheduler_config.json").unlink(), "cannot be read"),
        (lambda p: (p / "unet" / "config.json").write_text("{"), "not JSON"),
        (lambda p: rename(p / "scheduler" / "scheduler_config.json", "TCDScheduler"), "TCDSched"),
        (lambda p: rename(p / "unet" / "config.json", "VQModel"), "_class_name"),
        (lambda p: pickled(p / "unet"), "no safetensors there"),
        (lambda p: cut(p / "unet"), "cannot load|not those of its config"),
        (lambda p: fewer(p / "unet"), "not those of its config"),
    ],
)
def test_a_bad_folder_is_told_in_one_line(tmp_path, data, change, says):
    path = folders.pipeline(tmp_path / "p")
    change(path)
    with pytest.raises(ReflowError, match=says) as caught:
        adopted(tmp_path, data, kind="diffusers", path=str(path))
    assert "\n" not in str(caught.value)


def rename(file, name):
    file.write_text(json.dumps({**json.loads(file.read_text()), "_class_name": name}))


def weights(folder):
    return next(folder.glob("*.safetensors"))


def pickled(folder):
    torch.save({}, folder / "diffusion_pytorch_model.bin")
    weights(folder).unlink()


def cut(folder):
    weights(folder).write_bytes(weights(folder).read_bytes()[:1000])


def fewer(folder):
    save_file({"conv_in.bias": torch.zeros(8)}, weights(folder))


def test_data_of_another_shape_or_without_labels_is_refused(tmp_path, pipeline):
    wrong = coupling(tmp_path / "wrong", torch.zeros(8, 2))
    with pytest.raises(ReflowError, match="its samples are"):
        adopted(tmp_path, wrong, kind="diffusers", path=str(pipeline))
    path = folders.pipeline(tmp_path / "labelled", folders.network(num_class_embeds=3))
    plain = coupling(tmp_path / "plain", torch.from_numpy(folders.images()))
    with pytest.raises(ReflowError, match=r"has no labels"):
        adopted(tmp_path, plain, kind="diffusers", path=str(path))


def test_classes_with_and_without_a_null_class(tmp_path):
    path = folders.pipeline(tmp_path / "labelled", folders.network(num_class_embeds=3))
    label = torch.arange(256) % 2
    data = coupling(tmp_path / "data", torch.from_numpy(folders.images()), label)
    out, _ = adopted(tmp_path, data, kind="diffusers", path=str(path))
    guided = Couple(pairs=8, solver=Solver(name="euler", steps=2), guidance=2.0)
    work = Work(scratch=tmp_path / "scratch")
    with pytest.raises(ReflowError, match="guidance 2 needs a class for no label"):
        couple(out, data, tmp_path / "g", tmp_path / "g.json", guided, work)
    with pytest.raises(ReflowError, match="label_dropout 0.1 needs a class for no label"):
        paths = (tmp_path / "s", tmp_path / "c.csv", tmp_path / "m.json")
        train(data, out, *paths, Train(steps=1), name="s", work=work)
    out, _ = adopted(tmp_path, data, "null", kind="diffusers", path=str(path), classes=2)
    couple(out, data, tmp_path / "g", tmp_path / "g.json", guided, work)
    about = open_coupling(tmp_path / "g").about
    assert (about.guidance, about.guided, about.nfe) == (2.0, 2.0, 4)


OWN = '''
import torch
from fmcore.network.own import OwnNetwork


class Exact(OwnNetwork):
    """The exact EDM denoiser of N(0, scale^2)."""

    def __init__(self, shape, classes, start: float = 1.0):
        super().__init__(shape, classes)
        self.scale = torch.nn.Parameter(torch.tensor(start))

    def forward(self, x, t, label=None):
        sigma = t.reshape(-1, *(1,) * (x.ndim - 1))
        return self.scale**2 / (self.scale**2 + sigma**2) * x
'''


def test_a_denoiser_of_ones_own(tmp_path):
    (tmp_path / "denoisers.py").write_text(OWN)
    own.trust(tmp_path, ["denoisers:Exact"])
    save_file({"scale": torch.tensor(0.5)}, tmp_path / "w.safetensors")
    data = coupling(tmp_path / "data", 0.5 * torch.randn(400, 2))
    out, _ = adopted(
        tmp_path, data, kind="own", network={"name": "custom", "path": "denoisers:Exact"},
        weights=str(tmp_path / "w.safetensors"), prediction={"name": "edm", "output": "denoised"},
    )  # fmt: skip
    flow = Flow.of(load(out))
    source = torch.randn(64, 2)
    found = flow.sample(source, Solver(name="rk4", steps=64)).x
    # dx/dsigma = (x - D) / sigma keeps x / sqrt(s^2 + sigma^2).
    torch.testing.assert_close(found, 80 * source * 0.5 / (0.25 + 80**2) ** 0.5, atol=1e-3, rtol=0)
    save_file({"other": torch.tensor(0.5)}, tmp_path / "w.safetensors")
    with pytest.raises(ReflowError, match="weights of another network"):
        adopted(
            tmp_path, data, kind="own", network={"name": "custom", "path": "denoisers:Exact"},
            weights=str(tmp_path / "w.safetensors"),
        )  # fmt: skip


READER = """
from pathlib import Path
from fmcore.network.own import OwnNetwork

class Reads(OwnNetwork):
    def __init__(self, shape, classes, table: str):
        super().__init__(shape, classes)
        self.factor = float(Path(table).read_text())

    def forward(self, x, t, label=None):
        return self.factor * x
"""


def test_a_file_that_ones_own_class_reads_is_part_of_its_model(tmp_path):
    """Though it is in no weight: pairs of two such files must not be taken for those of one."""
    (tmp_path / "readers.py").write_text(READER)
    own.trust(tmp_path, ["readers:Reads"])
    data, digests = coupling(tmp_path / "data", torch.randn(100, 2)), []
    for number in ("0.5", "0.7", "0.5"):
        (tmp_path / "table.txt").write_text(number)
        network = {"name": "custom", "path": "readers:Reads"}
        network["settings"] = {"table": str(tmp_path / "table.txt")}
        out, _ = adopted(tmp_path, data, f"n{len(digests)}", kind="own", network=network)
        digests.append(load(out).config["reads"])
    assert digests[0] == digests[2] != digests[1]
    for text in ("a prompt " * 1000, ".", "/", ""):  # no file, or the whole project
        network["settings"] = {"table": text}
        assert _files_of(TEACHER.validate_python({"kind": "own", "network": network})) == {}


def test_a_model_of_ours_keeps_its_bytes(tmp_path, data, pipeline):
    first, _ = adopted(tmp_path, data, kind="diffusers", path=str(pipeline))
    second, _ = adopted(tmp_path, data, "again", folder=first, kind="reflow", path=str(first))
    a, b = load(first), load(second)
    assert b.config["taken_from"] == a.digest and b.config["round"] == "again"
    x, t = torch.randn(4, 1, 8, 8), torch.linspace(0, 1, 4)
    assert torch.equal(a.network(x, t), b.network(x, t))
    for name in ("model.safetensors", "raw.safetensors"):
        assert (Path(first) / name).read_bytes() == (Path(second) / name).read_bytes()


def test_conditions_are_kept_with_the_weights(tmp_path):
    torch.manual_seed(0)
    net = diffusers.SD3Transformer2DModel(
        sample_size=8, in_channels=4, out_channels=4, num_layers=1, attention_head_dim=8,
        num_attention_heads=2, joint_attention_dim=6, caption_projection_dim=16,
        pooled_projection_dim=10, pos_embed_max_size=8,
    ).eval()  # fmt: skip
    net.save_pretrained(tmp_path / "sd3")
    diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0).save_pretrained(tmp_path / "sd3")
    words, pooled = torch.randn(1, 5, 6), torch.randn(1, 10)
    save_file(
        {"encoder_hidden_states": words, "pooled_projections": pooled}, tmp_path / "c.safetensors"
    )
    data = coupling(tmp_path / "data", torch.randn(80, 4, 8, 8))
    out, told = adopted(
        tmp_path, data, kind="diffusers", path=str(tmp_path / "sd3"),
        condition=str(tmp_path / "c.safetensors"),
    )  # fmt: skip
    assert not any("zeros" in line for line in told)
    x, t = torch.randn(2, 4, 8, 8), torch.tensor([0.3, 1.0])
    with torch.no_grad():
        theirs = net(
            hidden_states=x, timestep=1000 * t, encoder_hidden_states=words.expand(2, -1, -1),
            pooled_projections=pooled.expand(2, -1), return_dict=False,
        )[0]  # fmt: skip
    torch.testing.assert_close(load(out).network(x, t), theirs, atol=1e-6, rtol=1e-5)
    save_file({"prompt": words}, tmp_path / "c.safetensors")
    with pytest.raises(ReflowError, match="'prompt' is no condition"):
        adopted(
            tmp_path, data, kind="diffusers", path=str(tmp_path / "sd3"),
            condition=str(tmp_path / "c.safetensors"),
        )  # fmt: skip
