"""Counted operations against networks whose count is known."""

import subprocess
import sys

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from fmcore.network.build import MLP, build
from fmcore.network.flops import flops_per_evaluation
from fmcore.network.images import DiT, UNet
from fmcore.network.store import Model


def of(settings, shape):
    return flops_per_evaluation(Model(build(settings, shape, seed=0), {}, ""))


def test_an_mlp_costs_two_operations_for_each_weight_of_its_matrices():
    settings = MLP(width=16, depth=3, time_features=8)
    network = build(settings, (2, 3), seed=0)
    matrices = [p for p in network.parameters() if p.ndim == 2]
    wanted = 2 * sum(p.numel() for p in matrices)
    assert flops_per_evaluation(Model(network, {}, "")) == wanted


def test_attention_is_counted_whatever_kernel_a_device_has():
    """Products of queries and keys grow as the square of the tokens: 4 width a block and pair."""
    settings = DiT(name="dit", heads=2, head=16, depth=2, patch=2)
    tokens = [16, 64, 256]
    counts = [of(settings, (1, side, side)) for side in (8, 16, 32)]
    slopes = [(b - a) / (m - n) for a, b, n, m in zip(counts, counts[1:], tokens, tokens[1:])]
    square = (slopes[1] - slopes[0]) / (tokens[2] - tokens[0])
    assert square == settings.depth * 4 * settings.heads * settings.head


@pytest.mark.parametrize(
    "settings",
    [
        UNet(name="unet", channels=(32, 64), blocks=1),
        DiT(name="dit", heads=2, head=16, depth=2, patch=2),
    ],
    ids=lambda settings: settings.name,
)
def test_the_count_is_that_of_torchs_counter(settings):
    network = build(settings, (1, 8, 8), seed=0)
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        network(torch.zeros(1, 1, 8, 8), torch.full((1,), 0.5))
    assert flops_per_evaluation(Model(network, {}, "")) == counter.get_total_flops() > 0


def test_counting_loads_no_compiler():
    """torch's own counter imports torch._dynamo: seconds in every train and evaluate."""
    program = (
        "import sys, torch\nfrom fmcore.network.build import MLP, build\n"
        "from fmcore.network.flops import flops_per_evaluation\n"
        "from fmcore.network.store import Model\n"
        "flops_per_evaluation(Model(build(MLP(width=8, depth=1), (2,), seed=0), {}, ''))\n"
        "print('torch._dynamo' in sys.modules)"
    )
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert found.stdout.strip() == "False", found.stderr
