"""Every setting is described; the page and the schema are current, and the schema is right."""

import json
from pathlib import Path

import jsonschema
import pytest
from prefect.utilities.callables import parameter_schema
from ruamel.yaml import YAML

from flows.deploy.order import Order
from flows.params import reference, schema
from flows.params.fields import descriptions, sections
from flows.params.load import Params, load
from flows.params.reference import find
from flows.project.meaning import meaning
from fmcore.settings import ReflowError, Settings
from fmcore.training.fit import Train

ROOT = Path(__file__).parents[3]
FILES = ["params.yaml", *sorted(f"params/{p.name}" for p in (ROOT / "params").iterdir())]
SCHEMA = json.loads((ROOT / "params.schema.json").read_text())
CHECK = jsonschema.Draft7Validator(SCHEMA)
EVERY = [setting for section in sections() for setting in section.settings]


@pytest.mark.parametrize("section", sections(), ids=lambda s: f"{s.place}:{s.kind}")
def test_every_field_is_described_in_whole_sentences(section):
    for setting in section.settings:
        said = setting.description
        assert said.endswith(".") and 12 <= len(said) <= 250, f"{section.cls.__name__}: {setting}"
        assert said[0] in "`{" or said[0].isupper() or setting.place.endswith(".name"), said


def test_the_walk_comes_to_every_settings_class_of_a_parameter_file():
    known = {section.cls.__name__ for section in sections()}
    defined = {name.rpartition("__")[2] for name in Params.model_json_schema()["$defs"]}
    assert known == {"Params", *defined}  # the classes Custom are told apart by their modules


def test_the_page_is_current():
    said = "run `make settings`"
    assert (ROOT / "docs" / "settings.md").read_text() == reference.page(), said


def test_the_schema_is_current():
    jsonschema.Draft7Validator.check_schema(SCHEMA)
    assert schema.schema() == SCHEMA, "run `make settings`"


def test_the_examples_of_the_page_make_a_whole_parameter_file(tmp_path):
    assert set(reference.EXAMPLES) == set(Params.model_fields)
    file = tmp_path / "params.yaml"
    file.write_text("\n".join(reference.EXAMPLES.values()))
    assert load(file).without_gpu is not None
    CHECK.validate(YAML(typ="safe").load(file))


def test_a_setting_has_its_value_bounds_and_default():
    (lr,) = find("train.lr")
    assert lr.place == "rounds.<round>.train.lr" and "AdamW" in lr.description
    assert (lr.holds, lr.bounds, lr.default) == ("number", "> 0, <= 10000", "0.001")
    defaults = {s.place: s.default for s in EVERY if not s.kind}
    assert defaults["rounds.<round>.train.steps"] == ""
    assert defaults["evaluate.solver"] == "{name: heun, steps: 32}"
    assert defaults["gates.noise_z"] == "{warn: 4, fail: 6}"
    assert defaults["evaluate.nfe"] == "[1, 2, 4, 8, 16, 32, 64]"


@pytest.mark.parametrize(
    ("key", "places"),
    [
        ("rounds.rf2.train.lr", {"rounds.<round>.train.lr"}),
        ("lr", {"rounds.<round>.train.lr", "yardstick.features.lr"}
         | {"data.codec.lr", "source.codec.lr"}),
        ("u_shaped", {"rounds.<round>.train.time.name", "rounds.<round>.train.time.rate"}),
        ("time.grid.steps", {"rounds.<round>.train.time.steps"}),
        ("gates.noise_z", {"gates.noise_z", "gates.noise_z.warn", "gates.noise_z.fail"}),
        ("compute", {"compute", *(f"compute.{n}" for n in ("device", "threads", "precision"))}
         | {f"compute.{n}" for n in ("compile", "channels_last", "cuda_graphs")}),
        ("", {s.place for s in EVERY}),
    ],
)  # fmt: skip
def test_a_key_finds_its_settings(key, places):
    assert {s.place for s in find(key)} == places


def test_a_section_brings_all_below_it():
    places = {s.place for s in find("rounds.rf2.train")}
    assert {f"rounds.<round>.train.{name}" for name in Train.model_fields} < places
    assert "rounds.<round>.train.loss.c" in places and "rounds.<round>.init" not in places


@pytest.mark.parametrize(("key", "close"), [("lrr", "lr"), ("trian.lr", "train.lr")])
def test_an_unknown_key_gets_close_matches(key, close):
    with pytest.raises(ReflowError, match=rf"no setting '{key}'; did you mean {close}\b"):
        find(key)


def test_a_base_describes_its_fields_and_a_class_may_describe_them_anew():
    class Base(Settings):
        a: int
        """From the base."""
        b: int = 0
        """Also."""

    class Below(Base):
        b: int = 1
        """Of its own."""

    assert descriptions(Below) == {"a": "From the base.", "b": "Of its own."}
    assert descriptions(Train)["lr"].startswith("Peak learning rate of AdamW")


def test_descriptions_are_no_code():
    import ast

    source = (ROOT / "fmcore" / "training" / "fit.py").read_text()
    other = source.replace("Peak learning rate", "Another word")
    assert other != source and meaning(ast.parse(other)) == meaning(ast.parse(source))


@pytest.mark.parametrize("file", FILES)
def test_the_parameter_files_are_right_by_the_schema_and_name_it(file):
    text = (ROOT / file).read_text()
    CHECK.validate(YAML(typ="safe").load(text))
    line = text.splitlines()[0]
    path = line.removeprefix("# yaml-language-server: $schema=")
    assert path != line and (ROOT / file).parent.joinpath(path).samefile(ROOT / schema.FILE)


GOOD = (ROOT / "params.yaml").read_text()
GOOD = GOOD.replace("time: {name: beta, a: 1.5, b: 0.5}", "time: u_shaped")
ALIKE = [
    ("lr: 1.0e-3", "lr: 1e-3"),
    ("lr: 1.0e-3", "lr: 1"),
    ("time: u_shaped", "time: {name: u_shaped, rate: 3}"),
    ("time: u_shaped", "time: {name: grid, steps: 4}"),
    ("steps: 5000,", "steps: 5000, pairing: sinkhorn,"),
    ("network: {width: 320", "network: {name: residual_mlp, width: 320"),
    ("solver: {name: heun, steps: 32}", "solver: {steps: 32}"),
    ("name: ab4, steps: 23, shift: 0.5", "name: dopri5, rtol: 1e-6"),
    ("warn: 0.1, fail: null", "warn: 0.1, fail: 1"),
    ("{name: digits}", "{name: digits, scale: standardise}"),
    ("{name: digits}", "{name: digits, scale: {mean: 500, std: [30]}}"),
    ("pairs: 30000", "pairs: 30000, mix: {generated: 0.5, inverted: 0.5}"),
]
MISTAKES = [
    ("seed: 0", "seed: -1"),
    ("seed: 0", "sede: 0"),
    ("seed: 0", "seed: 0.5"),
    ("lr: 1.0e-3", "lr: fast"),
    ("lr: 1.0e-3", "lr: 0"),
    ("lr: 1.0e-3", "rl: 1.0e-3"),
    ("batch: 256", "batch: true"),
    ("steps: 5000, ", ""),
    ("time: u_shaped", "time: u_shape"),
    ("time: u_shaped", "time: grid"),
    ("time: u_shaped", "time: {rate: 4}"),
    ("time: u_shaped", "time: {name: beta, rate: 4}"),
    ("data: {name: digits}", "data: digits"),
    ("data: {name: digits}", "data: {}"),
    ("data: {name: digits}", "data: {name: digits, scale: affine}"),
    ("data: {name: digits}", "data: {name: digits, scale: {mean: 1}}"),
    ("data: {name: digits}", "data: {name: digits, scale: {mean: 1, std: 0}}"),
    ("data: {name: digits}", ""),
    ("nfe: [1, 2, 4, 8, 16, 32, 64]", "nfe: [0]"),
    ("nfe: [1, 2, 4, 8, 16, 32, 64]", "nfe: []"),
    ("solver: {name: heun, steps: 32}", "solver: heun"),
    ("name: ab4, steps: 23, shift: 0.5", "steps: 18"),
    ("name: ab4, steps: 23, shift: 0.5", "name: dopri5, steps: 18"),
    ("  rf2:\n", "  RF2:\n"),
    ("  rf2:\n", "  scratch:\n"),
    ("device: auto", "device: gpu"),
    ("noise_z:", "noise:"),
    ("pairs: 30000", "pairs: 30000, mix: {real: 1}"),
]


@pytest.mark.parametrize(("before", "after"), ALIKE)
def test_the_schema_takes_what_the_check_takes(tmp_path, before, after):
    assert before in GOOD
    file = tmp_path / "params.yaml"
    file.write_text(GOOD.replace(before, after, 1))
    load(file)
    CHECK.validate(YAML(typ="safe").load(file))


@pytest.mark.parametrize(("before", "after"), MISTAKES)
def test_the_schema_refuses_what_the_check_refuses(tmp_path, before, after):
    assert before in GOOD
    file = tmp_path / "params.yaml"
    file.write_text(GOOD.replace(before, after, 1))
    with pytest.raises(ReflowError):
        load(file)
    assert not CHECK.is_valid(YAML(typ="safe").load(file))


def test_the_schema_describes_every_key():
    assert SCHEMA["properties"]["seed"]["description"].startswith("Seed of every random draw")
    for name, shape in SCHEMA["$defs"].items():
        for key, node in shape["properties"].items():
            assert node["description"].endswith("."), (name, key)


def test_the_form_of_prefect_shows_what_can_be_overridden():
    def flow(order: Order = Order()) -> None:  # noqa: B008  as the flow has it
        ...

    form = parameter_schema(flow).model_dump()["definitions"]["Order"]["properties"]
    assert all(node["description"].endswith(".") for node in form.values())
    said = form["overrides"]["description"]
    for name in Train.model_fields:
        assert f"\n- `rounds.<round>.train.{name}`: " in said
    assert "reflow settings" in said and "couplings.<coupling>.pairs" in said
