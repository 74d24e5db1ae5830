"""What prepare says of its data, on the screen and in its receipt."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from fmcore.coupling.read import open_coupling
from fmcore.dataset.images import Images
from fmcore.dataset.samples import Samples
from fmcore.dataset.summary import lines, summary
from fmcore.prepare import prepare


def test_the_numbers_are_those_of_all_values_also_far_from_zero():
    values = 1e6 + torch.randn(3000, 500, generator=torch.Generator().manual_seed(0))
    found, all_of_them = summary(Samples(values, None, image=False)), values.double()
    assert found["mean"] == pytest.approx(float(all_of_them.mean()), rel=1e-12)
    assert found["std"] == pytest.approx(float(all_of_them.std(correction=0)), rel=1e-9)
    assert (found["min"], found["max"]) == (values.min(), values.max())
    assert (found["samples"], found["features"], found["classes"]) == (3000, 500, 0)


def test_counts_of_many_classes_are_shortened():
    label = torch.arange(300).repeat(3)[:-1]
    samples = Samples(torch.zeros(899, 2), label, image=False)
    found = summary(samples)
    assert (found["classes"], found["class_least"], found["class_most"]) == (300, 2, 3)
    assert not any(key.startswith("class_0") for key in found)
    assert "data: 300 classes of 2 to 3 samples" in lines(samples, found)


def test_prepare_says_what_it_saw_and_writes_a_receipt(tmp_path):
    for i, name in enumerate(("b/0.png", "b/1.png", "a/2.png")):
        (tmp_path / "data" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((4, 6), 51 * i, np.uint8)).save(tmp_path / "data" / name)
    for i in range(5):
        (tmp_path / "data" / "a" / f"{i}.gif").touch()
    settings = Images(name="images", root=str(tmp_path / "data"))
    said, receipt = [], tmp_path / "metrics" / "prepare.json"
    prepare(tmp_path / "out", settings, seed=0, metrics=receipt, say=said.append)
    assert said == [
        "data: 3 images of shape 1x4x6, values from -1 to -0.2, mean -0.6, std 0.3266",
        "data: 2 classes of 1 to 2 samples: a 1, b 2",
        "data: left out 5 GIF (data.frame): a/0.gif, a/1.gif, a/2.gif, ...",
    ]
    found = json.loads(receipt.read_text())
    assert {k: found[k] for k in ("samples", "features", "classes", "class_0", "class_1")} == {
        "samples": 3, "features": 24, "classes": 2, "class_0": 1, "class_1": 2,
    }  # fmt: skip
    assert found["skipped"] == 5 and found["std"] == pytest.approx(0.4 * (2 / 3) ** 0.5)
    assert open_coupling(tmp_path / "out").about.classes == ["a", "b"]
