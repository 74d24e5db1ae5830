"""Classes of the user's own: each kind at work, and refusals before anything of a class runs."""

import json
import pickle
import re
import sys
from pathlib import Path

import pytest
import torch
from pydantic import TypeAdapter
from ruamel.yaml import YAML

from flows.params.load import load as load_params
from fmcore import own
from fmcore.calibrate import calibrate
from fmcore.checked import read_json, sealed
from fmcore.choices.interpolants import Interpolant
from fmcore.choices.laws import LawOfTime
from fmcore.choices.solvers import OdeSolver
from fmcore.conditions.table import Table
from fmcore.couple import couple
from fmcore.coupling.read import open_coupling, read
from fmcore.dataset.kinds import Dataset
from fmcore.evaluate import EvaluatePaths, evaluate
from fmcore.features.extractor import FeaturesOf
from fmcore.initialise import initialise
from fmcore.matching.interpolant import Linear, Schedule
from fmcore.network.build import Network, build, fitting
from fmcore.network.store import load, save
from fmcore.prepare import prepare
from fmcore.sampling.flow import Flow
from fmcore.settings import ReflowError
from fmcore.solve.solver import solve
from fmcore.train import train
from fmcore.training.losses import LossOfRound
from fmcore.work.executor import Executor
from fmcore.work.work import Work
from tests.own_classes import HARM, MODULE, OTHER, PARAMS

NAMES = ("Rings", "Tiny", "Absolute", "Ralston", "Triangular", "Polar", "Sine")


@pytest.fixture(autouse=True)
def _nothing_is_trusted(monkeypatch):
    monkeypatch.setattr(own, "_trusted", {})
    monkeypatch.setattr(own, "_used", set())
    monkeypatch.setattr(own, "_used", set())
    monkeypatch.setattr(own, "_imported", {})


@pytest.fixture
def project(tmp_path):
    (tmp_path / "my_flows.py").write_text(MODULE)
    (tmp_path / "params.yaml").write_text(PARAMS)
    (tmp_path / "dvc.yaml").write_text("stages: {}\n")
    return tmp_path


def custom(name, **more):
    return {"name": "custom", "path": f"my_flows:{name}", **more}


def parse(kind, value):
    return TypeAdapter(kind).validate_python(value)


def run_chain(root):
    """Run both rounds by the verbs; return the metrics of the second."""
    params = load_params(root / "params.yaml")
    torch.set_num_threads(1)
    data = root / "couplings" / "independent"
    prepare(data, params.data, seed=0)
    initialise(data, root / "models" / "scratch", params.network, seed=0)
    calibrate(data, root / "yardstick", params.yardstick, Work(scratch=root / "scratch"))
    for name, round_ in params.rounds.items():
        work = Work(scratch=root / "scratch" / name)
        train(
            root / "couplings" / round_.coupling,
            root / "models" / round_.init,
            root / "models" / name,
            root / f"{name}.csv",
            root / f"{name}.json",
            round_.train,
            name=name,
            work=work,
        )
        if name == "rf1":
            out, settings = root / "couplings" / "rf1", params.couplings["rf1"]
            couple(root / "models" / name, data, out, root / "couple.json", settings, work)
    paths = EvaluatePaths(
        root / "models" / "rf2",
        data,
        root / "couplings" / "rf1",
        root / "yardstick",
        root / "metrics.json",
        root / "fd.csv",
        root / "straightness.csv",
        root / "pictures",
    )
    return evaluate(paths, params.evaluate, Work(scratch=root / "scratch"))


def test_a_chain_of_seven_own_classes(project):
    found = run_chain(project)
    assert found["fd_polar/nfe_1"] > 0 and "kd_polar/nfe_2" in found
    assert open_coupling(project / "couplings" / "rf1").about.nfe == 6  # 3 steps of 2 evaluations
    data = read(open_coupling(project / "couplings" / "independent"))
    assert len(data) == 300 and sorted(set(data.label.tolist())) == [0, 1]
    model = load(project / "models" / "rf1")
    assert type(model.network).__name__ == "Tiny" and model.network.label.num_embeddings == 3
    assert (project / "models" / "rf1" / "model.safetensors").exists()
    flow = Flow.of(model)
    times = torch.tensor([0.25])
    assert float(flow.interpolant.alpha(times)) == pytest.approx(0.8535534, abs=1e-6)
    assert flow.classes == 2


@pytest.mark.long
def test_workers_of_other_processes_know_the_classes(project):
    """`spawn` starts an interpreter that knows nothing of the project's folder."""
    run_chain(project)
    params = load_params(project / "params.yaml")
    made = []
    for executor in (Executor.parse("in-process"), Executor.parse("processes:1")):
        out = project / executor.kind
        couple(
            project / "models" / "rf1",
            project / "couplings" / "independent",
            out,
            project / "m.json",
            params.couplings["rf1"],
            Work(seed=1, scratch=project / "scratch" / executor.kind, executor=executor),
        )
        made.append(read(open_coupling(out)).target)
    assert torch.equal(*made)


def test_a_solver_of_the_users_own_has_its_order_and_its_evaluations(project):
    own.trust(project, ["my_flows:Ralston"])
    gaps = []
    for steps in (8, 16, 32):
        solver = parse(OdeSolver, custom("Ralston", steps=steps))
        found = solve(lambda x, t: x * t[:, None], torch.ones(2, 1).double(), solver)
        assert found.nfe == 2 * steps
        gaps.append(float((found.x - torch.tensor(-0.5).exp()).abs().max()))
    assert gaps[0] / gaps[1] == pytest.approx(4, rel=0.15)
    assert gaps[1] / gaps[2] == pytest.approx(4, rel=0.1)
    assert parse(OdeSolver, custom("Ralston", steps=3)).refined().steps == 6
    bent = parse(OdeSolver, custom("Ralston", times=[1, 0.5, 0]))
    assert bent.refined().times == (1, 0.75, 0.5, 0.25, 0)


def test_a_law_and_a_loss_compute_what_their_class_says(project):
    own.trust(project, ["my_flows:Triangular", "my_flows:Absolute"])
    u = torch.tensor([0.25, 0.81])
    torch.testing.assert_close(parse(LawOfTime, custom("Triangular")).spread(u), u.sqrt())
    loss = parse(LossOfRound, custom("Absolute", settings={"power": 2}))
    gap = torch.tensor([[1.0, 3.0]])
    assert float(loss.per_sample(gap, u[:1], Linear(), "velocity")) == 5.0
    assert parse(LossOfRound, {"normalised": True}).name == "mse"  # a name may be left out


def test_what_is_kept_of_a_class_makes_it_again(project):
    kinds = {
        "Rings": Dataset,
        "Tiny": Network,
        "Absolute": LossOfRound,
        "Ralston": OdeSolver,
        "Triangular": LawOfTime,
        "Polar": FeaturesOf,
        "Sine": Interpolant,
    }
    own.trust(project, [f"my_flows:{name}" for name in NAMES])
    for name, kind in kinds.items():
        settings = parse(kind, custom(name))
        assert parse(kind, json.loads(settings.model_dump_json())) == settings
        assert pickle.loads(pickle.dumps(settings)) == settings


@pytest.mark.parametrize(
    ("kind", "value", "says"),
    [
        (
            Dataset,
            custom("Rings", settings={"ring": 2}),
            "settings.ring: unknown key; accepted: .*rings",
        ),
        (
            Dataset,
            custom("Rings", settings={"rings": "two"}),
            "settings.rings: expected a whole number, got 'two'",
        ),
        (
            Network,
            custom("Tiny", settings={"depth": 2}),
            "settings.depth: unknown key; accepted: w",
        ),
        (
            Network,
            custom("Tiny", settings={"width": 1.5}),
            "settings.width: expected a whole number, got 1.5",
        ),
        (Dataset, custom("Tiny"), "my_flows:Tiny is no subclass of fmcore.dataset.samples.Data"),
        (Interpolant, custom("Bent"), "d_alpha is not the derivative of alpha"),
        (Interpolant, custom("Half"), "my_flows:Half lacks d_alpha, d_sigma"),
        (LawOfTime, custom("Late"), r"my_flows:Late: spread must turn u \[64\]"),
        (LossOfRound, custom("Whole"), "my_flows:Whole: per_sample must return"),
        (OdeSolver, custom("Back"), r"my_flows:Back: a step of dx/dt = 1 must return x \+ dt"),
        (OdeSolver, custom("Breaks"), r"my_flows:Breaks fails: KeyError: 'x' \(my_flows.py:\d+\)"),
        (FeaturesOf, custom("Lite0"), "my_flows:Lite0: fd_lite0 is the name of another metric"),
    ],
)
def test_a_class_that_does_not_keep_its_promise_is_one_line(project, kind, value, says):
    wrong = """
class Bent(Sine):
    def d_alpha(self, t): return t * float("nan")
class Half(Schedule):
    def alpha(self, t): return 1 - t
    def sigma(self, t): return t
class Late(Law):
    def spread(self, u): return 2 * u
class Whole(SampleLoss):
    def per_sample(self, gap, t, interpolant, objective): return gap.mean()
class Back(StepRule):
    def step(self, v, x, t, dt): return x - dt * v(x, t)
class Breaks(StepRule):
    def step(self, v, x, t, dt): return {}["x"]
class Lite0(Polar):
    pass
"""
    (project / "my_flows.py").write_text(MODULE + wrong)
    own.trust(project, [value["path"]])
    with pytest.raises(ReflowError, match=says) as error:
        own.read(kind, value, "place")
    assert str(error.value).startswith("place") and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("reshape(x.shape)", "flatten()", r"network: my_flows:Tiny: forward must return \[2, 3\]"),
        ("self.enter(torch", "self.entre(torch", "network: my_flows:Tiny fails: AttributeError"),
        ("width: int = 16)", "**more)", r"__init__ must name each of its settings, not \*more"),
        ("classes: int, width", "width", r"__init__ must begin with \(self, shape, classes\)"),
    ],
)
def test_a_network_that_cannot_be_called_is_one_line(project, old, new, says):
    assert old in MODULE
    (project / "my_flows.py").write_text(MODULE.replace(old, new))
    own.trust(project, ["my_flows:Tiny"])
    with pytest.raises(ReflowError, match=says) as error:
        build(own.read(Network, custom("Tiny"), "network"), (3,), seed=0)
    assert "\n" not in str(error.value)


def test_samples_and_features_of_the_wrong_shape_are_one_line(project):
    own.trust(project, ["my_flows:Rings", "my_flows:Polar"])
    for old, new, says in (
        ("Samples(points, ring", "Samples(points.double(), ring", "target must be float32"),
        ("Samples(points, ring", "Samples(points, ring - 1", r"label must be int64 \[400\] from 0"),
        ("Samples(points, ring, image=False)", "points", "read must give Samples, got Tensor"),
        ("angle.cos(), angle.sin()", "angle.cosh(), angle.sin", "my_flows:Rings fails: TypeError"),
    ):
        (project / "my_flows.py").write_text(MODULE.replace(old, new))
        with pytest.raises(ReflowError, match=says):
            parse(Dataset, custom("Rings")).read(0)


def test_a_network_with_labels_is_guided_and_its_weights_come_back(project):
    own.trust(project, ["my_flows:Tiny"])
    network = build(parse(Network, custom("Tiny", classes=3)), (2,), seed=7)
    save(project / "model", network, about={})
    again = load(project / "model").network
    assert all(torch.equal(a, b) for a, b in zip(network.parameters(), again.parameters()))
    flow = Flow(again, Linear(), classes=3)
    x, t, label = torch.ones(4, 2), torch.full((4,), 0.5), torch.tensor([0, 1, 2, 3])
    one, two = (flow.velocity(label, guidance=g)(x, t) for g in (1.0, 2.0))
    assert torch.equal(one[3], two[3]) and not torch.allclose(one[:3], two[:3])
    same = build(parse(Network, custom("Tiny", classes=3)), (2,), seed=7)
    assert torch.equal(same.enter.weight, network.enter.weight)


# What is refused, and that nothing of it ran.


def refused(kind, path, base_says, mark):
    with pytest.raises(ReflowError, match=base_says) as error:
        own.read(kind, {"name": "custom", "path": path}, "params.yaml:1: place")
    assert "\n" not in str(error.value)
    assert not mark.exists()


@pytest.fixture
def harm(project):
    """A project whose module leaves a mark when it is imported."""
    mark = project / "mark"
    (project / "harm.py").write_text(HARM.format(mark=mark))
    return mark


ALL_KINDS = [Interpolant, LawOfTime, LossOfRound, OdeSolver, Dataset, FeaturesOf, Network]


@pytest.mark.parametrize("kind", ALL_KINDS)
def test_what_is_no_class_of_the_project_is_refused_unread(project, harm, kind):
    cases = {
        "os:system": "'os' is not the project's",
        "subprocess:Popen": "'subprocess' is not the project's",
        "torch:Tensor": "the project has no torch.py",
        "fmcore.own:Own": "'fmcore' is not the project's",
        "nowhere:Class": "the project has no nowhere.py; a package needs nowhere/__init__.py",
        "harm:function": "harm.py has no `class function` at its top level",
        "harm:system": "harm.py has no `class system`",
        "harm:Path": "harm.py has no `class Path`",
        "harm:Assigned": "harm.py has no `class Assigned`",
    }
    own.trust(project, cases)
    for path, says in cases.items():
        refused(kind, path, says, harm)


@pytest.mark.parametrize("kind", ALL_KINDS)
def test_a_class_that_is_no_subclass_is_never_called(project, kind):
    mark = project / "mark"
    (project / "other.py").write_text(OTHER.format(mark=mark))
    own.trust(project, ["other:Other"])
    refused(kind, "other:Other", "other:Other is no subclass of fmcore", mark)


def test_a_class_without_a_base_is_refused_unread(project):
    mark = project / "mark"
    (project / "bare.py").write_text(
        f"open({str(mark)!r}, 'w').close()\n\n\nclass Bare:\n    pass\n"
    )
    own.trust(project, ["bare:Bare"])
    refused(Interpolant, "bare:Bare", "bare:Bare is no subclass of fmcore", mark)


@pytest.mark.parametrize("kind", ALL_KINDS)
def test_a_class_that_params_do_not_name_is_refused_unread(project, harm, kind):
    for path in ("harm:Assigned", "os:system", "my_flows:Sine"):
        refused(kind, path, "is named only by a model's config.json or by other data", harm)
    assert "my_flows" not in own._imported


def test_a_file_outside_of_the_project_is_refused_unread(tmp_path, project, harm):
    inside = project / "inside"
    inside.mkdir()
    (inside / "linked.py").symlink_to(project / "harm.py")
    (inside / "package").mkdir()
    (inside / "package" / "__init__.py").symlink_to(project / "harm.py")
    (inside / "package" / "good.py").write_text(MODULE)
    paths = ["linked:function", "package.good:Sine", "harm:function"]
    own.trust(inside, [*paths, "..harm:function", "package..good:Sine"])
    for path in paths[:2]:
        refused(Interpolant, path, "lies outside of the project", harm)
    refused(Interpolant, "harm:function", "the project has no harm.py", harm)
    refused(Interpolant, "..harm:function", "pattern", harm)
    refused(Interpolant, "package..good:Sine", "pattern", harm)


@pytest.mark.parametrize("key", ["network", "interpolant"])
@pytest.mark.parametrize("path", ["os:system", "harm:function", "my_flows:Sine"])
def test_a_models_config_imports_nothing(project, harm, key, path):
    own.trust(project, ["my_flows:Tiny"])
    save(project / "model", build(parse(Network, custom("Tiny")), (2,), seed=0), about={})
    file = project / "model" / "config.json"
    config = {**read_json(file), key: {"name": "custom", "path": path}}
    file.write_text(json.dumps(sealed(config)))
    with pytest.raises(ReflowError, match="named only by a model's config.json") as error:
        Flow.of(load(project / "model"))
    assert "\n" not in str(error.value) and f"config.json: {key}" in str(error.value)
    assert not harm.exists()


def test_an_mlflow_model_imports_nothing(project, harm):
    from types import SimpleNamespace

    own.trust(project, ["my_flows:Tiny"])
    save(project / "model", build(parse(Network, custom("Tiny")), (2,), seed=0), about={})
    own._trusted.clear()
    context = SimpleNamespace(artifacts={"model": str(project / "model")})
    from flows.tracking.served import Sampler

    with pytest.raises(ReflowError, match="named only by a model's config.json"):
        Sampler().load_context(context)
    own.trust(project, ["my_flows:Tiny"])  # as the person who loads it may
    sampler = Sampler()
    sampler.load_context(context)
    found = sampler.predict(context, [], {"seed": 0, "count": 5})
    assert found.shape == (5, 2)


def test_a_damaged_module_and_one_that_fails_are_one_line(project):
    own.trust(project, ["my_flows:Sine"])
    for text, says in (
        ("class Sine(:\n", "my_flows.py: cannot be read as Python: SyntaxError"),
        (f"{MODULE}\nraise KeyError('x')\n", r"my_flows.py cannot be imported: KeyError: 'x'"),
        (f"{MODULE}\nraise SystemExit(3)\n", r"my_flows.py cannot be imported: SystemExit: 3"),
    ):
        (project / "my_flows.py").write_text(text)
        with pytest.raises(ReflowError, match=says) as error:
            own.read(Interpolant, custom("Sine"), "place")
        assert "\n" not in str(error.value)


def test_a_package_with_relative_imports_and_a_module_beside_it(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "__init__.py").write_text("")
    (tmp_path / "mine" / "base.py").write_text(MODULE)
    (tmp_path / "beside.py").write_text("HALF = 0.5\n")
    (tmp_path / "mine" / "more.py").write_text(
        "import beside\nfrom .base import Sine\n\n\nclass Slow(Sine):\n"
        "    def noise(self):\n        import beside as late\n        return late.HALF\n"
    )
    own.trust(tmp_path, ["mine.more:Slow"])
    found = parse(Interpolant, {"name": "custom", "path": "mine.more:Slow"})
    assert isinstance(found, Schedule) and found.own.noise() == 0.5


def test_each_folder_has_its_own_module_of_a_name(tmp_path):
    """Worktrees of other revisions are in one process with the project."""
    before = list(sys.path)
    for folder, power in (("a", 2), ("b", 3), ("a", 2), ("a", 4)):
        root = tmp_path / folder
        root.mkdir(exist_ok=True)
        (root / "helper.py").write_text(f"POWER = {power}\n")
        text = MODULE.replace("power: float = 1.0", "power: float = float(POWER)")
        (root / "my_flows.py").write_text(f"from helper import POWER\n{text}")
        own.trust(root, ["my_flows:Absolute"])
        assert parse(LossOfRound, custom("Absolute")).own.power == power
    assert [p for p in sys.path if p not in before] == [str(tmp_path / "a")]


def test_a_module_named_as_an_installed_package_is_refused(tmp_path):
    (tmp_path / "torch.py").write_text(MODULE)
    own.trust(tmp_path, ["torch:Sine"])
    kept = sys.modules["torch"]
    with pytest.raises(ReflowError, match="torch is the name of an installed package"):
        own.read(Interpolant, {"name": "custom", "path": "torch:Sine"}, "place")
    assert sys.modules["torch"] is kept


def test_the_classes_of_the_page_are_used_as_it_says(tmp_path):
    """Each block of docs/how-to-add.md goes into one my_flows.py, as a reader would put it."""
    page = (Path(__file__).parents[2] / "docs" / "how-to-add.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    (tmp_path / "my_flows.py").write_text("\n".join(blocks))
    kinds = {"data": Dataset, "network": Network, "solver": OdeSolver, "interpolant": Interpolant}
    kinds |= {"time": LawOfTime, "loss": LossOfRound, "features": FeaturesOf}
    lines = re.findall(r"^\+.*?(\w+): (\{name: custom.*?)\}*$", page, flags=re.MULTILINE)
    assert sorted(kind for kind, _ in lines) == sorted([*kinds, "network"]) and len(blocks) == 8
    known = Table(torch.randn(4, 5))
    for kind, text in lines:
        closed = text + "}" * (text.count("{") - text.count("}"))
        settings = YAML(typ="safe").load(closed)
        own.trust(tmp_path, own.named(settings))
        made = parse(kinds[kind], settings)
        assert made.name == "custom"
        if kind == "network":
            network = fitting(made, known, (2,), seed=0)
            assert network(torch.zeros(2, 2), torch.ones(2), torch.tensor([0, 3])).shape == (2, 2)


def test_the_names_in_params_are_found_wherever_they_stand():
    named = own.named(YAML(typ="safe").load(PARAMS))
    assert named == {f"my_flows:{name}" for name in NAMES}


def test_a_worker_without_the_project_says_so(tmp_path):
    with pytest.raises(ReflowError, match="the worker needs the project's folder /nowhere"):
        own.use([("my_flows:Sine", "/nowhere")])


def test_every_base_says_what_a_class_of_it_does():
    from fmcore.choices.solvers import StepRule
    from fmcore.dataset.samples import Data
    from fmcore.features.own import FeatureMap
    from fmcore.matching.loss import SampleLoss
    from fmcore.matching.times import Law
    from fmcore.network.own import OwnNetwork

    for base in (Schedule, Law, SampleLoss, StepRule, Data, FeatureMap, OwnNetwork):
        assert "of your own (`name: custom`)" in " ".join(base.__doc__.split()), base
    assert Path(own.__file__).name == "own.py"
