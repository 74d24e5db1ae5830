"""Networks and models on disk."""

import hashlib
import json
import pickle

import pytest
import torch

from fmcore.checked import read_json, sealed
from fmcore.matching.interpolant import Linear
from fmcore.network.build import build
from fmcore.network.ema import averaged
from fmcore.network.mlp import MLP
from fmcore.network.store import load, redrawn, save
from fmcore.sampling.flow import Flow
from fmcore.settings import ReflowError
from fmcore.solve.solver import Solver
from tests.chains import SMALL, scratch_model


def test_weights_are_a_function_of_the_seed_and_leave_the_global_generator_alone():
    before = torch.get_rng_state()
    one, two, other = (build(SMALL, (2,), seed=s) for s in (1, 1, 2))
    assert torch.equal(before, torch.get_rng_state())
    pairs = list(zip(one.parameters(), two.parameters(), strict=True))
    assert all(torch.equal(a, b) for a, b in pairs)
    assert not torch.equal(one.enter.weight, other.enter.weight)


def test_the_network_keeps_shapes_and_feels_time():
    network = build(MLP(width=16, depth=1, time_features=8), (1, 4, 4), seed=0)
    torch.nn.init.normal_(network.blocks[0].outer.weight)
    x = torch.randn(3, 1, 4, 4)
    early, late = network(x, torch.zeros(3)), network(x, torch.ones(3))
    assert early.shape == x.shape
    assert not torch.allclose(early, late)


def test_save_and_load_give_the_same_function(tmp_path):
    network = build(SMALL, (2,), seed=0)
    save(tmp_path / "m", network, about={"round": "rf1"})
    model = load(tmp_path / "m")
    x, t = torch.randn(5, 2), torch.rand(5)
    assert torch.equal(model.network(x, t), network(x, t))
    assert model.config["round"] == "rf1" and not model.network.training
    assert load(tmp_path / "m").digest == model.digest


def test_ema_ramps_and_then_averages():
    network = torch.nn.Linear(1, 1, bias=False)
    network.weight.data.fill_(0.0)
    ema = averaged(network, 0.9)
    ema.update_parameters(network)
    value = 0.0
    for n in range(1, 200):
        network.weight.data.fill_(float(n))
        ema.update_parameters(network)
        value += (1 - min(0.9, (1 + n) / (10 + n))) * (n - value)
    assert float(ema.module.weight.detach()) == pytest.approx(value, rel=1e-4)


def test_a_missing_model_says_what_to_run(tmp_path):
    with pytest.raises(ReflowError, match=r"config\.json.*is missing; run the stage"):
        load(tmp_path / "nowhere")


class Bomb:
    def __reduce__(self):
        return (print, ("exploded",))


@pytest.mark.parametrize("content", [b"", b"\x00" * 50, pickle.dumps(Bomb())])
def test_a_damaged_or_pickled_weights_file_is_refused_and_never_run(tmp_path, content, capsys):
    folder = scratch_model(tmp_path / "m", dim=2)
    (folder / "model.safetensors").write_bytes(content)
    with pytest.raises(ReflowError, match="model.safetensors"):
        load(folder)
    assert "exploded" not in capsys.readouterr().out


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"network": {"width": -1}, "shape": [2]}'])
def test_a_bad_config_is_one_clear_error(tmp_path, text):
    folder = scratch_model(tmp_path / "m", dim=2)
    (folder / "config.json").write_text(text)
    with pytest.raises(ReflowError, match=r"config\.json: (damaged|has no sha256)"):
        load(folder)


def rewritten(folder, **changes):
    """Change the config of a model as a version of the program would that writes it so."""
    file = folder / "config.json"
    file.write_text(json.dumps(sealed({**read_json(file), **changes})))
    return folder


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"convention": "t=0 noise, t=1 data"}, "convention 't=0 noise, t=1 data', this program"),
        ({"objective": "zz"}, "objective 'zz', expected one of velocity, noise, target, mean_flow"),
        ({"network": {"name": "residual_mlp", "width": -1}}, "not a model that can be read"),
        ({"files": {}}, "model.safetensors: damaged"),
    ],
)
def test_a_model_of_another_kind_is_refused(tmp_path, changes, words):
    with pytest.raises(ReflowError, match=words) as error:
        load(rewritten(scratch_model(tmp_path / "m", dim=2), **changes))
    assert "\n" not in str(error.value)


def test_an_interpolant_that_is_none_is_refused_in_one_line(tmp_path):
    folder = rewritten(scratch_model(tmp_path / "m", dim=2), interpolant={"name": "crooked"})
    with pytest.raises(ReflowError, match=r"config\.json: interpolant") as error:
        Flow.of(load(folder))
    assert "\n" not in str(error.value)


def test_the_digest_of_a_model_is_that_of_its_settings_and_weights(tmp_path):
    """Couplings record it: new keys with hashes must not change the bytes of couplings."""
    folder = scratch_model(tmp_path / "m", dim=2)
    config = {k: v for k, v in read_json(folder / "config.json").items() if k != "files"}
    text = json.dumps(config, indent=2, sort_keys=True) + "\n"
    weights = (folder / "model.safetensors").read_bytes()
    assert load(folder).digest == hashlib.sha256(text.encode() + weights).hexdigest()


def test_a_model_drawn_anew_is_the_network_of_its_seed(tmp_path):
    settings = MLP(width=8, depth=1, time_features=8)
    about = {"round": "scratch", "seed": 0, "scale": {"mean": [1.0], "std": [2.0]}}
    save(tmp_path / "a", build(settings, (3,), seed=0), about=about)
    again = load(redrawn(tmp_path / "a", tmp_path / "b", seed=5))
    wanted = build(settings, (3,), seed=5).state_dict()
    assert all(torch.equal(v, wanted[k]) for k, v in again.network.state_dict().items())
    first = load(tmp_path / "a")
    assert again.config == {**first.config, "seed": 5} and again.digest != first.digest


@pytest.mark.parametrize("classes", [0, 3])
def test_one_time_of_all_rows_is_embedded_once(classes):
    network = build(MLP(width=16, depth=2, classes=classes), (2,), seed=0)
    for p in network.parameters():
        p.data += 0.2 * torch.randn(p.shape, generator=torch.Generator().manual_seed(1))
    rows = []
    network.time.register_forward_hook(lambda _, given, out: rows.append(len(out)))
    x, t = torch.randn(7, 2), torch.tensor([0.3])
    label = torch.arange(7) % 3 if classes else None
    each, once = network(x, t.repeat(7), label), network(x, t.expand(7), label)
    assert rows == [7, 1]
    torch.testing.assert_close(once, each)


def test_a_solver_gives_a_network_its_one_time_for_each_row_without_copies():
    seen = []

    def network(x, t):
        seen.append((len(x), t.shape, t.stride()))
        return x

    Flow(network, Linear(), tile=4).sample(torch.zeros(6, 2), Solver(name="heun", steps=1))
    assert seen == [(4, (4,), (0,))] * 4
