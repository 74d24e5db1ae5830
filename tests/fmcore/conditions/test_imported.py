"""Pairs from outside whose labels are texts: each is the condition of the data with that text."""

import io
import json
import tarfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from fmcore import own
from fmcore.conditions import table as conditions
from fmcore.conditions.table import Table
from fmcore.coupling.read import open_coupling
from fmcore.coupling.write import About, finish, table, write_shard
from fmcore.outside.export import export
from fmcore.settings import ReflowError
from tests.fmcore.outside import layouts
from tests.fmcore.outside.layouts import pairs, taken

TEXTS = ("cat", "dog")


def captioned(folder, texts=TEXTS):
    """Write prepared data of two dimensions whose samples have texts."""
    known = Table(torch.randn(len(texts) + 1, 3), texts=texts, encoder={"name": "some"})
    about = About(kind="independent", shape=[2], pairs=60, seed=0, conditions=known.about)
    write_shard(
        folder, 0, table(about, np.arange(60), torch.randn(60, 2), label=torch.arange(60) % 2)
    )
    conditions.write(folder, known)
    finish(folder, about, 1)


def parquet(root, labels):
    """Write pairs with texts as labels."""
    columns = {k: pa.FixedSizeListArray.from_arrays(v.reshape(-1), 2) for k, v in pairs().items()}
    pq.write_table(pa.table({**columns, "prompt": labels}), root / "p.parquet")
    return {"kind": "parquet", "path": str(root / "p.parquet"), "label": "prompt"}


def test_a_text_is_the_row_of_its_condition(tmp_path):
    captioned(tmp_path / "data")
    how = parquet(tmp_path, ["dog", "cat", "dog"] * 40)
    found = taken(tmp_path, **how)
    assert found.label.tolist() == [1, 0, 1] * 40
    about = open_coupling(tmp_path / "out").about
    assert about.conditions == open_coupling(tmp_path / "data").about.conditions


def test_captions_in_tar_shards_are_conditions(tmp_path):
    captioned(tmp_path / "data", texts=("10", "2"))
    with tarfile.open(tmp_path / "p.tar", "w") as archive:
        for i, (target, source) in enumerate(zip(*pairs(60).values(), strict=True)):
            add(archive, f"{i:03d}.target.npy", target)
            add(archive, f"{i:03d}.source.npy", source)
            add(archive, f"{i:03d}.txt", ("10", "2")[i % 2])
    how = {"kind": "webdataset", "path": str(tmp_path / "p.tar"), "label": "txt"}
    assert taken(tmp_path, **how).label.tolist() == [0, 1] * 30  # texts, though of digits
    layouts.data(tmp_path / "plain")  # without texts they are classes
    assert taken(tmp_path / "plain", **how).label.tolist() == [10, 2] * 30


def add(archive, name, content):
    sink = io.BytesIO()
    if isinstance(content, str):
        sink.write(f"{content}\n".encode())
    else:
        np.save(sink, content)
    member = tarfile.TarInfo(name)
    member.size = len(sink.getvalue())
    archive.addfile(member, io.BytesIO(sink.getvalue()))


def test_a_class_of_ones_own_gives_texts(tmp_path):
    captioned(tmp_path / "data")
    (tmp_path / "mine.py").write_text(CODE)
    own.trust(tmp_path, ["mine:Captioned", "mine:Mixed"])
    found = taken(tmp_path, pairs=60, kind="custom", path="mine:Captioned")
    assert found.label.tolist() == [1, 0] * 30
    with pytest.raises(ReflowError, match="must give tensors target and source"):
        taken(tmp_path, name="mixed", pairs=60, kind="custom", path="mine:Mixed")


CODE = """
from fmcore.coupling.noise import gaussian_noise
from fmcore.outside.own import OwnPairs

class Captioned(OwnPairs):
    def pairs(self, ids):
        z = gaussian_noise(7, ids, (2,))
        return z + 2, z, ["cat" if i % 2 else "dog" for i in ids]

class Mixed(OwnPairs):
    def pairs(self, ids):
        z = gaussian_noise(7, ids, (2,))
        return z + 2, z, ["cat", *[1 for _ in ids[1:]]]
"""


def test_exported_labels_are_of_the_conditions_that_are_named_beside_them(tmp_path):
    captioned(tmp_path / "data")
    taken(tmp_path, **parquet(tmp_path, ["dog", "cat"] * 60))
    export(tmp_path / "out", tmp_path / "exported", "npz")
    assert json.loads((tmp_path / "exported/texts.json").read_text()) == list(TEXTS)
    how = {"kind": "npz", "path": str(tmp_path / "exported")}
    assert taken(tmp_path, name="again", **how).label.tolist() == [1, 0] * 60
    captioned(tmp_path / "data", texts=("dog", "cat"))
    with pytest.raises(ReflowError, match=r"pairs are of data\.conditions sha256"):
        taken(tmp_path, name="other", **how)


def test_a_text_that_the_data_has_not_is_told(tmp_path):
    captioned(tmp_path / "data")
    how = parquet(tmp_path, ["dog"] * 70 + ["newt"] * 50)
    with pytest.raises(ReflowError, match="label of pair 70 is 'newt', which is no condition"):
        taken(tmp_path, **how)


def test_labels_of_another_chain_are_of_the_same_conditions(tmp_path):
    captioned(tmp_path / "data")
    taken(tmp_path, **parquet(tmp_path, ["cat"] * 120))
    how = {"kind": "reflow", "path": str(tmp_path / "out")}
    assert taken(tmp_path, name="again", **how).label.tolist() == [0] * 120
    captioned(tmp_path / "data", texts=("dog", "cat"))
    with pytest.raises(ReflowError, match="its labels are of other conditions"):
        taken(tmp_path, name="other", **how)
