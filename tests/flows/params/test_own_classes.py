"""Classes of the user's own in params.yaml: what reruns, what is refused, a chain of them."""

import json
import re
import subprocess

import pytest

from flows.dag import inputs
from flows.deploy.order import Order
from flows.deploy.worktree import settle
from flows.params import checked
from flows.params.load import load
from flows.params.use import use_params
from flows.project import seen
from fmcore import own
from fmcore.settings import ReflowError
from tests.conftest import SOURCE
from tests.own_classes import HARM, MODULE, OTHER, PARAMS
from tests.real_chain import Chain

CLASSES = {
    "Rings": {"prepare", "evaluate/rf1", "evaluate/rf2"},
    "Tiny": {
        "initialise", "train/rf1", "train/rf2", "couple/rf1", "evaluate/rf1", "evaluate/rf2",
    },
    "Absolute": {"train/rf2"},
    "Triangular": {"train/rf2"},
    "Ralston": {"couple/rf1", "evaluate/rf1", "evaluate/rf2"},
    "Polar": {"calibrate", "evaluate/rf1", "evaluate/rf2"},
    "Sine": {"train/rf1", "couple/rf1", "evaluate/rf1"},
}  # fmt: skip
"""The stages whose verbs read each class of `tests.own_classes`."""


@pytest.fixture(autouse=True)
def _nothing_is_trusted(monkeypatch):
    monkeypatch.setattr(own, "_trusted", {})
    monkeypatch.setattr(own, "_used", set())


@pytest.fixture
def project(tmp_path):
    (tmp_path / "my_flows.py").write_text(MODULE)
    (tmp_path / "params.yaml").write_text(PARAMS)
    (tmp_path / "dvc.yaml").write_text((SOURCE / "dvc.yaml").read_text())
    return tmp_path


def changed(root, edit):
    """Return the stages whose file of inputs is another after `edit`."""
    before = inputs.compute(root)
    edit()
    after = inputs.compute(root)
    names = {k for k in {*before, *after} if before.get(k) != after.get(k)}
    return {name.removeprefix("inputs/").removesuffix(".json") for name in names}


def replace(file, old, new):
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new, 1))


@pytest.mark.parametrize("name", CLASSES)
def test_editing_a_class_reruns_the_stages_that_name_it(project, name):
    """All seven share a file."""
    file = project / "my_flows.py"
    head = next(line for line in MODULE.splitlines() if line.startswith(f"class {name}("))
    assert changed(project, lambda: replace(file, head, f"{head}\n    more = 1\n")) == CLASSES[name]
    assert not changed(project, lambda: replace(file, head, f"# About it.\n{head}"))
    docstring = MODULE.split(head)[1].split('"""')[1]
    assert not changed(project, lambda: replace(file, docstring, f"{docstring} More words."))


def test_what_a_class_reaches_in_its_module_and_beside_it_counts(project):
    file = project / "my_flows.py"
    (project / "helper.py").write_text("def root(u):\n    return u.sqrt()\n")
    text = MODULE.replace("import math\n", "import math\nfrom helper import root\n", 1)
    text = text.replace("return u.sqrt()", "return half(u)")
    file.write_text(f"{text}\nPOWER = 0.5\n\n\ndef half(u):\n    return root(u) ** (2 * POWER)\n")
    assert changed(project, lambda: replace(file, "2 * POWER", "4 * POWER")) == {"train/rf2"}
    assert changed(project, lambda: replace(file, "POWER = 0.5", "POWER = 0.25")) == {"train/rf2"}
    helper = project / "helper.py"
    assert changed(project, lambda: replace(helper, "u.sqrt()", "u ** 0.5")) == {"train/rf2"}
    every = set().union(*CLASSES.values())
    assert changed(project, lambda: replace(file, "POWER =", "print(1)\nPOWER =")) == every


def test_naming_a_class_in_rf2_leaves_rf1_as_it_is(project):
    plain = PARAMS.replace('time: {name: custom, path: "my_flows:Triangular"}', "time: uniform")
    assert plain != PARAMS
    file = project / "params.yaml"
    file.write_text(plain)
    assert changed(project, lambda: file.write_text(PARAMS)) == {"train/rf2"}


def test_a_file_that_a_class_is_given_is_watched(project):
    (project / "points.csv").write_text("1,2\n")
    file = project / "params.yaml"
    replace(file, "settings: {samples: 300}", 'settings: {samples: 300, file: "points.csv"}')
    prepare = {"prepare", "evaluate/rf1", "evaluate/rf2"}
    edit = (project / "points.csv").write_text
    assert changed(project, lambda: edit("3,4\n")) == prepare
    assert json.loads(inputs.compute(project)["inputs/prepare.json"])["files"].keys() == {
        "data.settings.file"
    }


def refused(project, place, path, says, mark):
    text = PARAMS.replace('"my_flows:Sine"', f'"{path}"')
    (project / "params.yaml").write_text(text)
    for check in (lambda: load(project / "params.yaml"), lambda: checked.check(project)):
        with pytest.raises(ReflowError, match=says) as error:
            check()
        line = str(error.value)
        assert line.startswith("params.yaml:") and place in line and "\n" not in line
        assert not mark.exists()


def test_what_params_name_is_refused_before_anything_of_it_runs(project):
    mark = project / "mark"
    (project / "harm.py").write_text(HARM.format(mark=mark))
    (project / "other.py").write_text(OTHER.format(mark=mark))
    place = "rounds.rf1.train.interpolant: "
    for path, says in (
        ("os:system", "the module 'os' is not the project's"),
        ("harm:function", "no `class function` at its top level"),
        ("harm:system", "no `class system` at its top level"),
        ("other:Other", "other:Other is no subclass of fmcore.matching.interpolant.Schedule"),
        ("nowhere:X", "the project has no nowhere.py"),
    ):
        refused(project, place, path, says, mark)
    (project / "params.yaml").write_text(PARAMS.replace("{width: 8}", "{depth: 8}"))
    with pytest.raises(ReflowError, match=r"params.yaml:5: network: settings.depth: unknown key"):
        load(project / "params.yaml")


def test_a_check_that_is_not_repeated_still_trusts_and_still_sees_an_edit(project, monkeypatch):
    monkeypatch.setattr(seen, "RECENT", -(10**12))  # the files were written a moment ago
    checked.check(project)
    monkeypatch.setattr(own, "_trusted", {})
    monkeypatch.setattr(checked, "_load", lambda _: pytest.fail("it was checked before"))
    checked.check(project)
    assert own._trusted["my_flows:Sine"] == project
    monkeypatch.undo()
    replace(project / "my_flows.py", "return -math.pi / 2 * torch.sin", "return torch.sin")
    with pytest.raises(ReflowError, match="d_alpha is not the derivative of alpha"):
        checked.check(project)


def test_an_order_of_prefect_runs_nothing_that_is_not_the_projects(project):
    mark = project / "mark"
    (project / "harm.py").write_text(HARM.format(mark=mark))
    for path, says in (
        ("os:system", "the module 'os' is not the project's"),
        ("harm:function", "no `class function`"),
    ):
        chosen = {"name": "custom", "path": path}
        for place in ("rounds.rf1.train.interpolant", "network", "data", "yardstick.features"):
            order = Order(overrides={place: chosen})
            with pytest.raises(ReflowError, match=says) as error:
                settle(project, project, order)
            assert place in str(error.value) and "\n" not in str(error.value)
            (project / "params.yaml").write_text(PARAMS)
    assert not mark.exists()


@pytest.mark.slow
@pytest.mark.long
def test_a_chain_of_own_classes_from_the_keyboard_to_mlflow(tmp_path):
    """A project holds params.yaml, dvc.yaml and one module; the packages are installed."""
    chain = Chain(tmp_path / "project")
    chain.root.mkdir()
    for words in (["git", "init", "-q"], ["dvc", "init", "-q"]):
        subprocess.run(words, cwd=chain.root, env=chain.env(), check=True)
    chain.write(".gitignore", "/.reflow/\n/inputs\n")
    chain.write("dvc.yaml", (SOURCE / "dvc.yaml").read_text())
    plain = PARAMS.replace('time: {name: custom, path: "my_flows:Triangular"}', "time: uniform")
    chain.write("params.yaml", plain)
    chain.write("my_flows.py", MODULE)
    chain.commit("start")
    done = chain.reflow("run")
    assert "fd_polar" in done.stdout
    assert set(chain.plan().values()) == {"unchanged"}
    chain.edit("my_flows.py", "class Sine", "# Slow.\nclass Sine")
    chain.edit("my_flows.py", "Density 2 t.", "Density 2 t: late times.")
    assert set(chain.plan().values()) == {"unchanged"}
    first = ("prepare", "initialise", "calibrate", "train@rf1", "couple@rf1", "evaluate@rf1")
    chain.write("params.yaml", PARAMS)
    planned = chain.plan()
    assert planned["train@rf2"] == "run" and planned["evaluate@rf2"] == "downstream"
    assert {planned[name] for name in first} == {"unchanged"}
    chain.edit("my_flows.py", "(first / 4 + 3 / 4 *", "(first / 3 + 2 / 3 *")
    planned = chain.plan()
    assert {planned[name] for name in first[:4]} == {"unchanged"}
    assert {planned[name] for name in ("couple@rf1", "train@rf2", "evaluate@rf1")} == {"run"}
    shown = " ".join(chain.reflow("plan").stdout.split())
    assert "your class my_flows:Ralston changed" in shown
    chain.reflow("sample", "rf2", "samples.npy", "--nfe", "2", "--label", "1")
    assert (chain.root / "samples.npy").exists()
    assert chain.mlflow("print(len(t.client.search_logged_models([t.experiment])))") == "2"


def test_a_parameter_file_from_elsewhere_brings_no_classes(project, tmp_path_factory):
    mark = project / "mark"
    other = tmp_path_factory.mktemp("elsewhere")
    (other / "harm.py").write_text(HARM.format(mark=mark))
    file = other / "params.yaml"
    file.write_text(PARAMS.replace("my_flows:Rings", "harm:function"))
    with pytest.raises(ReflowError, match=r"the project has no harm\.py"):
        use_params(project, file, force=True, whole=True)
    assert not mark.exists()


def test_files_in_the_settings_of_an_own_class_count_however_deep(project):
    (project / "rings").mkdir()
    (project / "rings" / "a.bin").write_bytes(b"1")
    (project / "b.npy").write_bytes(b"1")
    settings = '{folder: rings, more: {files: [b.npy]}, note: "' + 400 * "x" + '"}'
    data = f'data: {{name: custom, path: "my_flows:Rings", settings: {settings}}}'
    text = re.sub(r"^data: .*$", data, PARAMS, flags=re.MULTILINE)
    (project / "params.yaml").write_text(text)
    before = inputs.compute(project)["inputs/prepare.json"]
    assert set(json.loads(before)["files"]) == {
        "data.settings.folder",
        "data.settings.more.files.0",
    }
    for file in ("rings/a.bin", "b.npy"):
        (project / file).write_bytes(b"2")
        after = inputs.compute(project)["inputs/prepare.json"]
        assert after != before
        before = after


TOLD = '''

class Told(OwnNetwork):
    """v is a linear map of the condition."""

    def __init__(self, shape, classes, conditions):
        super().__init__(shape, classes, conditions)
        self.map = nn.Linear(conditions.vector, shape[0])

    def forward(self, x, t, label=None):
        return self.map(self.given.vector(label, t))
'''


def test_conditions_of_an_own_network_are_looked_at_when_params_are_read(project):
    (project / "my_flows.py").write_text(MODULE + TOLD)
    tiny, rings = '"my_flows:Tiny", classes: 2, settings: {width: 8}', "settings: {samples: 300}"
    told = PARAMS.replace(tiny, '"my_flows:Told", conditions: {}')
    teacher = '{kind: own, network: {name: custom, path: "my_flows:Told", conditions: {}}}'
    round_ = re.search(r"train: \{steps: 10.*", PARAMS)[0]
    for text, says in (
        (PARAMS.replace(tiny, '"my_flows:Tiny", conditions: {}'), "Tiny takes no conditions: let"),
        (PARAMS.replace(tiny, '"my_flows:Told"'), "Told takes the conditions of the data; set"),
        (told, "network.conditions: the data has none"),
        (
            PARAMS.replace(round_, f"model: {teacher}"),
            "rounds.rf1.model.network.conditions: the data has none",
        ),
    ):
        (project / "params.yaml").write_text(text)
        with pytest.raises(ReflowError, match=re.escape(says)) as error:
            load(project / "params.yaml")
        assert "\n" not in str(error.value)
    guided = told.replace(rings, f"{rings}, conditions: {{}}").replace(
        "pairs: 128", "pairs: 128\n    guidance: 2.0"
    )
    (project / "params.yaml").write_text(guided)
    assert load(project / "params.yaml").network.conditions is not None
