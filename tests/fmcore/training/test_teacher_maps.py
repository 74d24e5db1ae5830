"""Flow maps on networks that others trained: every rule trains, and what follows from it works."""

import json

import diffusers
import pytest
import torch
from safetensors.torch import load_file

from fmcore.couple import Couple, couple
from fmcore.coupling.read import open_coupling, read
from fmcore.network.adapter import Lora, adapt
from fmcore.network.build import with_spans
from fmcore.network.ema import trained
from fmcore.network.store import load
from fmcore.sampling.flow import Flow
from fmcore.solve.solver import Solver
from fmcore.train import Train, train
from fmcore.training.start import network_to_train
from fmcore.work.work import Work
from tests.fmcore.network.test_outside_spans import UNET, rules
from tests.fmcore.network.test_predictions import CLASSES
from tests.fmcore.test_adopt import adopted, coupling

KINDS = {
    "UNet2DModel": ("epsilon", UNET),
    "DiTTransformer2DModel": ("epsilon", CLASSES["DiTTransformer2DModel"]),
    "SD3Transformer2DModel": ("flow_prediction", CLASSES["SD3Transformer2DModel"]),
}
EULER = Solver(name="euler", steps=2)


@pytest.fixture(scope="module", params=KINDS)
def chain(request, tmp_path_factory):
    """Return a folder with an adopted teacher and its pairs."""
    torch.set_num_threads(1)
    root = tmp_path_factory.mktemp(request.param)
    prediction, config = KINDS[request.param]
    torch.manual_seed(0)
    net = getattr(diffusers, request.param).from_config(config)
    for weight in net.parameters():  # those that begin at 0 as well
        weight.data += 0.02 * torch.randn_like(weight)
    net.save_pretrained(root / "net")
    label = torch.arange(96) % 5 if request.param.startswith("DiT") else None
    data = coupling(root / "data", torch.randn(96, 4, 8, 8), label)
    told = {"kind": "diffusers", "path": str(root / "net")}
    adopted(root, data, **told, prediction={"name": prediction})
    work, settings = Work(scratch=root / "s"), Couple(pairs=64, solver=EULER, shard=64)
    couple(root / "teacher", data, root / "pairs", root / "pairs.json", settings, work)
    return root


def student(chain, folder, rule, **more):
    told = {"steps": 3, "batch": 8, "lr": 1e-4, "warmup": 0, "label_dropout": 0.0, "ema": 0.0}
    told |= {"objective": "mean_flow", "map": rule, "spans": 0.5} | more
    settings, work = Train.model_validate(told), Work(scratch=folder / "scratch")
    paths = (chain / "pairs", chain / "teacher", folder / "m", folder / "c.csv", folder / "m.json")
    train(*paths, settings, name="student", work=work)
    return folder / "m"


@rules
def test_each_rule_trains_the_network_of_a_teacher(chain, tmp_path, rule):
    files = {p: p.read_bytes() for p in (chain / "teacher").iterdir()}
    model, teacher = load(student(chain, tmp_path, rule)), load(chain / "teacher")
    assert files == {p: p.read_bytes() for p in (chain / "teacher").iterdir()}
    name = rule if isinstance(rule, str) else rule["name"]
    assert model.config.get("map", {"name": "mean_flow"})["name"] == name
    assert model.config["objective"] == "mean_flow" and model.config["init"] == teacher.digest
    assert model.network.settings.spans and bool(model.network.span.weight.any())
    measured = json.loads((tmp_path / "m.json").read_text())
    assert measured["loss"] > 0 and measured["held_out_loss"] > 0  # neither is nan
    pairs = read(open_coupling(chain / "pairs"))
    x, label = pairs.source[:8], None if pairs.label is None else pairs.label[:8]
    one = Flow.of(model).sample(x, Solver(name="euler", steps=1), label=label)
    end = torch.ones(8)
    step = x - model.network(x, end, label, end)
    torch.testing.assert_close(one.x, step, rtol=1e-4, atol=1e-4)
    assert not torch.equal(model.network(x, end, label, end), model.network(x, end, label, 0 * end))


def test_pairs_of_such_a_student_are_those_of_its_steps(chain, tmp_path):
    model, work = student(chain, tmp_path, "shortcut"), Work(scratch=tmp_path / "s")
    settings = Couple(pairs=16, solver=EULER, shard=16)
    couple(model, chain / "data", tmp_path / "p", tmp_path / "p.json", settings, work)
    pairs, network = read(open_coupling(tmp_path / "p")), load(model).network
    x, h = pairs.source, torch.full((16,), 0.5)
    for t in (2 * h, h):
        x = x - 0.5 * network(x, t, pairs.label, h)
    torch.testing.assert_close(pairs.target, x, rtol=1e-3, atol=1e-3)
    assert open_coupling(tmp_path / "p").about.model == load(model).digest


def test_an_adapter_of_a_map_has_its_input_for_spans_beside(chain, tmp_path):
    lora = {"kind": "lora", "rank": 2}
    model = student(chain, tmp_path, "lagrangian", adapter=lora)
    teacher, found = load(chain / "teacher").network, load(model).network
    settings = Train.model_validate({"steps": 3, "objective": "mean_flow", "adapter": lora})
    fresh = network_to_train(teacher, settings, seed=0)
    beside = fresh.get_submodule("span").weight
    plain = adapt(teacher, Lora(rank=2), seed=0)
    assert len(trained(fresh)) == len(trained(plain)) + 1 and beside.requires_grad
    files = {p.name for p in (model / "adapter").iterdir()}
    assert files == {"adapter_config.json", "adapter_model.safetensors", "span.safetensors"}
    of_peft = load_file(model / "adapter" / "adapter_model.safetensors")
    assert of_peft and all("lora_" in name for name in of_peft)
    spans = load_file(model / "adapter" / "span.safetensors")["weight"]
    assert torch.equal(spans, found.span.weight) and bool(spans.any())
    now = found.state_dict()
    changed = {k for k, v in teacher.state_dict().items() if not torch.equal(v, now[k])}
    assert changed and not any("time" in name for name in changed)
    x, t = torch.randn(2, 4, 8, 8), torch.tensor([0.4, 0.9])
    # What peft adds to the start, with that input, is the whole.
    start = with_spans(teacher)
    start.span.weight.data.copy_(spans)
    from peft import PeftModel

    start.net.net = PeftModel.from_pretrained(start.net.net, model / "adapter").merge_and_unload()
    start.eval()
    torch.testing.assert_close(start(x, t, None, t), found(x, t, None, t), rtol=1e-4, atol=1e-4)
