"""Adapters: the start at first, few trained weights, resumption, and what peft makes of them."""

import json
import shutil
import sys
from functools import partial

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file

from fmcore.matching.maps import Batch
from fmcore.network import adapter
from fmcore.network.adapter import Lora, adapt, merged
from fmcore.network.build import build
from fmcore.network.diffusers_class import DiffusersClass, absent_condition
from fmcore.network.ema import frozen, trained
from fmcore.network.images import DiT, UNet
from fmcore.network.mlp import MLP
from fmcore.network.outside import Outside
from fmcore.network.store import load
from fmcore.settings import ReflowError
from fmcore.tensors import coupled, fit_flow, independent
from fmcore.train import Train
from fmcore.training.checkpoint import save_state
from fmcore.training.fit import new_state
from fmcore.training.gradient import network_of
from fmcore.training.processes import Group
from fmcore.training.start import network_to_train
from fmcore.work.compute import Compute
from tests import diffusers_folders as folders
from tests.chains import SMALL, two_dimensions
from tests.fmcore.network.test_predictions import CLASSES, FLOW
from tests.fmcore.test_adopt import adopted, coupling
from tests.fmcore.training.test_train import Killed, run
from tests.together import start as two_couplings  # noqa: F401
from tests.together import together
from tests.together import trained as trained_here

LORA = Lora(rank=2, alpha=6.0)
SETTINGS = Train(steps=60, batch=32, log_every=10, checkpoint_every=20, warmup=5, adapter=LORA)
IMAGES = {
    "dit": (DiT(name="dit", heads=2, head=8, depth=2, classes=3), (1, 8, 8)),
    "unet": (UNet(name="unet", channels=(8, 8), attend=(1,), head=4), (1, 8, 8)),
}
NETWORKS = {**IMAGES, "mlp": (SMALL, (2,))}


def changed(module, scale=0.1, seed=1):
    """Draw weights, or what starts at 0 hides what is behind it."""
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in trained(module):
            p.add_(torch.randn(p.shape, generator=draw), alpha=scale)
    return module


def made(name):
    settings, shape = NETWORKS[name]
    network = changed(build(settings, shape, seed=0)).eval().requires_grad_(False)
    draw = torch.Generator().manual_seed(2)
    x, t = torch.randn(5, *shape, generator=draw), torch.rand(5, generator=draw)
    return network, (x, t, torch.arange(5) % 3 if settings.classes else None)


@pytest.fixture
def start(tmp_path):
    return two_dimensions(tmp_path)


@pytest.mark.parametrize("name", NETWORKS)
def test_it_is_the_start_at_first_and_merged_it_is_itself(name):
    network, given = made(name)
    before = torch.random.get_rng_state()
    adapted = adapt(network, LORA, seed=3)
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.testing.assert_close(adapted(*given), network(*given), rtol=0, atol=0)
    again, other = adapt(network, LORA, seed=3), adapt(network, LORA, seed=4)
    same = [torch.equal(a, b) for a, b in zip(trained(adapted), trained(again), strict=True)]
    assert all(same)
    assert not torch.equal(trained(adapted)[0], trained(other)[0])
    changed(adapted)
    assert not torch.allclose(adapted(*given), network(*given), atol=1e-3)
    plain = merged(adapted)
    assert plain.state_dict().keys() == network.state_dict().keys()
    torch.testing.assert_close(plain(*given), adapted(*given), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", NETWORKS)
def test_what_is_added_to_a_matrix_has_its_rank_and_the_rest_stays(name):
    network, _ = made(name)
    plain = merged(changed(adapt(network, LORA, seed=0)))
    ends = [*adapter.OF_DIFFUSERS, *adapter.HIDDEN]
    touched = set()
    for key, value in network.state_dict().items():
        apart = (plain.state_dict()[key] - value).flatten(1) if value.ndim > 1 else None
        if apart is not None and not torch.equal(apart, torch.zeros_like(apart)):
            touched.add(key)
            assert torch.linalg.matrix_rank(apart, rtol=1e-3) == 2
        elif apart is None:
            assert torch.equal(plain.state_dict()[key], value)
    assert touched and all(k.removesuffix(".weight").endswith(tuple(ends)) for k in touched)
    layers = {k for k in network.state_dict() if k.endswith(".weight")}
    assert any("conv1" in k for k in touched) == (name == "unet")
    assert len(touched) < len(layers)


def test_the_added_matrix_is_alpha_over_rank_times_both():
    layer = torch.nn.Linear(3, 2)
    holder = build(MLP(width=4, depth=1, time_features=2), (2,), seed=0)
    holder.blocks[0].inner = layer
    changed_ = changed(adapt(holder, Lora(rank=1, alpha=5.0, targets=("inner",)), seed=0))
    a, b = trained(changed_)
    assert a.shape == (1, 3) and b.shape == (2, 1)
    torch.testing.assert_close(merged(changed_).blocks[0].inner.weight, layer.weight + 5 * b @ a)


def test_the_optimiser_the_average_and_the_checkpoint_have_the_adapter_alone(tmp_path):
    wide = build(MLP(width=64, depth=3, time_features=16), (2,), seed=0)
    settings = SETTINGS.model_copy(update={"adapter": Lora(rank=1)})
    state = new_state(network_to_train(wide, settings, seed=0), settings)
    step_of(state, settings)
    own = sum(p.numel() for p in trained(state.network))
    assert own == 3 * 3 * 2 * 64  # three layers of three blocks, A and B of 64 numbers each
    moments = [v.numel() for slot in state.optimizer.state.values() for v in slot.values()]
    assert sum(moments) == 2 * own + 2 * 9  # two moments of each, and a step of each tensor
    places = {p.data_ptr() for p in state.network.parameters()}
    beside = [p for p in state.ema.module.parameters() if p.data_ptr() not in places]
    assert sum(p.numel() for p in beside) == own
    save_state(tmp_path, state)
    kept = load_file(tmp_path / "checkpoint.safetensors")
    assert sum(v.numel() for v in kept.values()) == 4 * own + 2 * 9 + 1  # and one count
    full = new_state(wide, Train(steps=60, batch=32))
    step_of(full, Train(steps=60, batch=32))
    save_state(tmp_path / "full", full)
    size = (tmp_path / "full" / "checkpoint.safetensors").stat().st_size
    assert (tmp_path / "checkpoint.safetensors").stat().st_size < size / 10


def step_of(state, settings, compute=None):
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(2, 8, *state.network.shape, generator=draw)
    batch = Batch(x[0], x[1], torch.linspace(0.2, 0.9, 8))
    error, gradients = network_of(state.network, settings, compute or Compute(), Group()).gradients(
        batch
    )
    state.optimizer.step()
    state.ema.update_parameters(state.network)
    return error, gradients


def test_a_round_is_an_adapter_of_its_start_and_a_model_as_any_other(start):
    found = run(start, "a", SETTINGS)
    metrics = json.loads(found["metrics"])
    model, before = load(start / "a" / "model"), load(start / "init")
    adapted = [p.numel() for p in trained(adapt(before.network, LORA, seed=0))]
    assert metrics["trained_parameters"] == sum(adapted) < metrics["parameters"] / 3
    assert model.config["adapter"] == {"kind": "lora", "rank": 2, "alpha": 6.0, "dropout": 0.0,
                                       "targets": None}  # fmt: skip
    assert model.config["init"] == before.digest
    was, now = before.network.state_dict(), model.network.state_dict()
    other = {k for k in was if not torch.equal(was[k], now[k])}
    assert other == {f"blocks.{i}.{n}.weight" for i in (0, 1) for n in ("inner", "time", "outer")}
    x, t = torch.randn(9, 2), torch.rand(9)
    loaded = PeftModel.from_pretrained(load(start / "init").network, start / "a/model/adapter")
    torch.testing.assert_close(loaded(x, t), model.network(x, t), rtol=1e-5, atol=1e-5)
    whole = loaded.merge_and_unload()(x, t)
    torch.testing.assert_close(whole, model.network(x, t), rtol=1e-5, atol=1e-5)
    files = json.loads((start / "a/model/config.json").read_text())["files"]
    assert {"adapter/adapter_config.json", "adapter/adapter_model.safetensors"} < files.keys()
    plain = run(start, "plain", SETTINGS.model_copy(update={"adapter": None}))
    assert "trained_parameters" not in json.loads(plain["metrics"])
    assert "adapter" not in load(start / "plain" / "model").config
    assert not (start / "plain" / "model" / "adapter").exists()
    assert "adapter" not in Train(steps=1).model_dump()


def killing(step, values, now):
    if now >= step and "loss" in values:
        raise Killed


@pytest.mark.parametrize("more", [{}, {"dropout": 0.3}])
@pytest.mark.parametrize("kill_at", [10, 50])
def test_a_killed_training_resumes_bit_for_bit(start, kill_at, more):
    settings = SETTINGS.model_copy(update={"adapter": Lora(rank=2, **more)})
    whole = run(start, "whole", settings)
    torch.rand(7)  # another place in the global generator
    with pytest.raises(Killed):
        run(start, "killed", settings, log=partial(killing, kill_at))
    resumed = []
    again = run(start, "killed", settings, log=lambda v, s: None if v else resumed.append(s))
    assert again == whole and resumed == ([40] if kill_at == 50 else [])
    if more:
        assert run(start, "without", SETTINGS) != whole


def test_a_training_continues_its_adapter_and_that_of_no_other_start(start):
    with pytest.raises(Killed):
        run(start, "stopped", SETTINGS, log=partial(killing, 50))
    lower = SETTINGS.model_copy(update={"lr": 1e-4})
    run(start, "a", lower, continued=start / "stopped" / "scratch")
    (told,) = load(start / "a" / "model").config["continued"]
    assert told["before"] == {"lr": 1e-3} and told["step"] == 40
    whole = Train(**{**lower.model_dump(), "adapter": None})
    with pytest.raises(ReflowError, match=r"^continue: .* does not fit this round"):
        run(start, "whole", whole, continued=start / "stopped" / "scratch")
    run(start, "rf1", Train(steps=10, batch=32))
    (start / "init").rename(start / "before")
    (start / "rf1" / "model").rename(start / "init")
    with pytest.raises(ReflowError, match="adapter of the earlier training is that of another"):
        run(start, "b", lower, continued=start / "stopped" / "scratch")


@pytest.mark.parametrize("name", IMAGES)
def test_peft_loads_it_onto_the_network_of_diffusers(name, tmp_path):
    network, given = made(name)
    adapted = changed(adapt(network, LORA, seed=0))
    adapter.write_adapter(tmp_path, adapted)
    start = made(name)[0]
    start.net = PeftModel.from_pretrained(start.net, tmp_path / "adapter")
    torch.testing.assert_close(start(*given), adapted(*given), rtol=1e-5, atol=1e-5)
    first = (tmp_path / "adapter" / "adapter_config.json").read_bytes()
    assert json.loads(first)["r"] == 2 and json.loads(first)["lora_alpha"] == 6.0
    assert sorted(json.loads(first)["target_modules"]) == json.loads(first)["target_modules"]


def teacher(kind):
    """A network that others trained, with weights that are drawn."""
    config, classes = CLASSES[kind], 5 if kind.startswith("DiT") else 0
    inner = DiffusersClass(
        name="diffusers", kind=kind, config=config, classes=classes, null=bool(classes),
        condition=absent_condition(kind, config),
    )  # fmt: skip
    settings = Outside(name="outside", network=inner, prediction=FLOW)
    return changed(build(settings, (4, 8, 8), seed=0)).eval().requires_grad_(False)


@pytest.mark.parametrize("kind", CLASSES)
def test_peft_and_diffusers_load_it_onto_a_teacher(kind, tmp_path):
    network, x, t = teacher(kind), torch.randn(2, 4, 8, 8), torch.tensor([0.2, 0.9])
    adapted = adapt(network, LORA, seed=0)
    assert torch.equal(adapted(x, t), network(x, t))
    changed(adapted)
    aim = adapted(x, t)
    assert not torch.allclose(aim, network(x, t), atol=1e-3)
    torch.testing.assert_close(merged(adapted)(x, t), aim, rtol=1e-5, atol=1e-5)
    adapter.write_adapter(tmp_path, adapted)
    theirs = teacher(kind)
    inner = theirs.net.net
    if hasattr(inner, "load_lora_adapter"):  # a LoRA of diffusers; alpha is not the rank
        names = {"prefix": "base_model.model", "weight_name": "adapter_model.safetensors"}
        inner.load_lora_adapter(str(tmp_path / "adapter"), **names)
        torch.testing.assert_close(theirs(x, t), aim, rtol=1e-5, atol=1e-5)
        inner.unload_lora()
        torch.testing.assert_close(theirs(x, t), network(x, t), rtol=0, atol=0)
    theirs.net.net = PeftModel.from_pretrained(inner, tmp_path / "adapter")
    torch.testing.assert_close(theirs(x, t), aim, rtol=1e-5, atol=1e-5)


def test_a_round_adapts_a_teacher(tmp_path):
    torch.set_num_threads(1)
    data = coupling(tmp_path / "data", torch.from_numpy(folders.images(64)))
    pipeline = folders.pipeline(tmp_path / "pipeline")
    out, _ = adopted(tmp_path, data, "init", kind="diffusers", path=str(pipeline))
    found = run(tmp_path, "rf1", SETTINGS.model_copy(update={"steps": 4, "batch": 8}))
    assert json.loads(found["metrics"])["trained_parameters"] > 0
    theirs, ours = load(out).network, load(tmp_path / "rf1" / "model").network
    x, t = torch.randn(2, 1, 8, 8), torch.tensor([0.3, 0.9])
    theirs.net.net = PeftModel.from_pretrained(theirs.net.net, tmp_path / "rf1/model/adapter")
    torch.testing.assert_close(theirs(x, t), ours(x, t), rtol=1e-5, atol=1e-5)


@pytest.mark.long
@pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile needs a C++ compiler")
def test_a_compiled_training_has_the_same_gradient():
    network, _ = made("mlp")
    found = []
    for whole in (False, True):
        state = new_state(changed(adapt(network, LORA, seed=0)), SETTINGS)
        found.append(step_of(state, SETTINGS, Compute(compile=whole))[1])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)


def test_processes_share_it_and_accumulation_and_recomputation_change_nothing(two_couplings):  # noqa: F811
    folder = two_couplings
    settings = SETTINGS.model_copy(update={"steps": 16, "checkpoint_every": 4, "log_every": 2})
    alone = trained_here(folder, folder / "alone", "pairs", settings)
    more = settings.model_copy(update={"accumulate": 2, "recompute": True})
    found, _ = together(folder, 2, [("run", "pairs", more)])["run"]
    assert found == pytest.approx(alone, rel=1e-5)
    one = load(folder / "alone" / "model").network.state_dict()
    for name, value in load(folder / "run-2" / "model").network.state_dict().items():
        torch.testing.assert_close(value, one[name], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("name", IMAGES)
def test_recomputed_blocks_give_the_same_gradient(name):
    network, _ = made(name)
    found = []
    for recompute in (False, True):
        settings = SETTINGS.model_copy(update={"recompute": recompute})
        state = new_state(changed(adapt(network, LORA, seed=0)), settings)
        found.append(step_of(state, settings)[1])
    assert len(found[0]) == len(found[1]) > 0
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-7)


def test_a_flow_map_learns_its_adapter_and_an_input_for_spans_that_it_adds(start):
    maps = SETTINGS.model_copy(update={"objective": "mean_flow", "steps": 20})
    added = json.loads(run(start, "a", maps)["metrics"])["trained_parameters"]
    spans = load_file(start / "a" / "model" / "adapter" / "span.safetensors")["weight"]
    assert torch.equal(spans, load(start / "a" / "model").network.span.weight) and spans.any()
    run(start, "maps", maps.model_copy(update={"adapter": None}))
    (start / "init").rename(start / "before")
    (start / "maps" / "model").rename(start / "init")
    found = run(start, "again", maps)
    few = json.loads(found["metrics"])["trained_parameters"]
    assert few > 0 and added == few + spans.numel()  # that of a start is not trained
    assert not (start / "again" / "model" / "adapter" / "span.safetensors").exists()
    assert load(start / "again" / "model").config["adapter"]["rank"] == 2


def test_in_memory_it_is_the_same(start):
    pairs = independent(torch.randn(200, 2))
    settings = Train(steps=20, batch=32, warmup=2)
    first = fit_flow(pairs, settings, network=SMALL, seed=1, log=lambda *_: None)
    few = settings.model_copy(update={"adapter": LORA})
    given = coupled(torch.randn(200, 2), torch.randn(200, 2))
    second = fit_flow(given, few, init=first, seed=1, log=lambda *_: None)
    was, now = (f.made_of[0].network.state_dict() for f in (first, second))
    assert was.keys() == now.keys()
    assert {k for k in was if not torch.equal(was[k], now[k])} == {
        f"blocks.{i}.{n}.weight" for i in (0, 1) for n in ("inner", "time", "outer")
    }
    with pytest.raises(ReflowError, match="adapter: a new network is untrained; give `init`"):
        fit_flow(pairs, few, network=SMALL, log=lambda *_: None)


def test_layers_that_are_not_there_and_a_missing_peft_are_one_line(start, monkeypatch):
    wrong = SETTINGS.model_copy(update={"adapter": Lora(targets=("to_q",))})
    with pytest.raises(ReflowError, match=r"^train.adapter.targets: .*end in 0, .*inner") as found:
        run(start, "a", wrong)
    assert "\n" not in str(found.value)
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ReflowError, match=r"needs peft .*pip install 'reflow-chain\[adapters\]'"):
        run(start, "a", SETTINGS)


def test_frozen_is_nothing_where_all_is_trained():
    network = build(SMALL, (2,), seed=0)
    assert frozen(network) == {} and len(trained(network)) == len(list(network.parameters()))
    network.requires_grad_(False)
    assert frozen(network) == {} and len(trained(network)) == len(list(network.parameters()))
