"""Data is known by its content, a yardstick by all that changes a distance, nothing else."""

import hashlib
import json

import pytest

from flows.dag.chain import Chain, Round, flat
from flows.dag.identity import data_key, whole_chain, yardstick_key
from flows.dag.lock import Entry, File
from fmcore.settings import ReflowError
from fmcore.verdict.comparison import Comparison

DATA = {"name": "array", "path": "x.npy"}
MEASURED = {"seed": 0, "yardstick": {"samples": 500}}


@pytest.fixture
def recorded(tmp_path):
    """Write what the stage `inputs` records; return a stage that depends on it."""

    def entry(verb, words, settings, **known):
        text = json.dumps({"code": {}, "own": {}, "files": {}, **known})
        path = f"inputs/{verb}.json"
        (tmp_path / "inputs").mkdir(exist_ok=True)
        (tmp_path / path).write_text(text)
        md5 = hashlib.md5(text.encode(), usedforsecurity=False).hexdigest()
        cmd = f"python -m flows.stage {verb} {words}"
        return Entry(cmd, {path: File(md5)}, {}, {"params.yaml": settings}, "")

    return entry


@pytest.fixture
def keys(tmp_path, recorded):
    """Return the keys of the data and of the yardstick of a chain."""

    def both(*, data=DATA, content="1", settings=MEASURED, evaluate=None, code="a", features="f"):
        known = {"data.path": {"sha256": content}}
        prepare = recorded("prepare", "out=couplings/independent", {"data": data}, files=known)
        scored = recorded("evaluate", "rf1 out=p", {"evaluate": evaluate or {}}, code={"m": code})
        round_ = Round("rf1", 1, "k", None, scored, {})
        whole = Chain("k", "array", "k", settings, [round_], None, {"prepare": prepare})
        found = Comparison("fd", features, 0.1, [], {}, [], [])
        return data_key(tmp_path, whole), yardstick_key(tmp_path, whole, round_, found)

    return both


def test_the_place_of_a_file_does_not_matter_and_its_content_does(keys):
    same = keys(data={**DATA, "path": "elsewhere/y.npy"})
    assert same == keys()
    for other in (keys(content="2"), keys(data={**DATA, "limit": 5})):
        assert other[0] != same[0] and other[1] != same[1]


def test_the_place_of_a_codec_or_a_source_does_not_matter_and_its_content_does(tmp_path, recorded):
    def key(codec="vae", source="s", content="1"):
        data = {**DATA, "codec": {"name": "diffusers", "path": codec}}
        known = {"data.path": "x", "data.codec.path": content, "source.root": content}
        prepare = recorded(
            "prepare", "out=c", {"data": data}, files=known,
            source={"name": "images", "root": source},
        )  # fmt: skip
        whole = Chain("k", "array", "k", {}, [], None, {"prepare": prepare})
        return data_key(tmp_path, whole)

    assert key(codec="other/vae") == key() == key(source="elsewhere")
    assert key(content="2") != key()


@pytest.mark.parametrize(
    "change",
    [
        {"settings": {**MEASURED, "seed": 1}},
        {"settings": {**MEASURED, "yardstick": {"samples": 50}}},
        {"evaluate": {"guidance": 2.0}},
        {"code": "b"},
        {"features": "g"},
    ],
)
def test_what_changes_a_distance_is_another_yardstick_on_the_same_data(keys, change):
    assert keys(**change)[0] == keys()[0]
    assert keys(**change)[1] != keys()[1]


def test_what_does_not_change_a_distance_is_the_same_yardstick(keys):
    assert keys(evaluate={"nfe": [1, 2], "trajectories": 9}) == keys(evaluate={"nfe": [1]})


def test_a_record_that_is_gone_is_one_line(tmp_path, recorded, monkeypatch):
    from flows.dag import identity

    prepare = recorded("prepare", "out=c", {"data": DATA})
    (tmp_path / "inputs/prepare.json").write_text("another")
    monkeypatch.setattr(identity, "cached_object", lambda *_: None)
    whole = Chain("k", "array", "k", {}, [], None, {"prepare": prepare})
    with pytest.raises(
        ReflowError, match=r"inputs/prepare\.json: the record of prepare is missing"
    ):
        data_key(tmp_path, whole)


def test_the_source_is_among_the_settings_of_a_chain_as_mlflow_and_pages_show_them(
    tmp_path, recorded
):
    """It is no parameter of a stage; the stage `inputs` records it."""
    words, source = "out=couplings/independent", {"name": "two_moons", "samples": "500"}
    given = recorded("prepare", words, {"data": DATA}, source=source)
    found = whole_chain(tmp_path, {"prepare": given}, {})
    assert flat(found.settings) == {
        "data.name": "array",
        "data.path": "x.npy",
        "source.name": "two_moons",
        "source.samples": "500",
    }
    noise = recorded("prepare", words, {"data": DATA})
    assert "source" not in whole_chain(tmp_path, {"prepare": noise}, {}).settings
    assert "source" not in whole_chain(tmp_path, {"prepare": given}, {}).settings  # replaced
