"""Bounds of every number, limits of the YAML, and settings that cannot work together."""

import re
import time
from types import NoneType
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import pytest
from annotated_types import Ge, Gt, Le, Lt
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from ruamel.yaml import YAML

from flows.params import checked
from flows.params.edit import edited
from flows.params.fields import sections
from flows.params.load import load
from fmcore.settings import ReflowError
from tests.flows.params.test_params import GOOD, ROOT

FIELDS = [
    (cls, name) for cls in {s.cls: None for s in sections()} for name in sorted(cls.model_fields)
]
COMPARED_ONLY = {("Array", "low"), ("Array", "high")}
"""Numbers that are compared with those of a file and enter no calculation."""


def numbers(hint: Any, bounds: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Return the bounds of every int and float within a type."""
    if get_origin(hint) is Annotated:
        inner, *extra = get_args(hint)
        own = [m for e in extra for m in (e.metadata if isinstance(e, FieldInfo) else [e])]
        return numbers(inner, (*bounds, *own))
    if hint in (int, float):
        return [bounds]
    if hint in (Any, NoneType, bool, str) or get_origin(hint) is Literal:
        return []
    if isinstance(hint, type) and issubclass(hint, BaseModel):
        return []  # it has fields of its own
    assert get_args(hint), f"{hint}: a type that this test does not know"
    parts = [part for part in get_args(hint) if part is not ...]
    above = bounds if NoneType in parts else ()
    return [found for part in parts for found in numbers(part, above)]


@pytest.mark.parametrize(("cls", "name"), FIELDS, ids=lambda v: getattr(v, "__name__", v))
def test_every_number_of_every_settings_class_has_two_bounds(cls, name):
    if (cls.__name__, name) in COMPARED_ONLY:
        return
    info = cls.model_fields[name]
    hint = get_type_hints(cls, include_extras=True)[name]
    for found in numbers(hint, tuple(info.metadata)):
        low = [m.gt if isinstance(m, Gt) else m.ge for m in found if isinstance(m, Gt | Ge)]
        high = [m.lt if isinstance(m, Lt) else m.le for m in found if isinstance(m, Lt | Le)]
        assert low and high, f"{cls.__name__}.{name} has no two bounds"
        assert abs(low[-1]) < 1e20 and abs(high[-1]) < 1e20


def test_a_field_without_a_bound_is_found():
    assert numbers(int) == [()] and numbers(list[float] | None) == [()]
    assert numbers(Annotated[int, Gt(0)] | None) == [(Gt(0),)]


def said_of(tmp_path, *changes, text=GOOD):
    """Return what is said of params.yaml after these changes, and check that it is in lines."""
    path = tmp_path / "params.yaml"
    for before, after in changes:
        assert before in text
        text = text.replace(before, after, 1)
    path.write_text(text)
    start = time.perf_counter()
    with pytest.raises(ReflowError) as error:
        load(path)
    assert time.perf_counter() - start < 2
    lines = str(error.value).splitlines()
    assert lines and all(line.startswith("params.yaml") for line in lines)
    assert max(map(len, lines)) < 400
    return str(error.value)


LONG = "x" * 300
TOO_MUCH = [
    ("steps: 4000", "steps: 1" + "0" * 59, r"rf2.train.steps: .*below 2\^63"),
    ("steps: 4000", "steps: 10000000000", "rf2.train.steps: .*at most 1000000000"),
    ("width: 320", "width: 9223372036854775808", r"network.width: .*below 2\^63"),
    ("width: 320", "width: 10000000", "network.width: .*at most 100000"),
    ("depth: 3", "depth: 1000000000", "network.depth: .*at most 1000"),
    ("width: 320, depth: 3", "width: 100000, depth: 900", "network: the network would have about"),
    ("lr: 1.0e-3", "lr: 1.0e+308", "rf1.train.lr: .*at most 10000"),
    ("lr: 1.0e-3", "lr: 1.0e+999", "rf1.train.lr: .*finite"),
    ("batch: 256", f"batch: {2**70}", r"rf1.train.batch: .*below 2\^63"),
    ("nfe: [1,", f"nfe: [{2**70},", r"evaluate.nfe.0: .*below 2\^63"),
    ("nfe: [1,", "nfe: [1000000,", "evaluate.nfe.0: .*at most 100000"),
    ("threads: 2", "threads: 1000000", "compute.threads: .*at most 1024"),
    ("batch: 256", "batch: 256, processes: 1000000", "train.processes: .*at most 1024"),
    ("samples: 898", "samples: 100000000000", "yardstick.samples: .*at most 1000000000"),
    ("seed: 0", "seed: " + "9" * 5000, "params.yaml:4: a value of 5000 characters"),
    ("seed: 0", "seed: " + "9" * 4090, r"params.yaml:4: seed: .*below 2\^63"),
    ("seed: 0", "seed: 9223372036854775808", r"params.yaml:4: seed: .*below 2\^63"),
    ("\n  rf2:", f"\n  {LONG}:", "a name is lower-case letters, digits and _, 64 at most"),
    ("{round: rf1,", f"{{round: {LONG},", "couplings.rf1.round: no round 'xxx"),
    ("warn: 4, fail: 6", "warn: 4, fail: 1.0e+30", "gates.noise_z.fail: .*at most"),
]


@pytest.mark.parametrize(("before", "after", "message"), TOO_MUCH)
def test_what_no_machine_can_run_is_refused(tmp_path, before, after, message):
    said = said_of(tmp_path, (before, after))
    assert re.search(message, said), said


BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 12)
)
SHAPES = [
    (BOMB + GOOD, "more than 50000 values, aliases written out"),
    (GOOD + "deep: " + "[" * 500 + "]" * 500 + "\n", "nested more than 32 deep"),
    (GOOD + "deep: " + "{a: " * 500 + "1" + "}" * 500 + "\n", "nested more than 32 deep"),
    (GOOD + "self: &s [*s]\n", r"\*s is part of itself"),
    (GOOD + "#" + "x" * 300_000, "larger than 256 KiB"),
    (GOOD.replace("seed: 0", "seed: 2020-13-45"), "a value cannot be read|seed"),
    (GOOD.replace("seed: 0", "seed: 2020-01-02"), "seed: expected a number or a text, got a"),
    (GOOD.replace("seed: 0", "? [seed]\n: 0"), "params.yaml:"),
    (GOOD.replace("seed: 0", 'seed: "a\\0b"'), "seed: has a character that cannot be printed"),
    (GOOD.replace("  rf2:", "  2:"), "rounds.2: a key is a text, got 2"),
]


@pytest.mark.parametrize(("text", "message"), SHAPES, ids=[message for _, message in SHAPES])
def test_a_strange_file_gets_one_line_at_once(tmp_path, text, message):
    assert re.search(message, said_of(tmp_path, text=text))
    assert checked._named(tmp_path / "params.yaml") == set()


def test_bytes_that_are_no_text_and_folders_get_one_line(tmp_path):
    path = tmp_path / "params.yaml"
    path.write_bytes(b"\xff\xfe\x00seed: 0")
    with pytest.raises(ReflowError, match="cannot be read \\(not UTF-8 text\\)"):
        load(path)


SECTIONS = [
    "data", "network", "compute", "yardstick", "evaluate", "gates", "rounds", "couplings",
]  # fmt: skip


OTHERS = [pytest.param(v, marks=pytest.mark.long) for v in ("[1]", "3", "true", "[[]]", "null")]


PIECES = ("steps: 23, shift: 0.5}", "steps: 24}, store: {pieces: 4}")
"""A coupling that keeps the ends of four pieces."""

MEANT = {("evaluate", "sde", "[]"), ("couplings", "solver", "null")}
"""What stands for a section: no reverse SDE, the solver that suits the interpolant."""


@pytest.mark.parametrize("value", ["[]", "x", *OTHERS])
def test_a_list_or_a_text_where_a_section_belongs(tmp_path, value):
    tree = YAML(typ="safe").load(GOOD)
    places = [(name,) for name in SECTIONS] + [
        ("evaluate", "solver"), ("evaluate", "sde"), ("yardstick", "features"), ("rounds", "rf1"),
        ("rounds", "rf1", "train"), ("rounds", "rf1", "train", "time"), ("couplings", "rf1"),
        ("rounds", "rf1", "train", "loss"), ("rounds", "rf1", "train", "interpolant"),
        ("rounds", "rf1", "train", "pairing"), ("couplings", "rf1", "solver"),
        ("couplings", "rf1", "mix"), ("gates", "noise_z"),
    ]  # fmt: skip
    for place in places:
        if (place[0], place[-1], value) in MEANT:
            continue
        at, name = tree, ".".join(place)
        for key in place[:-1]:
            at = at[key]
        before, at[place[-1]] = at.get(place[-1]), YAML(typ="safe").load(value)
        text = edited(GOOD, {name: at[place[-1]]})
        if before is None:
            del at[place[-1]]
        else:
            at[place[-1]] = before
        said = said_of(tmp_path, text=text)
        assert name in said and said.splitlines()[0].split(":")[1].isdigit(), said


def test_overrides_are_read_by_the_same_rules():
    nested: Any = 1
    for _ in range(500):
        nested = [nested]
    for value in (nested, 10**5000, {"a": {1: 2}}):
        with pytest.raises(ReflowError, match=r"overrides: data.name") as error:
            edited(GOOD, {"data.name": value})
        assert len(str(error.value)) < 300 and "\n" not in str(error.value)


UNET = ("network: {width: 320, depth: 3, time_features: 64}", "network: {name: unet}")
AGAIN = "{round: rf2, pairs: 10, guidance: 3.0}"
MLP = "network: {width: 320, depth: 3, time_features: 64}"
MOONS = ("data: {name: digits}", "data: {name: two_moons}")
VECTORS = [MOONS, ("kind: classifier, epochs: 30", "kind: identity")]
IMPOSSIBLE = [
    ([*VECTORS, UNET], "network: .*unet: needs images .*samples here are \\[2\\]"),
    ([*VECTORS, (MLP, "network: {name: dit}")], "network: .*dit: needs images"),
    ([MOONS], "features.kind: classifier needs images with labels, this data has none"),
    ([MOONS, ("kind: classifier", "kind: lite0")], "kind: lite0 needs images"),
    ([("kind: classifier", "kind: inception")], "weights: inception needs the path"),
    (
        [("data: {name: digits}", "data: {name: emoji}")],
        "kind: classifier needs images with labels.*use lite0 or identity",
    ),
    (
        [(MLP, "network: {name: unet, channels: [8, 8, 8, 8, 8]}")],
        "network: network.channels: 5 levels halve the image 4 times, and 8 x 8",
    ),
    (
        [(MLP, "network: {name: dit, patch: 3}")],
        "network: network.patch: 3 does not divide the image, 8 x 8",
    ),
    ([(MLP, "network: {name: dit, heads: 3, head: 2}")], "heads times head is 6, expected a"),
    ([(MLP, "network: {name: unet, channels: [4, 8], head: 9}")], "head 9 is above the 8 channels"),
    ([(MLP, "network: {name: unet, attend: [2]}")], "attend: no level 2, channels has 2"),
    ([(MLP, "network: {classes: 4}")], "network.classes: 4 is below the 10 classes"),
    ([*VECTORS, (MLP, "network: {classes: 4}")], "network.classes: this data has no labels"),
    ([("steps: 4000", "steps: 4000, map: shortcut")], "train.map: shortcut is a rule of objective"),
    (
        [("steps: 4000", "steps: 4000, objective: mean_flow, map: lagrangian, spans: 1")],
        "rf2.train.spans: 1 leaves no rows without a span",
    ),
    (
        [("steps: 4000", "steps: 4000, objective: mean_flow, map: consistency, spans: 0")],
        "rf2.train.spans: 0 leaves consistency no span",
    ),
    (
        [("steps: 4000", "steps: 4000, objective: mean_flow"), ("u_shaped", "point")],
        "rf2.train.time: point leaves no spans",
    ),
    ([("steps: 5000", "steps: 5000, time: point")], "rf1.train.time: point makes a student"),
    ([("steps: 5000", "steps: 5000, time: {name: grid, steps: 2}")], "rf1.train.time: grid makes"),
    ([*VECTORS, ("steps: 4000", "steps: 4000, flip: true")], "rf2.train.flip: mirrors images"),
    ([("batch: 256", "batch: 256, processes: 3")], "rf1.train.batch: 256 has no 3 equal parts"),
    ([("batch: 256", "batch: 256, accumulate: 257")], "rf1.train.accumulate: 256 pairs of a"),
    ([("steps: 5000", "steps: 5000, objective: mean_flow, recompute: true")], "forward, which"),
    ([("steps: 4000", "steps: 4000, label_dropout: 0.2")], "label_dropout: there are no labels"),
    ([("pairs: 30000", "pairs: 30000, guidance: 2.0")], "guidance needs classes"),
    (
        [
            ("pairs: 30000", "pairs: 30000, guidance: 2.0"),
            (MLP, "network: {classes: 10}"),
            ("steps: 5000", "steps: 5000, label_dropout: 0"),
        ],
        "couplings.rf1.guidance: guidance needs rounds.rf1.train.label_dropout above 0",
    ),
    (
        [
            ("pairs: 30000", "pairs: 30000, guidance: 2.0"),
            (MLP, "network: {classes: 10}"),
            ("  rf1: {round: rf1,", f"  s: {AGAIN}\n  rf1: {{round: rf1,"),
        ],
        "couplings.s.guidance: round 'rf2' has guidance 2 in its velocity, by"
        " couplings.rf1.guidance, and would be guided twice",
    ),
    ([(MOONS[0], "data: {name: two_moons, samples: 3}"), VECTORS[1]], "samples: 3 cannot be cut"),
    ([("steps: 5000", "steps: 5000, pieces: 2")], "rf1.train.pieces: independent pairs have no"),
    ([("steps: 4000", "steps: 4000, pieces: 2")], "train.pieces: coupling 'rf1' keeps the ends"),
    ([PIECES, ("steps: 4000", "steps: 4000, pieces: 3")], "4 pieces, which cannot be joined to 3"),
    ([PIECES, ("steps: 4000", "steps: 4000, pieces: 4"), ("u_shaped", "point")], "do not begin"),
    (
        [("{name: ab4, steps: 23, shift: 0.5}", "{name: auto}, store: {pieces: 4}")],
        "couplings.rf1.solver: auto chooses a grid that need not stop",
    ),
    (
        [("steps: 23, shift: 0.5}", "steps: 23, shift: 0.5}, store: {pieces: 4}")],
        "rf1.store.pieces: 4 keeps states at multiples of 1/4, and the solver does not stop at",
    ),
    (
        [("  rf1: {round: rf1,", "  s: {round: rf2, pairs: 10}\n  rf1: {round: rf1,"),
         ("u_shaped", "{name: grid, steps: 4}")],
        "couplings.s.solver: round 'rf2' is a student of 4 Euler steps",
    ),
    (
        [("steps: 5000", "steps: 5000, pairing: optimal"),
         ("nfe: [1,", "sde: [{}]\n  nfe: [1,")],
        "evaluate.sde: no round has a score",
    ),
    (
        [("steps: 5000", "steps: 5000, loss: {name: pseudo_huber}"),
         ("nfe: [1,", "sde: [{}]\n  nfe: [1,")],
        "evaluate.sde: no round has a score: .* loss that learns the mean",
    ),
    (
        [*VECTORS, ("pairs: 30000", "pairs: 30000, store: {source: false}"),
         ("seed: 0", "seed: 0\nsource: {name: two_moons}")],
        "couplings.rf1.store.source: false needs noise",
    ),
    (
        [*VECTORS, ("seed: 0", "seed: 0\nsource: {name: two_moons, conditions: {}}")],
        "source.conditions: conditions are of targets",
    ),
    (
        [("pairs: 30000", "pairs: 30000, mix: {inverted: 1.0}, store: {source: false}")],
        "couplings.rf1.store.source: false needs generated pairs",
    ),
    (
        [*VECTORS, ("pairs: 30000", "pairs: 30000, store: {target: uint8}")],
        "couplings.rf1.store.target: uint8 needs the range of this data",
    ),
    ([("pairs: 30000", "pairs: 30000, store: {target: uint8, low: 0.0}")], "give both low and hi"),
    (
        [*VECTORS, ("{name: pseudo_huber}", "{name: perceptual}")],
        "rf2.train.loss: perceptual compares images, and this data has none",
    ),
    (
        [("steps: 4000", "steps: 4000, objective: noise"),
         ("{name: pseudo_huber}", "{name: perceptual}")],
        "rf2.train.loss: perceptual needs the target that is predicted",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "message"), IMPOSSIBLE, ids=[m for _, m in IMPOSSIBLE])
def test_what_cannot_work_together_is_refused_before_any_stage(tmp_path, changes, message):
    assert re.search(message, said_of(tmp_path, *changes))


def test_a_student_may_make_pairs_on_its_own_grid(tmp_path):
    path = tmp_path / "params.yaml"
    text = GOOD.replace("u_shaped", "{name: grid, steps: 4}").replace("steps: 32", "steps: 8")
    path.write_text(f"{text}  s: {{round: rf2, pairs: 10, solver: {{name: euler, steps: 2}}}}\n")
    assert load(path).couplings["s"].solver.steps == 2


@pytest.mark.parametrize("file", sorted((ROOT / "params").glob("*.yaml")), ids=lambda f: f.stem)
def test_what_data_sets_say_of_themselves_is_true(file):
    """Those that need no files of the user's are read."""
    data = load(file).data
    if data.name in ("images", "array", "cifar10", "fashion_mnist", "emoji", "mnist_5k"):
        return
    known, found = data.known(), data.read(0)
    assert known.shape == tuple(found.target.shape[1:]) and known.image == found.image
    assert known.samples == len(found.target)
    assert known.classes == (0 if found.label is None else int(found.label.max()) + 1)
