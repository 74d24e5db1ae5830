"""`reflow sample` by texts: one text, a sheet of them, guidance at some times."""

import numpy as np
import pytest
import torch
from PIL import Image

from flows.cli import sample
from flows.cli.prompts import sheet, texts_in
from flows.cli.sample import Draw, Place, draw
from fmcore.conditions.encoders import Conditions, WordLlama
from fmcore.dataset.images import Images
from fmcore.initialise import initialise
from fmcore.network.images import UNet
from fmcore.prepare import prepare
from fmcore.settings import ReflowError


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Prepared pictures with texts, and an untrained model of them whose texts have an effect."""
    torch.set_num_threads(1)
    root = tmp_path_factory.mktemp("prompts")
    (root / "pictures").mkdir()
    for name in ("red", "blue", "green", "white"):
        Image.new("RGB", (8, 8), name).save(root / "pictures" / f"{name}.png")
        (root / "pictures" / f"{name}.txt").write_text(f"{name} square")
    given = Conditions(encoder=WordLlama(name="wordllama", dim=8))
    data = Images(name="images", root=str(root / "pictures"), conditions=given)
    prepare(root / "data", data, seed=0)
    network = UNet(name="unet", channels=(8, 24), head=4, conditions={})
    initialise(root / "data", root / "model", network, seed=0)
    return Place(root / "model", root / "data", "rf1", "#333333")


@pytest.fixture(autouse=True)
def at(monkeypatch, place):
    monkeypatch.setattr(sample, "place_of", lambda *_: place)


def test_a_text_is_drawn_and_guidance_within_times_is_counted(tmp_path):
    file = tmp_path / "x.npy"
    wanted = Draw(nfe=4, count=2, prompt="a red heart", guidance=2.0, within=(0.4, 0.8))
    assert draw(tmp_path, "rf1", file, wanted) == (2, 6)  # t = 0.75 and 0.5 twice
    assert np.load(file).shape == (2, 3, 8, 8)


def test_a_sheet_has_a_row_for_each_text_and_a_column_for_each_nfe(tmp_path):
    (tmp_path / "texts").write_text("red square\n\na blue dog\n")
    file = tmp_path / "sheet.png"
    found = sheet(tmp_path, "rf1", file, Draw(), tmp_path / "texts")
    assert found == (6, 16)
    assert Image.open(file).width > 100
    assert sheet(tmp_path, "rf1", file, Draw(nfe=2), tmp_path / "texts") == (2, 2)


@pytest.mark.parametrize(
    ("wanted", "said"),
    [
        (Draw(prompt="red", label="1"), "both say"),
        (Draw(prompt="red", within=(0.2, 0.8)), "--within"),
        (Draw(prompt="red", guidance=2.0, within=(0.8, 0.2)), "--within"),
    ],
)
def test_what_means_nothing_is_refused(tmp_path, wanted, said):
    with pytest.raises(ReflowError, match=said):
        draw(tmp_path, "rf1", tmp_path / "x.npy", wanted)


def test_a_file_without_texts_is_refused(tmp_path):
    (tmp_path / "none").write_text("\n")
    with pytest.raises(ReflowError, match="found 0"):
        texts_in(tmp_path / "none")
    with pytest.raises(ReflowError, match="cannot be read"):
        texts_in(tmp_path / "absent")
