"""All text encoders of a pipeline as one: what is told of it, and what is refused."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from fmcore.conditions.encoders import EncoderFolder, EncoderPipeline, beside, table_of
from fmcore.settings import ReflowError

pytest.importorskip("transformers")
pipelines = pytest.importorskip("tests.text_pipelines")
saved = pipelines.saved


@pytest.fixture
def copy(saved, tmp_path):
    return Path(shutil.copytree(saved("sd3"), tmp_path / "copy"))


def of(folder: Path, **more) -> EncoderPipeline:
    return EncoderPipeline(name="pipeline", path=str(folder), **more)


def changed(folder: Path) -> None:
    """Change one weight of a model."""
    file = next(folder.glob("*.safetensors"))
    tensors = load_file(file)
    tensors[min(tensors)] += 1
    save_file(tensors, file, {"format": "pt"})


def test_tokens_and_pooled_vectors_are_of_all_encoders(saved):
    found = table_of(["cat", "red"], of(saved("sd3"), length=4))
    clip, t5 = pipelines.LENGTH, 4
    assert found.vectors.shape == (3, clip + t5, 20) and found.pooled.shape == (3, 8 + 8)
    assert found.mask.all()
    assert not found.vectors[:, :clip, 16:].any()  # CLIP's 8 + 8 numbers are padded to T5's
    assert found.vectors[:, clip:, 16:].any()
    again = beside(["red", "a cat"], found)
    assert torch.equal(again.vectors[0], found.vectors[1])


def test_no_text_is_zeros_for_sdxl_alone(saved):
    xl, sd3 = (table_of(["cat"], of(saved(kind))) for kind in ("sdxl", "sd3"))
    assert xl.vectors[0].any() and xl.pooled[0].any()
    assert not xl.vectors[1].any() and not xl.pooled[1].any()
    assert sd3.vectors[1].any()


@pytest.mark.parametrize("part", ["text_encoder", "text_encoder_2", "text_encoder_3"])
def test_the_digest_is_of_every_encoder(copy, part):
    before = of(copy).digest()
    changed(copy / "transformer")
    assert of(copy).digest() == before
    changed(copy / part)
    assert of(copy).digest() != before


@pytest.mark.parametrize("part", ["tokenizer_2", "tokenizer_3"])
def test_the_digest_is_of_every_tokenizer(copy, part):
    before = of(copy).digest()
    (copy / part / "extra").write_text("x")
    assert of(copy).digest() != before


def _no_index(folder):
    (folder / "model_index.json").unlink()


def _other_class(folder):
    file = folder / "model_index.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"_class_name": "WanPipeline"}))


def _classes(folder):
    file = folder / "model_index.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"_class_name": ["a", "b"]}))


def _no_encoder(folder):
    shutil.rmtree(folder / "text_encoder_2")


def _pickles(folder):
    file = folder / "text_encoder_3" / "model.safetensors"
    file.rename(file.with_name("pytorch_model.bin"))


def _torn(folder):
    file = folder / "text_encoder" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-8])


def _lacking(folder):
    file = folder / "text_encoder_2" / "model.safetensors"
    tensors = load_file(file)
    tensors.pop("text_projection.weight")
    save_file(tensors, file, {"format": "pt"})


def _no_tokenizer(folder):
    shutil.rmtree(folder / "tokenizer_3")


def _other_tokens(folder):
    file = folder / "text_encoder" / "config.json"
    config = json.loads(file.read_text()) | {"max_position_embeddings": 4}
    file.write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (_no_index, r"model_index\.json: cannot be read"),
        (_other_class, "pipeline WanPipeline, expected one of StableDiffusionPipeline"),
        (_classes, r"pipeline \['a', 'b'\], expected one of StableDiffusionPipeline"),
        (_no_encoder, r"text_encoder_2 has no config\.json"),
        (_pickles, "safetensors"),
        (_torn, "no pipeline whose text encoders can be read"),
        (_lacking, "text_encoder_2 has no text_projection.weight"),
        (_no_tokenizer, "tokenizer_3 has no vocabulary of a tokenizer"),
        (_other_tokens, "text_encoder has no .*position_embedding.weight of its config"),
    ],
)
def test_a_folder_that_is_not_whole_is_one_line(copy, damage, told):
    damage(copy)
    with pytest.raises(ReflowError, match=told) as error:
        table_of(["cat"], of(copy))
    assert "\n" not in str(error.value)


def test_a_length_without_t5_is_refused(saved):
    with pytest.raises(ReflowError, match="StableDiffusionXLPipeline has none; leave it out"):
        table_of(["cat"], of(saved("sdxl"), length=8))


def test_an_encoder_without_tokens_is_refused(saved):
    encoder = EncoderFolder(name="folder", path=str(saved("sd") / "text_encoder"))
    with pytest.raises(ReflowError, match=r"no vocabulary of a tokenizer|no text encoder"):
        table_of(["cat"], encoder)
