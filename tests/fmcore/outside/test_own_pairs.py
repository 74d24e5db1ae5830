"""Pairs of a class of the user's own: shards, workers and bytes as for ours."""

import numpy as np
import pytest
import torch

from fmcore import own
from fmcore.coupling.noise import gaussian_noise
from fmcore.coupling.read import open_coupling
from fmcore.settings import ReflowError
from fmcore.work.executor import Executor
from fmcore.work.work import Work
from tests.fmcore.outside.layouts import data, taken

CODE = """
import torch
from fmcore.coupling.noise import gaussian_noise
from fmcore.outside.own import OwnPairs

class Teacher(OwnPairs):
    far: float = 2.0
    def pairs(self, ids):
        z = gaussian_noise(7, ids, (2,))
        return z + torch.tensor([self.far, -1.0]), z, torch.from_numpy(ids % 3)

class Drifts(OwnPairs):
    def pairs(self, ids):
        z = gaussian_noise(7, ids, (2,))
        return z + len(ids), z

class Wrong(OwnPairs):
    def pairs(self, ids):
        return gaussian_noise(7, ids, (2,))

class Breaks(OwnPairs):
    def pairs(self, ids):
        raise RuntimeError("the API said no")

class Other:
    pass
"""


@pytest.fixture
def root(tmp_path):
    torch.set_num_threads(1)
    data(tmp_path)
    (tmp_path / "teachers.py").write_text(CODE)
    names = ("Teacher", "Drifts", "Wrong", "Breaks", "Other")
    own.trust(tmp_path, [f"teachers:{name}" for name in names])
    return tmp_path


def settings(name="Teacher", **more):
    return {"kind": "custom", "path": f"teachers:{name}", **more}


def test_a_teacher_behind_an_api_becomes_a_coupling(root):
    found = taken(root, pairs=120, **settings(settings={"far": 3.0}))
    noise = gaussian_noise(7, np.arange(120), (2,))
    assert torch.equal(found.source, noise)
    assert torch.equal(found.target, noise + torch.tensor([3.0, -1.0]))
    assert found.label.tolist() == [i % 3 for i in range(120)]
    assert open_coupling(root / "out").about.origin["settings"] == {"far": 3.0}


@pytest.mark.parametrize(
    "text", ["processes:1", "dask:1", pytest.param("ray:1", marks=pytest.mark.long)]
)
def test_workers_make_the_same_bytes(root, text):
    if text != "processes:1":
        pytest.importorskip({"dask:1": "distributed"}.get(text, "ray"))
    taken(root, pairs=120, **settings())
    work = Work(scratch=root / "w", executor=Executor.parse(text))
    taken(root, name="others", pairs=120, work=work, **settings())
    for file in (root / "out").iterdir():
        assert file.read_bytes() == (root / "others" / file.name).read_bytes()


def test_params_yaml_names_it_and_inputs_watch_it():
    assert own.named({"couplings": {"t": {"import": settings()}}}) == {"teachers:Teacher"}


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("Drifts", "another one without pair 0 beside it"),
        ("Wrong", "must give tensors target and source"),
        ("Breaks", "the API said no"),
    ],
)
def test_a_class_that_does_not_do_its_part(root, name, says):
    with pytest.raises(ReflowError, match=says) as error:
        taken(root, pairs=10, **settings(name))
    assert "\n" not in str(error.value)


def test_how_many_must_be_said(root):
    with pytest.raises(ReflowError, match="give `pairs`"):
        taken(root, **settings())


def test_another_class_is_refused_before_it_is_called(root):
    with pytest.raises(ValueError, match="no subclass"):
        taken(root, pairs=10, **settings("Other"))
