"""What `flops_training` says of a round, against the matrices of a network."""

import json

import pytest
import torch

from fmcore.network.adapter import Lora
from fmcore.network.build import build
from fmcore.network.images import DiT, UNet
from fmcore.network.mlp import MLP
from fmcore.network.store import Model
from fmcore.training.fit import Train, new_state
from fmcore.training.outcome import flops_per_sample, write
from fmcore.training.start import network_to_train

SMALL = MLP(width=16, depth=3, time_features=8, classes=2)
HELD = ("enter", "time.0", "span", "label")
"""Layers of the MLP whose inputs need no gradient; embeddings are looked up."""
FIRST = "blocks.0.inner"
"""The layer of a block whose input is x alone."""


def of(settings, network=SMALL, shape=(2,)):
    """Return the operations of a sample of a step, and the state of the training."""
    start = Model(build(network, shape, seed=0), {}, "")
    state = new_state(network_to_train(start.network, settings, seed=0), settings)
    return flops_per_sample(state, start, settings), state, start


def products(network, *without):
    """Return the operations of all matrices for a row, but for those of some layers."""
    named = {n.removesuffix(".weight"): p for n, p in network.named_parameters() if p.ndim == 2}
    return 2 * sum(p.numel() for n, p in named.items() if n not in {"label", *without})


def rule(name):
    return Train(steps=4, objective="mean_flow", map={"name": name})


def test_a_plain_step_is_three_evaluations_as_ever(tmp_path):
    settings = Train(steps=5, batch=32)
    found, state, start = of(settings)
    assert found == 3 * products(start.network)
    state.history.append({"step": 5.0, "loss": 1.0})
    state.to_step(5)
    write(tmp_path / "c.csv", tmp_path / "m.json", state, {}, start, settings)
    told = json.loads((tmp_path / "m.json").read_text())
    assert told["flops_training"] == 3 * products(start.network) * 5 * 32


@pytest.mark.parametrize(
    ("name", "evaluations"),
    [("mean_flow", 3), ("improved", 4), ("shortcut", 3), ("consistency", 2)],
)
def test_a_map_costs_its_calls_a_forward_mode_product_and_one_gradient(name, evaluations):
    """A product costs two evaluations more: torch multiplies each matrix by the tangent of its
    input, and the zeros that stand for the tangent of the matrix by its input."""
    found, state, start = of(rule(name))
    network = state.network
    gradients = products(network) + products(network, *HELD)
    assert found == evaluations * products(network) + gradients
    assert found > 3 * products(start.network)


def test_a_lagrangian_map_has_a_gradient_of_its_product_too():
    """Only what depends on the span has a tangent: not x, so not `enter` or the times."""
    found, state, _ = of(rule("lagrangian"))
    network = state.network
    calls = 2 * products(network) + 2 * products(network, "enter", "time.0", "time.2", FIRST)
    gradients = products(network) + products(network, *HELD)
    assert found - calls > gradients + products(network, *HELD, "time.2", FIRST)


@pytest.mark.parametrize("rows", [1, 3])
def test_the_count_is_that_of_torchs_counter_for_each_row(rows):
    from torch.utils.flop_counter import FlopCounterMode

    settings = Train(steps=4, adapter=Lora(rank=4))
    found, state, _ = of(settings)
    x, t = torch.zeros(rows, 2), torch.linspace(0, 1, rows)
    with FlopCounterMode(display=False) as counter:
        state.network(x, t, torch.zeros(rows, dtype=torch.int64)).square().mean().backward()
    assert counter.get_total_flops() == rows * found


def test_an_adapter_has_no_gradients_of_the_weights_that_it_leaves():
    rank, width, depth = 4, 16, 3
    found, _, start = of(Train(steps=4, adapter=Lora(rank=rank)))
    square, half, leave = 2 * width**2, 2 * rank * width, 2 * 2 * width
    layers = 3 * depth  # inner, time and outer of each block; their inputs, but for these:
    without = depth + 1  # the time's, and the first block's, which no trained weight made
    evaluation = products(start.network) + layers * 2 * half
    weights = layers * 2 * half
    inputs = (layers - without) * (square + half) + layers * half + leave
    assert found == evaluation + weights + inputs < 3 * products(start.network)


@pytest.mark.parametrize(
    "network",
    [
        UNet(name="unet", channels=(32, 64), blocks=1, classes=2),
        DiT(name="dit", heads=2, head=16, depth=2, patch=2, classes=2),
    ],
    ids=lambda settings: settings.name,
)
def test_maps_and_adapters_of_images_are_on_either_side_of_a_plain_step(network):
    shape = (1, 8, 8)
    plain = of(Train(steps=4), network, shape)[0]
    assert 1.4 * plain < of(rule("mean_flow"), network, shape)[0] < 1.8 * plain
    assert plain / 3 < of(Train(steps=4, adapter=Lora(rank=2)), network, shape)[0] < 0.9 * plain
