"""Networks and teachers of one's own that take texts and vectors, first in closed form."""

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from fmcore import own
from fmcore.calibrate import calibrate
from fmcore.conditions import table as conditions
from fmcore.conditions.table import Table
from fmcore.couple import Couple, couple
from fmcore.coupling.read import open_coupling, read
from fmcore.coupling.write import About, finish, table, write_shard
from fmcore.evaluate import Evaluate, EvaluatePaths, evaluate
from fmcore.features.extractor import FeatureSettings
from fmcore.initialise import initialise
from fmcore.measure.yardstick import YardstickSettings
from fmcore.network.build import Network, build, fitting, with_spans
from fmcore.network.store import load, save
from fmcore.prepare import prepare
from fmcore.sampling.flow import Flow
from fmcore.sampling.prompts import prompted
from fmcore.settings import ReflowError
from fmcore.ship import whole
from fmcore.solve.solver import Solver
from fmcore.train import Train, train
from fmcore.work.executor import Executor
from fmcore.work.work import Work
from tests.fmcore.conditions.test_conditions import CENTRES, TEXTS, blobs
from tests.fmcore.test_adopt import adopted

MODULE = '''
import torch
from torch import nn

from fmcore.network.own import OwnNetwork


class Told(OwnNetwork):
    """v = A c, where c is the vector of the condition: straight paths that a condition moves."""

    def __init__(self, shape, classes, conditions, start: float = 0.0):
        super().__init__(shape, classes, conditions)
        assert classes == 0
        self.map = nn.Linear(conditions.vector, shape[0], bias=False)
        nn.init.constant_(self.map.weight, start)

    def forward(self, x, t, label=None, span=None):
        return self.map(self.given.vector(label, t)) + 0 * x


class Tokens(OwnNetwork):
    """v = A times the mean of the tokens that are there, with what sums them up."""

    def __init__(self, shape, classes, conditions=None):
        super().__init__(shape, classes, conditions)
        self.map = nn.Linear(conditions.features + conditions.pooled, shape[0], bias=False)

    def forward(self, x, t, label=None):
        tokens, mask, pooled = self.given.sequence(label, t)
        there = mask[:, :, None].float()
        mean = (tokens * there).sum(1) / there.sum(1)
        return self.map(torch.cat([mean, pooled], dim=1))


class Either(OwnNetwork):
    """Its label has an embedding that is learnt, or given."""

    def __init__(self, shape, classes, conditions=None):
        super().__init__(shape, classes, conditions)
        width = conditions.vector if conditions else 4
        self.label = None if conditions else nn.Embedding(classes + 1, width)
        self.map = nn.Linear(width, shape[0])

    def forward(self, x, t, label=None):
        rows = self.labels(label, t)
        found = self.label(rows) if self.label else self.given.vector(rows, t)
        return self.map(found)


class Exact(OwnNetwork):
    """The exact EDM denoiser of N(A c, .5^2)."""

    def __init__(self, shape, classes, conditions):
        super().__init__(shape, classes, conditions)
        self.map = nn.Linear(conditions.vector, shape[0], bias=False)

    def forward(self, x, t, label=None):
        mean, s2 = self.map(self.given.vector(label, t)), t[:, None] ** 2
        return (0.25 * x + s2 * mean) / (0.25 + s2)
'''
VECTORS = Table(torch.randn(4, 5, generator=torch.Generator().manual_seed(0)))
TOKENS = Table(
    torch.randn(4, 3, 5, generator=torch.Generator().manual_seed(1)).half(),
    torch.arange(3)[None] < torch.tensor([[1], [2], [3], [1]]),
    torch.randn(4, 2, generator=torch.Generator().manual_seed(2)),
)
EULER = Solver(name="euler", steps=3)


def custom(name, module="told", **more):
    given = {"name": "custom", "path": f"{module}:{name}", "conditions": {}, **more}
    return own.read(Network, given, "network")


@pytest.fixture(scope="module", autouse=True)
def root(tmp_path_factory):
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("told")
    (folder / "told.py").write_text(MODULE)
    own.trust(folder, [f"told:{name}" for name in ("Told", "Tokens", "Either", "Exact")])
    return folder


def saved(folder, network, known):
    save(folder, network, about={"conditions": known.about})
    return load(folder)


# In closed form.


def test_samples_are_moved_by_the_vector_of_each_row_and_guidance_by_the_null_row(tmp_path):
    network = fitting(custom("Told", settings={"start": 0.1}), VECTORS, (2,), seed=0)
    torch.nn.init.normal_(network.map.weight)
    model = saved(tmp_path / "model", network, VECTORS)
    assert (model.network.settings.classes, model.network.classes) == (3, 0)
    assert set(model.network.state_dict()) == {"map.weight"}  # the table is no weight
    flow, a = Flow.of(model), network.map.weight.detach()
    source, label = torch.randn(3, 2), torch.tensor([2, 0, 3])
    moved, null = VECTORS.vectors[label] @ a.T, VECTORS.vectors[-1] @ a.T
    found = flow.sample(source, EULER, label=label).x
    torch.testing.assert_close(found, source - moved)
    torch.testing.assert_close(flow.sample(source, EULER).x, source - null)
    for guidance in (0.0, 3.0):
        found = flow.sample(source, EULER, label=label, guidance=guidance).x
        torch.testing.assert_close(found, source - null - guidance * (moved - null))


def test_sequences_come_with_their_mask_and_their_sum(tmp_path):
    network = fitting(custom("Tokens"), TOKENS, (2,), seed=0)
    model, x, label = saved(tmp_path / "model", network, TOKENS), torch.zeros(4, 2), torch.arange(4)
    lengths = (1, 2, 3, 1)
    mean = [TOKENS.vectors[i, :n].float().mean(0) for i, n in enumerate(lengths)]
    wanted = torch.cat([torch.stack(mean), TOKENS.pooled], dim=1) @ network.map.weight.detach().T
    torch.testing.assert_close(model.network(x, torch.ones(4), label), wanted)
    torch.testing.assert_close(model.network(x, torch.ones(4)), wanted[-1:].expand(4, 2))


def test_one_class_takes_labels_or_conditions():
    x, t, label = torch.zeros(2, 2), torch.ones(2), torch.tensor([1, 3])
    told = fitting(custom("Either"), VECTORS, (2,), seed=0)
    torch.testing.assert_close(told(x, t, label), told.map(VECTORS.vectors[label]))
    torch.testing.assert_close(told(x, t), told.map(VECTORS.vectors[[3, 3]]))
    plain = build(custom("Either", conditions=None, classes=3), (2,), seed=0)
    torch.testing.assert_close(plain(x, t), plain.map(plain.label(torch.tensor([3, 3]))))
    assert not hasattr(plain, "given")
    assert "conditions" not in plain.settings.model_dump()  # a model of it is as before


def test_its_table_is_its_own_not_the_one_on_which_it_was_tried():
    network = build(custom("Told").sized(VECTORS), (2,), seed=0)
    assert network.training and network.given.table is None
    with pytest.raises(ReflowError, match="has no table of conditions"):
        network(torch.zeros(1, 2), torch.zeros(1))
    assert with_spans(network) is network


def test_a_large_table_stays_with_the_data(tmp_path, monkeypatch):
    monkeypatch.setattr(conditions, "KEPT", 1)
    model = saved(tmp_path / "model", fitting(custom("Told"), VECTORS, (2,), seed=0), VECTORS)
    assert model.network.given.table is None


# A chain of it.


@pytest.fixture(scope="module")
def chain(root):
    """A round on two captioned blobs, the guided pairs that it makes, and a round on these."""
    prepare(root / "data", blobs(root), seed=0)
    initialise(root / "data", root / "init", custom("Told"), seed=0)
    settings = YardstickSettings(features=FeatureSettings(kind="identity"), samples=100, splits=2)
    calibrate(root / "data", root / "yardstick", settings, Work(scratch=root / "tmp"))
    learnt(root, "rf1", "data", "init", label_dropout=0.2)
    pairs = Couple(pairs=64, shard=32, solver=EULER, guidance=2.0)
    given = (root / "rf1", root / "data", root / "pairs", root / "pairs.json")
    couple(*given, pairs, Work(scratch=root / "couple"))
    learnt(root, "rf2", "pairs", "rf1", label_dropout=0.0)
    return root


def learnt(root, name, coupling, init, **more):
    how = Train(steps=300, batch=128, lr=5e-2, ema=0.98, warmup=10, **more)
    files = (root / name, root / f"{name}.csv", root / f"{name}.json")
    train(root / coupling, root / init, *files, how, name=name, work=Work(scratch=root / name[1:]))


def test_a_round_learns_its_texts_and_the_next_one_those_of_its_pairs(chain):
    noise = torch.randn(400, 2, generator=torch.Generator().manual_seed(1))
    for text, centre in zip(TEXTS, CENTRES, strict=True):
        model = load(chain / "rf1")
        label = torch.full((400,), model.label(text))
        # The least error of v = A c is at the mean of source - target, which is -centre.
        x = Flow.of(model).sample(noise, EULER, label=label).x
        assert (x.mean(0) - noise.mean(0) - centre).norm() < 0.3
        known = open_coupling(chain / "data").conditions
        torch.testing.assert_close(x, noise - model.network.map(known.vectors[label].float()))
        second = Flow.of(load(chain / "rf2")).sample(noise, EULER, label=label).x
        guided = noise - 2 * model.network.map(known.vectors[label].float())
        torch.testing.assert_close(second, guided, atol=0.2, rtol=0)


def test_pairs_and_models_keep_the_table(chain):
    known = open_coupling(chain / "data").conditions
    made = open_coupling(chain / "pairs")
    assert made.conditions.texts == known.texts == TEXTS and made.about.guided == 2.0
    assert set(read(made).label.tolist()) == {0, 1}
    for name in ("init", "rf1", "rf2"):
        model = load(chain / name)
        assert model.config["conditions"] == made.about.conditions
        assert model.network.given.table.sha256 == known.sha256
        assert model.config["network"]["conditions"] == known.sizes.model_dump()


def test_a_round_is_measured_with_its_texts(chain):
    paths = EvaluatePaths(
        chain / "rf1", chain / "data", chain / "data", chain / "yardstick",
        chain / "metrics.json", chain / "fd.csv", chain / "straightness.csv", chain / "pictures",
    )  # fmt: skip
    settings = Evaluate(nfe=(1,), solver=Solver(name="heun", steps=4), trajectories=64)
    found = evaluate(paths, settings, Work(scratch=chain / "tmp"))
    assert found["retrieval_top1/nfe_1"] > found["retrieval_top1/chance"]
    assert found["straightness"] < 1e-6  # of a velocity that depends on the text alone


def test_texts_that_are_given_now_are_embedded(chain):
    flow, noise = Flow.of(load(chain / "rf1")), torch.zeros(3, 2)
    asked = prompted(flow, ["right", "left side", "left"])
    x = asked.sample(noise, EULER, label=torch.arange(3), guidance=2.0).x
    own_rows = flow.sample(noise, EULER, label=torch.tensor([1, 0, 0]), guidance=2.0).x
    assert torch.equal(x[[0, 2]], own_rows[[0, 2]]) and not torch.equal(x[1], own_rows[1])
    none = asked.sample(noise, EULER, label=torch.arange(3), guidance=0.0).x
    torch.testing.assert_close(none, flow.sample(noise, EULER).x)


def test_a_graph_takes_the_texts_by_their_number(chain, tmp_path):
    model = load(chain / "rf1")
    whole.write_export(whole.Whole(model, EULER, 2.0), model, tmp_path / "flow.pt2")
    noise, label = torch.randn(5, 2), torch.tensor([1, 0, 1, 1, 0])
    found = torch.export.load(tmp_path / "flow.pt2").module()(noise, label)
    wanted = Flow.of(model).sample(noise, EULER, label=label, guidance=2.0).x
    torch.testing.assert_close(found, wanted)
    assert whole.texts_of(model) == TEXTS


@pytest.mark.long
def test_workers_of_other_processes_give_the_same_bytes(chain, tmp_path):
    settings = Couple(pairs=64, shard=32, solver=EULER, guidance=2.0)
    work = Work(scratch=tmp_path / "scratch", executor=Executor.parse("processes:1"))
    out = tmp_path / "pairs"
    couple(chain / "rf1", chain / "data", out, tmp_path / "pairs.json", settings, work)
    for file in out.glob("*.parquet"):
        assert file.read_bytes() == (chain / "pairs" / file.name).read_bytes()


# A teacher of it.


@pytest.fixture
def data(tmp_path):
    """Targets [60, 2] with one of three vectors each."""
    about = About(kind="independent", shape=[2], pairs=60, seed=0, conditions=VECTORS.about)
    folder, x = tmp_path / "data", torch.randn(60, 2, generator=torch.Generator().manual_seed(0))
    write_shard(folder, 0, table(about, np.arange(60), x, label=torch.arange(60) % 3))
    conditions.write(folder, VECTORS)
    finish(folder, about, 1)
    return folder


def own_teacher(tmp_path, data, name, weight, **more):
    save_file({"map.weight": weight}, tmp_path / "w.safetensors")
    network = {"name": "custom", "path": f"told:{name}", "conditions": {}}
    more["weights"] = str(tmp_path / "w.safetensors")
    return adopted(tmp_path, data, kind="own", network=network, **more)[0]


def test_a_denoiser_of_ones_own_has_a_mean_for_each_condition(tmp_path, data):
    a = torch.randn(2, 5, generator=torch.Generator().manual_seed(3))
    edm = {"name": "edm", "output": "denoised"}
    out = own_teacher(tmp_path, data, "Exact", a, prediction=edm)
    flow, source, label = Flow.of(load(out)), torch.randn(6, 2), torch.arange(6) % 4
    found = flow.sample(source, Solver(name="rk4", steps=64), label=label).x
    mean = VECTORS.vectors[label] @ a.T
    # dx/dsigma = (x - D) / sigma keeps (x - mean) / sqrt(s^2 + sigma^2).
    wanted = mean + (80 * source - mean) * 0.5 / (0.25 + 80**2) ** 0.5
    torch.testing.assert_close(found, wanted, atol=2e-3, rtol=0)
    guided = flow.sample(source, EULER, label=label, guidance=2.0).x
    assert not torch.allclose(guided, flow.sample(source, EULER, label=label).x)


def test_a_student_of_it_has_its_conditions(tmp_path, data):
    a = torch.randn(2, 5, generator=torch.Generator().manual_seed(3))
    out, work = own_teacher(tmp_path, data, "Told", a), Work(scratch=tmp_path / "scratch")
    guided = Couple(pairs=60, solver=EULER, guidance=2.0, shard=60)
    couple(out, data, tmp_path / "pairs", tmp_path / "pairs.json", guided, work)
    made = read(open_coupling(tmp_path / "pairs"))
    moved, null = VECTORS.vectors[made.label] @ a.T, VECTORS.vectors[-1] @ a.T
    torch.testing.assert_close(made.target, made.source - null - 2 * (moved - null))
    files = (tmp_path / "student", tmp_path / "c.csv", tmp_path / "m.json")
    how = Train(steps=200, batch=60, lr=5e-2, ema=0.9, label_dropout=0.0)
    train(tmp_path / "pairs", out, *files, how, name="student", work=work)
    student = load(tmp_path / "student").network
    x, label = torch.zeros(3, 2), torch.arange(3)
    found = student(x, torch.ones(3), label)
    wanted = 2 * VECTORS.vectors[:3] @ a.T - null
    torch.testing.assert_close(found, wanted, atol=0.05, rtol=0)


def test_a_teacher_that_does_not_fit_is_one_line(tmp_path, data):
    with pytest.raises(ReflowError, match="weights of another network .*size mismatch"):
        own_teacher(tmp_path, data, "Exact", torch.zeros(2, 7))
    about = open_coupling(data).about.model_copy(update={"conditions": None})
    plain = tmp_path / "plain"
    write_shard(plain, 0, table(about, np.arange(60), torch.randn(60, 2)))
    finish(plain, about, 1)
    with pytest.raises(ReflowError, match="the data has no conditions"):
        own_teacher(tmp_path, plain, "Exact", torch.zeros(2, 5))


# What is refused.


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("classes, conditions, start", "classes, start", "takes no conditions: let __init__ be"),
        ("classes, conditions)\n        assert", "classes)\n        assert", "must call super"),
        ("given.vector(label, t)", "given.vector(t, label)", "wrong:Told fails: "),
        ("conditions.vector, shape", "9, shape", "wrong:Told fails: RuntimeError: .*shapes"),
        (" + 0 * x", "[:1]", r"forward must return \[2, 2\], got \[1, 2\]"),
    ],
)
def test_a_class_that_cannot_take_them_is_one_line(tmp_path, old, new, says):
    text = MODULE.split("class Tokens")[0]
    assert old in text
    (tmp_path / "wrong.py").write_text(text.replace(old, new))
    own.trust(tmp_path, ["wrong:Told"])
    with pytest.raises(ReflowError, match=says) as error:
        fitting(custom("Told", "wrong"), VECTORS, (2,), seed=0)
    assert "\n" not in str(error.value)


def test_a_class_that_needs_them_says_so():
    with pytest.raises(ReflowError, match=r"takes the conditions of the data; set conditions: {}"):
        custom("Told", conditions=None)
    with pytest.raises(ReflowError, match="conditions number themselves; leave classes out"):
        custom("Told", classes=3)
    with pytest.raises(ReflowError, match="the data has no conditions"):
        fitting(custom("Told"), None, (2,), seed=0)


def test_another_table_has_to_have_the_sizes_of_the_first():
    network = fitting(custom("Told"), VECTORS, (2,), seed=0)
    network.given.take(Table(torch.zeros(9, 5)))
    with pytest.raises(ReflowError, match="embed them with the encoder that it was made with"):
        network.given.take(Table(torch.zeros(4, 6)))
