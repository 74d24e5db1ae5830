"""Labels against `network.classes`, and the names of classes from the data to the samples."""

import json

import pytest
import torch

from fmcore.couple import Couple, couple
from fmcore.coupling.read import open_coupling
from fmcore.coupling.write import About, finish, table, write_shard
from fmcore.dataset.samples import Data, Samples
from fmcore.initialise import initialise
from fmcore.network.build import build
from fmcore.network.mlp import MLP
from fmcore.network.store import load, save
from fmcore.prepare import prepare
from fmcore.settings import ReflowError
from fmcore.solve.solver import Solver
from fmcore.tensors import fit_flow, independent
from fmcore.train import Train, train
from fmcore.work.work import Work

NAMES = ("cat", "dog", "newt")


class Pets(Data):
    """Three classes with names, at -2, 0 and 2, in units of a hundred."""

    def read(self, seed: int) -> Samples:
        label = torch.arange(90) % 3
        x = 200.0 * (label[:, None] - 1) + torch.randn(90, 2, generator=torch.Generator())
        return Samples(x, label, image=False, names=NAMES)


def network(classes):
    return MLP(width=16, depth=1, time_features=4, classes=classes)


def labelled(folder, label):
    """Write an independent coupling with these labels."""
    n = 30 if label is None else len(label)
    about = About(kind="independent", shape=[2], pairs=n, seed=0)
    given = None if label is None else torch.tensor(label)
    write_shard(folder, 0, table(about, torch.arange(n).numpy(), torch.zeros(n, 2), label=given))
    finish(folder, about, 1)
    return folder


BAD = [
    ([0, 1, 2] * 9, 2, "labels 0 to 2: 2 is the null class of guidance; set network.classes: 3"),
    ([1, 2, 3] * 9, 3, "labels 1 to 3: 3 is the null class of guidance; number them from 0"),
    ([0, 4] * 9, 2, "labels 0 to 4: 4 is beyond; set network.classes: 5"),
    (None, 3, "has no labels; set network.classes: 0"),
]


@pytest.mark.parametrize(("label", "classes", "says"), BAD)
def test_labels_that_do_not_suit_the_network_stop_before_anything_trains(
    tmp_path, label, classes, says
):
    data = labelled(tmp_path / "data", label)
    with pytest.raises(ReflowError, match=says) as error:
        initialise(data, tmp_path / "scratch", network(classes), seed=0)
    assert "\n" not in str(error.value) and not (tmp_path / "scratch").exists()
    save(tmp_path / "init", build(network(classes), (2,), seed=0), about={})
    with pytest.raises(ReflowError, match=says):
        train(
            data, tmp_path / "init", tmp_path / "m", tmp_path / "c.csv", tmp_path / "m.json",
            Train(steps=1), name="rf1", work=Work(scratch=tmp_path / "tmp"),
        )  # fmt: skip
    assert not (tmp_path / "m").exists()
    given = None if label is None else torch.tensor(label)
    pairs = independent(torch.zeros(30 if label is None else len(label), 2), given)
    with pytest.raises(ReflowError, match=says):
        fit_flow(pairs, Train(steps=1), network=network(classes))


@pytest.mark.parametrize(("label", "classes"), [([0, 1, 2] * 9, 0), ([0, 1] * 9, 2), (None, 0)])
def test_labels_that_suit_are_accepted(tmp_path, label, classes):
    initialise(labelled(tmp_path / "data", label), tmp_path / "s", network(classes), seed=0)
    assert (tmp_path / "s" / "config.json").exists()


def test_guidance_without_labels_is_refused_and_not_ignored(tmp_path):
    data = labelled(tmp_path / "data", None)
    save(tmp_path / "m", build(network(2), (2,), seed=0), about={})
    with pytest.raises(ReflowError, match="has no labels"):
        couple(
            tmp_path / "m", data, tmp_path / "p", tmp_path / "p.json",
            Couple(pairs=8, guidance=2.0), Work(scratch=tmp_path / "tmp"),
        )  # fmt: skip


@pytest.fixture(scope="module")
def pets(tmp_path_factory):
    """The folder of a model of three named classes in units of a hundred, its data and pairs."""
    root = tmp_path_factory.mktemp("pets")
    law = Pets.model_validate({"scale": "standardise"})
    prepare(root / "data", law, seed=0)
    initialise(root / "data", root / "scratch", network(3), seed=0)
    work = Work(scratch=root / "tmp")
    train(
        root / "data", root / "scratch", root / "rf1", root / "c.csv", root / "t.json",
        Train(steps=150, batch=90, lr=2e-2, warmup=5, ema=0.9), name="rf1", work=work,
    )  # fmt: skip
    couple(root / "rf1", root / "data", root / "pairs", root / "p.json",
           Couple(pairs=20, solver=Solver(steps=4)), work)  # fmt: skip
    return root


def test_the_names_of_classes_go_with_the_coupling_and_the_model(pets):
    for name in ("data", "pairs"):
        assert open_coupling(pets / name).about.classes == list(NAMES)
    for name in ("scratch", "rf1"):
        assert json.loads((pets / name / "config.json").read_text())["classes"] == list(NAMES)


def test_a_class_has_a_name_or_a_number(pets):
    model = load(pets / "rf1")
    assert [model.label(name) for name in NAMES] == [0, 1, 2] == [model.label(i) for i in range(3)]
    assert model.label("2") == 2
    for wrong in ("fish", 3, "3", -1, "-1", ""):
        with pytest.raises(ReflowError, match="classes 0 to 2, called cat, dog, newt"):
            model.label(wrong)


def test_a_name_comes_before_a_number(tmp_path):
    save(tmp_path / "m", build(network(3), (2,), seed=0), about={"classes": ["1", "2", "3"]})
    model = load(tmp_path / "m")
    assert [model.label("1"), model.label("3"), model.label(1)] == [0, 2, 1]


def test_sample_and_the_served_model_take_names_and_give_the_units_of_the_data(pets):
    from types import SimpleNamespace

    from flows.cli.sample import Draw
    from flows.tracking.served import Sampler
    from tests.fmcore.training.test_power_ema import _samples

    context = SimpleNamespace(artifacts={"model": str(pets / "rf1")})
    sampler = Sampler()
    sampler.load_context(context)
    for number, name in enumerate(NAMES):
        x, nfe = _samples(pets / "rf1", pets, Draw(nfe=8, count=40, label=name))
        wanted = Draw(nfe=8, count=40, label=str(number))
        assert nfe == 8 and torch.equal(x, _samples(pets / "rf1", pets, wanted)[0])
        guided = Draw(nfe=2, count=2, label=name, guidance=2.0)
        assert _samples(pets / "rf1", pets, guided)[1] == 4
        assert float(x.mean()) == pytest.approx(200 * (number - 1), abs=80)
        for given in ({"class": name}, {"label": number}):
            served = sampler.predict(context, [], {"count": 40, "nfe": 8, **given})
            torch.testing.assert_close(torch.from_numpy(served), x)
    for wrong in ({"class": "fish"}, {"label": 3}, {"class": "cat", "label": 0}):
        with pytest.raises(ReflowError):
            sampler.predict(context, [], {"count": 2, **wrong})
